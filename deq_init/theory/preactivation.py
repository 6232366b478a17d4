"""The law of a preactivation, as quadrature, and the Jacobian's limits under it.

Sections are those of ``docs/theory.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from deq_init.theory.activations import Activation, Function, Vector

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_LARGEST = 8  # quantiles that stand for the law of a largest slope
_REACH = 9.0  # standard deviations integrated over: the rest has weight 2e-19


@dataclass(frozen=True)
class Law:
    r"""The law of a preactivation h, as nodes and weights.

    :math:`h = G + c\,\phi(h)` with G normal: c is 0 without reaction.

    Attributes
    ----------
    h, value, slope, weight : numpy.ndarray, float64
        Nodes, :math:`\phi(h)`, :math:`\phi'(h)`, and weights that sum to 1.
    reaction : float
        c.
    """

    h: Vector
    value: Vector
    slope: Vector
    weight: Vector
    reaction: float

    def mean(self, values: Vector) -> float:
        """Return the expectation of what has these values at the nodes."""
        return float(self.weight @ values)

    @property
    def response(self) -> float:
        r"""The mean of :math:`\partial\phi(h)/\partial G = \phi'/(1 - c\phi')`."""
        return self.mean(self.slope / (1 - self.reaction * self.slope))

    @property
    def squared_response(self) -> float:
        r"""The mean of :math:`\phi'^2/(1 - c\phi')^2`."""
        return self.mean((self.slope / (1 - self.reaction * self.slope)) ** 2)

    @property
    def squared_resolvent(self) -> float:
        r"""The mean of :math:`(1 - c\phi')^{-2}`."""
        return self.mean((1 - self.reaction * self.slope) ** -2)


def law_of(activation: Activation, deviation: float, reaction: float = 0.0) -> Law:
    """Return the law of h for a normal G of this standard deviation.

    Gauss-Legendre panels of 12 nodes: relative error of means near 1e-12 if the activation varies
    on the scale of 1 or around its special points; up to 1e-3 across a jump of slope elsewhere.

    Parameters
    ----------
    activation : Activation
        φ.
    deviation : float
        Not negative.
    reaction : float
        c, with c φ' < 1 everywhere.
    """
    if deviation == 0:
        h, weight = np.array([0.0]), np.array([1.0])
        return Law(h, _at(activation.function, h), _at(activation.derivative, h), weight, 0.0)
    edges = _edges(activation, deviation, reaction)
    half = np.diff(edges) / 2
    h = (edges[:-1, None] + half[:, None] * (1 + _NODES)).ravel()
    value, slope = _at(activation.function, h), _at(activation.derivative, h)
    g = (h - reaction * value) / deviation
    weight = np.exp(-g * g / 2) * (1 - reaction * slope) * (half[:, None] * _WEIGHTS).ravel()
    return Law(h, value, slope, weight / weight.sum(), reaction)


def _edges(activation: Activation, deviation: float, reaction: float) -> Vector:
    """Return panel ends: on the scale of the law, on that of φ, and around φ's special points."""
    low, high = (_end(activation, deviation, reaction, side) for side in (-1.0, 1.0))
    grades = 2.0 ** -np.arange(1, 9)
    pieces: list[NDArray[Any]] = [np.linspace(low, 0, 16), np.linspace(0, high, 16)]
    features = np.concatenate([np.arange(0.5, 4.5, 0.5), 4 * 1.5 ** np.arange(1, 30)])
    pieces += [features, -features]
    for point in activation.special:
        pieces += [point + grades, point - grades, np.array([point])]
    edges = np.unique(np.concatenate(pieces))
    edges = edges[(edges >= low) & (edges <= high)]
    return edges[np.append(True, np.diff(edges) > 1e-9 * (high - low))]


def _end(activation: Activation, deviation: float, reaction: float, side: float) -> float:
    """Return an h on one side where |G| = |h - c φ(h)| is out of reach."""
    h = np.array([side * _REACH * deviation])
    while reaction > 0 and side * (h - reaction * _at(activation.function, h))[0] < (
        _REACH * deviation
    ):
        h = 1.2 * h
    return float(h[0])


def _at(function: Function, h: Vector) -> Vector:
    # A formula may overflow in a branch that it does not take.
    with np.errstate(all="ignore"):
        return np.asarray(function(h), dtype=np.float64)


def norm_factor(law: Law, steepest: float) -> float:
    r"""Return the limit of the spectral norm of diag(φ'(h)) W at gain 1, W not orthogonal.

    With :math:`T = \phi'^2`, the root of
    :math:`\min_t \frac1t + E\frac{T}{1 - tT}` over :math:`0 < t < 1/\sup T` (section B.2).

    Parameters
    ----------
    law : Law
        Of h.
    steepest : float
        Supremum of \|φ'\|.
    """
    # A slope that is a difference may exceed its supremum by rounding.
    steepest = max(steepest, float(np.abs(law.slope).max()))
    return _free_norm(np.abs(law.slope), law.weight, steepest)


def norm_factor_at(law: Law, n: int, isometric: bool) -> float:
    r"""Return the norm of diag(φ'(h)) W at gain 1, up to its bias, where h has n entries.

    Given M, the largest of n independent \|φ'(h)\|, the others have the law of \|φ'\| given
    \|φ'\| <= M. The norm is that of :func:`norm_factor` with M for the supremum and this law for
    h, or M if W is orthogonal; its mean over M is taken at quantiles of M (section B.2).

    Parameters
    ----------
    law : Law
        Of h.
    n : int
        Entries of h.
    isometric : bool
        Whether W is orthogonal.
    """
    steepness = np.abs(law.slope)
    order = np.argsort(steepness)
    order = order[law.weight[order] > 0]
    steepness, weight = steepness[order], law.weight[order]
    below = np.cumsum(weight)
    levels = ((np.arange(_LARGEST) + 0.5) / _LARGEST) ** (1 / n)
    largest = np.interp(levels, below - weight / 2, steepness)
    if isometric:
        return float(largest.mean())
    # Shares of weights, rather than nodes that are in or out, keep the norm continuous.
    shares = np.clip((levels[:, None] - below) / weight + 1, 0, 1)
    norms = [
        _free_norm(np.minimum(steepness, most), weight * share / (weight @ share), most)
        for most, share in zip(largest.tolist(), shares, strict=True)
    ]
    return float(np.mean(norms))


def _free_norm(steepness: Vector, weight: Vector, most: float) -> float:
    """Return the root of min over 0 < t < 1/most² of 1/t + E[T/(1 - tT)], T = steepness²."""
    if most == 0:
        return 0.0
    t = (steepness / most) ** 2

    def excess(s: float) -> float:
        return float(weight @ (s * t / (1 - s * t)) ** 2) - 1

    s = 1 - 1e-12
    if excess(s) > 0:
        s = float(brentq(excess, 0.0, s, xtol=1e-15))
    return most * (1 / s + float(weight @ (t / (1 - s * t)))) ** 0.5


def symmetric_radius_factor(law: Law, slopes: tuple[float, float]) -> float:
    r"""Return the limit of the spectral radius of diag(φ'(h)) W at gain 1, W GOE or antisymmetric.

    With :math:`D = \phi'`, or -φ' if the mean of φ' is negative, the root of
    :math:`\min_t \frac{E[D]}{t} + E\frac{D^2}{1 - tD}` over :math:`0 < t < 1/\sup D`, a convex
    function (section B.2).

    Parameters
    ----------
    law : Law
        Of h.
    slopes : tuple of float
        Infimum and supremum of φ'.
    """
    d, top = law.slope, slopes[1]
    mean = law.mean(d)
    if mean < 0 or (mean == 0 and law.mean(d**3) < 0):
        d, top, mean = -d, -slopes[0], -mean
    top = max(top, float(d.max()))
    if top <= 0:
        return 0.0
    d, mean = d / top, mean / top

    def excess(t: float) -> float:
        return t * t * law.mean(d**3 / (1 - t * d) ** 2) - mean

    if mean <= 1e-14:
        return top * law.mean(d * d) ** 0.5
    t = 1 - 1e-12
    if excess(t) > 0:
        t = float(brentq(excess, 0.0, t, xtol=1e-15))
    return top * (mean / t + law.mean(d * d / (1 - t * d))) ** 0.5
