r"""The law of the length of the linear DEQ's fixed point at finite n.

Sections are those of ``docs/theory.md``, where both laws are derived.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import gammaln, ndtr

from deq_init.errors import ScaleError
from deq_init.theory.arguments import by_family, require_size
from deq_init.theory.linear import squared_gain

_NODES = 200
_FINE = 20_000
_GRID = 200_000

Vector = NDArray[np.float64]


def length_quantile(family: str, gain: float, n: int, p: ArrayLike) -> Vector:
    r"""Return quantiles of the exact finite-n law of the length q.

    Random (section A.3): :math:`q = (\sqrt{1-w} + \sqrt{V/n}\,\eta)^{-2}` with
    :math:`\eta \sim N(0, 1)` and, on [0, 1], a w of density
    :math:`\propto w^{(n-3)/2} e^{-nw/2V} K(\sqrt{1-w}) / \sqrt{1-w}`, where K is a mean absolute
    determinant. Orthogonal (section A.4): :math:`q = 1/(1 - 2rt + r^2)` with :math:`r = \sqrt V`
    and density :math:`\propto (1-t^2)^{(n-3)/2} (1-rt) (1-2rt+r^2)^{-n/2}` on [-1, 1].

    Parameters
    ----------
    family : {"random", "orthogonal"}
        For GOE and antisymmetric no exact law is known here.
    gain : float
        Below 1.
    n : int
        Size of W, at least 3.
    p : array_like
        Probabilities in (0, 1).

    Returns
    -------
    numpy.ndarray, float64, the shape of ``p``

    Raises
    ------
    FamilyError
        For another family.
    ScaleError
        For a gain, n or p outside of these ranges.

    Notes
    -----
    Exact for every n and gain, up to the edge, to a relative 1e-5 for p up to 0.999.

    Examples
    --------
    >>> length_quantile("orthogonal", 0.5, 200, [0.5]).round(2)
    array([1.33])
    >>> length_quantile("random", 0.95, 200, [0.5, 0.9]).round(1)
    array([ 9.4, 75.1])
    """
    quantile = by_family(_QUANTILES, family, "finite-n law of the length")
    v = squared_gain(family, gain)
    n = require_size(n, 3)
    probabilities = np.asarray(p, dtype=np.float64)
    if not ((probabilities > 0) & (probabilities < 1)).all():
        raise ScaleError(
            f"expected probabilities between 0 and 1, received {p!r}. The ends of the law are not "
            "quantiles."
        )
    if v == 0:
        return np.ones(probabilities.shape)
    return quantile(v, n, probabilities.ravel()).reshape(probabilities.shape)


def _random_quantile(v: float, n: int, p: Vector) -> Vector:
    deviation = math.sqrt(v / n)
    angle, weight = _angles(v, n, n - 2)
    cosine = np.cos(angle)
    weight = weight * _mean_determinants(v, n, cosine)
    weight /= weight.sum()

    def excess(root: float, level: float) -> float:
        # q > t exactly when |cosine + deviation · η| < t**-0.5.
        inside = ndtr((root - cosine) / deviation) - ndtr((-root - cosine) / deviation)
        return float(weight @ inside) - (1 - level)

    high = 1 + 12 * deviation
    return np.array([brentq(excess, 0, high, args=(level,), xtol=1e-15) ** -2.0 for level in p])


def _mean_determinants(v: float, n: int, t: Vector) -> Vector:
    """Return K(t) = E |det(diag(1, ..., 1, t) - G)| up to a factor, for 0 <= t <= 1.

    G has n - 1 rows and columns of independent N(0, V/n). Section A.3.
    """
    deviation, m = math.sqrt(v / n), n - 2
    j = np.arange(m)
    log_p = j * math.log(n / v) - gammaln(j + 1)
    p = np.exp(log_p - log_p.max())
    angle, weight = _angles(v, n, n - 3)
    y = np.cos(angle)
    weight = weight * (v / n * float((m - j) @ p / p.sum()) + y * y)
    a = t[:, None] * y / deviation
    folded = 2 * np.exp(-a * a / 2) / math.sqrt(2 * math.pi) + a * (2 * ndtr(a) - 1)
    means: Vector = folded @ weight
    return means


def _angles(v: float, n: int, power: int) -> tuple[Vector, Vector]:
    """Return nodes in [0, π/2] and weights for the density sin^power(a) exp(-n sin²(a) / 2V)."""

    def log_density(angle: Vector) -> Vector:
        sine = np.sin(angle)
        logarithm: Vector = power * np.log(sine) - n * sine * sine / (2 * v)
        return logarithm

    step = math.pi / 2 / _FINE
    grid = np.linspace(step / 2, math.pi / 2 - step / 2, _FINE, dtype=np.float64)
    logarithm = log_density(grid)
    reached = np.flatnonzero(logarithm > logarithm.max() - 50)
    low, high = grid[reached[0]] - step / 2, grid[reached[-1]] + step / 2
    nodes: Vector = low + (high - low) * (np.arange(_NODES) + 0.5) / _NODES
    return nodes, np.exp(log_density(nodes) - logarithm.max())


def _orthogonal_quantile(v: float, n: int, p: Vector) -> Vector:
    r = math.sqrt(v)
    angle = np.linspace(0, math.pi, _GRID + 1)[1:-1]
    t = np.cos(angle)
    inverse_q = 1 - 2 * r * t + v
    # With t = cos(angle), dt adds one power of sin(angle).
    log_density = (n - 2) * np.log(np.sin(angle)) + np.log1p(-r * t) - n / 2 * np.log(inverse_q)
    upper = np.cumsum(np.exp(log_density - log_density.max()))
    q: Vector = np.interp(1 - p, upper / upper[-1], 1 / inverse_q)
    return q


_QUANTILES: dict[str, Callable[[float, int, Vector], Vector]] = {
    "random": _random_quantile,
    "orthogonal": _orthogonal_quantile,
}
