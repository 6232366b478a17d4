"""The naive oracle: each map from its definition, in float64, one entry or reflection at a time."""

import numpy as np


def goe(g):
    n = len(g)
    w = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            w[i, j] = g[min(i, j), max(i, j)] * (np.sqrt(2) if i == j else 1)
    return w


def antisymmetric(g):
    n = len(g)
    w = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            w[i, j], w[j, i] = g[i, j], -g[i, j]
    return w


def orthogonal(g):
    m, n = g.shape
    if m < n:
        return orthogonal(g.T).T
    q = np.eye(m)
    signs = np.ones(m)
    for k in range(n):
        x = np.zeros(m)
        x[k:] = g[k:, k]
        sign = 1.0 if x[k] >= 0 else -1.0
        u = x.copy()
        u[k] += sign * np.linalg.norm(x)
        if not u.any():
            u[k] = 1.0
        q = q - np.outer(q @ u, 2 * u / (u @ u))
        signs[k] = -sign
    return (q * signs)[:, :n]


def random(g):
    return g.astype(np.float64)


def unit(family, g, fan_in):
    """The matrix at gain 1."""
    w = globals()[family](g.astype(np.float64))
    return w if family == "orthogonal" else w / np.sqrt(fan_in)


def spectral_norm(w):
    return np.linalg.norm(w.astype(np.float64), 2)


def spectral_radius(w):
    return np.abs(np.linalg.eigvals(w.astype(np.float64))).max()
