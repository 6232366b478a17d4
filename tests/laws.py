"""Exact laws of the families, as functions from sampled matrices to a p-value.

Each takes matrices W of shape (k, n, n) (or (k, m, n)) at gain 1 that act as W z. Two-sided
p-values from the exact law at that size, save where a docstring says otherwise.
"""

import numpy as np
import scipy.stats

FALSE_ALARM = 1e-6


def _two_sided(cdf, survival):
    return min(1.0, 2 * min(cdf, survival))


def _chi_square(statistic, freedom):
    law = scipy.stats.chi2(freedom)
    return _two_sided(law.cdf(statistic), law.sf(statistic))


def _fair_coins(positive, count):
    return scipy.stats.binomtest(int(positive), int(count), 0.5).pvalue


def _directions(n):
    """Two unit vectors with no special relation to the axes."""
    a = np.cos(np.arange(n) + 0.3)
    b = np.sin(1.7 * np.arange(n) + 1)
    return a / np.linalg.norm(a), b / np.linalg.norm(b)


def random_entries(w):
    """The sum of fan_in · W² is chi-square with as many degrees of freedom as entries."""
    return _chi_square((w**2).sum() * w.shape[-1], w.size)


def random_entries_are_normal(w):
    """The entries times sqrt(fan_in) are standard normal: Kolmogorov-Smirnov."""
    return scipy.stats.kstest(w.ravel() * np.sqrt(w.shape[-1]), "norm").pvalue


def random_quadratic_form(w):
    """aᵀWb for fixed unit vectors is N(0, 1/fan_in), independent over matrices."""
    a, _ = _directions(w.shape[-2])
    _, b = _directions(w.shape[-1])
    form = np.einsum("i,kij,j->k", a, w, b)
    return _chi_square((form**2).sum() * w.shape[-1], len(w))


def goe_diagonal(w):
    """The sum of n/2 · W_ii² is chi-square."""
    diagonal = np.diagonal(w, axis1=1, axis2=2)
    return _chi_square((diagonal**2).sum() * w.shape[-1] / 2, diagonal.size)


def off_diagonal(w):
    """The sum of n · W_ij² over i < j is chi-square, for GOE and antisymmetric matrices."""
    i, j = np.triu_indices(w.shape[-1], 1)
    above = w[:, i, j]
    return _chi_square((above**2).sum() * w.shape[-1], above.size)


def goe_quadratic_form(w):
    """aᵀWa for a fixed unit vector is N(0, 2/n), independent over matrices."""
    a, _ = _directions(w.shape[-1])
    form = np.einsum("i,kij,j->k", a, w, a)
    return _chi_square((form**2).sum() * w.shape[-1] / 2, len(w))


def antisymmetric_form(w):
    """aᵀWb for unit vectors is N(0, (1 - (aᵀb)²)/n), independent over matrices."""
    a, b = _directions(w.shape[-1])
    form = np.einsum("i,kij,j->k", a, w, b)
    return _chi_square((form**2).sum() * w.shape[-1] / (1 - (a @ b) ** 2), len(w))


def haar_diagonal_signs(q):
    """The signs of the diagonal entries of all matrices are independent fair coins."""
    diagonal = np.diagonal(q, axis1=1, axis2=2)
    return _fair_coins((diagonal > 0).sum(), diagonal.size)


def haar_determinants(q):
    """Determinants are +1 or -1 with probability one half."""
    return _fair_coins((np.linalg.slogdet(q)[0] > 0).sum(), len(q))


def haar_traces(q):
    """tr Q has the moments of N(0, 1) up to order n (Diaconis & Shahshahani 1994).

    Hence the sum of K traces is N(0, K): an approximation that is off by less than any power of n.
    """
    total = np.trace(q, axis1=1, axis2=2).sum() / np.sqrt(len(q))
    return 2 * scipy.stats.norm.sf(abs(total))


def haar_beta(q):
    """(aᵀQb)² is Beta(1/2, (m-1)/2) for a fixed pair of unit vectors: Kolmogorov-Smirnov."""
    m, n = q.shape[-2:]
    a, _ = _directions(m)
    _, b = _directions(n)
    form = np.einsum("i,kij,j->k", a, q, b)
    return scipy.stats.kstest(form**2, scipy.stats.beta(0.5, (max(m, n) - 1) / 2).cdf).pvalue
