r"""The linear DEQ :math:`z = Wz + x` with :math:`|x|^2 = n`.

The length is :math:`q = |z|^2 / n`; :math:`V` is the squared gain. Sections are those of
``docs/theory.md``, where every formula is derived or cited.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import hyp2f1
from scipy.stats import chi2, norm

from deq_init import families
from deq_init import scale as scales
from deq_init.errors import ScaleError

_GRID = 4000


def length_mean(family: str, gain: float, n: int | None = None) -> float:
    r"""Return the mean of the length q of the linear DEQ's fixed point.

    Random and orthogonal: :math:`1/(1-V)`. GOE: :math:`2/(\kappa(1+\kappa))` with
    :math:`\kappa = \sqrt{1-4V}`. Antisymmetric: :math:`(\sqrt{1+4V}-1)/(2V)`. It is also the mean
    of :math:`|(I-W)^{-T}u|^2/|u|^2` for a u drawn independently of W, the amplification of
    gradients.

    Parameters
    ----------
    family : {"random", "orthogonal", "goe", "antisymmetric"}
        The law of W.
    gain : float
        Below the radius edge: gain < 1, for GOE gain < 1/2. Antisymmetric: any gain, since I - W is
        never singular; plain iteration converges below 1/2.
    n : int, optional
        Size of W. With it, the 1/n correction is added (for orthogonal the result is then exact);
        without it, the limit of large n is returned.

    Raises
    ------
    FamilyError, ScaleError
        For an unknown family, or a gain outside the range.

    Notes
    -----
    For random and GOE the mean at finite n is infinite, by an event of exponentially small
    probability below the edge; the value is the mean without it. Sections A.2, A.4 and A.5.

    Examples
    --------
    >>> round(length_mean("random", 0.5), 4)
    1.3333
    >>> round(length_mean("orthogonal", 0.5, n=200), 5)
    1.33778
    """
    v = _squared_gain(family, gain)
    mean = _moments(family, v)[0]
    if n is None:
        return mean
    if family == "random":
        return mean * (1 + 2 * v / (n * (1 - v) ** 2))
    if family == "orthogonal":
        return mean * (1 + 2 * v / (n * (1 - v)))
    if family == "antisymmetric":
        return mean + (1 - (1 + 4 * v) ** -0.5) / (2 * n)
    epsilon = 1 - 4 * v
    return mean + ((1 + 4 * v) / (2 * epsilon**2) - epsilon**-1.5 / 2) / n


def input_gradient_mean(family: str, gain: float, n: int | None = None) -> float:
    r"""Return the mean of :math:`|\partial L/\partial x|^2/n` for :math:`L = \frac12 |z|^2`.

    It is :math:`\tau(M^2)` with M of :func:`length_relative_variance`. Random:
    :math:`(1-V)^{-4}`. Orthogonal: :math:`(1+V)/(1-V)^3`. GOE: :math:`(1-4V)^{-5/2}`.
    Antisymmetric: :math:`(1+4V)^{-1/2}`.

    Parameters
    ----------
    family, gain
        As in :func:`length_mean`.
    n : int, optional
        Size of W. With it, the 1/n correction is added; none is known for random.

    Raises
    ------
    FamilyError, ScaleError
        As :func:`length_mean`; ScaleError for n with the random family.

    Notes
    -----
    Sections A.1, A.2 and A.5.

    Examples
    --------
    >>> round(input_gradient_mean("goe", 0.25), 4)
    2.0528
    """
    v = _squared_gain(family, gain)
    mean = _moments(family, v)[1]
    if n is None:
        return mean
    if family == "random":
        raise ScaleError(
            f"expected no n for the random family, received n={n!r}. Its 1/n correction is not "
            "known here: leave out n for the limit."
        )
    if family == "orthogonal":
        r = math.sqrt(v)
        return mean + (((1 - r) ** -4 + (1 + r) ** -4) / 2 - mean) / n
    if family == "antisymmetric":
        u = 1 + 4 * v
        return mean + (1 - (1 + u) / 2 * u**-1.5) / (2 * n)
    s, u = 2 * math.sqrt(v), 1 - 4 * v
    ends = ((1 - s) ** -4 + (1 + s) ** -4) / 4
    return mean + (ends - (5 * u**-3.5 - 3 * u**-2.5) / 4) / n


def linear_relative_variance(family: str, gain: float, n: int) -> float:
    """Return Var(q) / E(q)² of the linear DEQ: see :func:`length_relative_variance`."""
    m2, m4 = _moments(family, _squared_gain(family, gain))
    return 2 / (n + 2) * (m4 / m2**2 - 1)


def orthogonal_length_variance(gain: float, n: int) -> float:
    r"""Return Var(q) / E(q)² for the orthogonal family, exact for every n.

    With :math:`k = n/2` and :math:`F_j = (1-V)^{-2j-1}\,{}_2F_1(-j, k-j-1; k; V)`,
    :math:`E q^{j+1} = \frac12 F_j + \frac12 (1-V) F_{j+1}`. Section A.4.

    Examples
    --------
    >>> round(200 * orthogonal_length_variance(0.5, 200), 5)
    1.33539
    """
    v = _squared_gain("orthogonal", gain)
    half = n / 2
    f = [(1 - v) ** (-2 * j - 1) * float(hyp2f1(-j, half - j - 1, half, v)) for j in range(3)]
    first, second = ((f[j] + (1 - v) * f[j + 1]) / 2 for j in range(2))
    return second / first**2 - 1


def length_quantile(family: str, gain: float, n: int, p: ArrayLike) -> NDArray[np.float64]:
    r"""Return quantiles of the exact finite-n law of the length q.

    Random, up to an event of exponentially small probability (section A.3):
    :math:`q = (\sqrt{1-w} + \sqrt{V/n}\,\eta)^{-2}` with :math:`w \sim \frac Vn \chi^2_{n-1}` and
    :math:`\eta \sim N(0, 1)`. Orthogonal (section A.4): :math:`q = 1/(1 - 2rt + r^2)` with
    :math:`r = \sqrt V` and density
    :math:`\propto (1-t^2)^{(n-3)/2} (1-rt) (1-2rt+r^2)^{-n/2}` on [-1, 1].

    Parameters
    ----------
    family : {"random", "orthogonal"}
        For GOE no exact law is known.
    gain : float
        Below 1.
    n : int
        Size of W, at least 3.
    p : array_like
        Probabilities in (0, 1).

    Returns
    -------
    numpy.ndarray, float64, the shape of ``p``

    Examples
    --------
    >>> length_quantile("orthogonal", 0.5, 200, [0.5]).round(2)
    array([1.33])
    """
    v = _squared_gain(family, gain)
    laws: dict[str, Callable[[float, int, NDArray[np.float64]], NDArray[np.float64]]] = {
        "random": _random_quantile,
        "orthogonal": _orthogonal_quantile,
    }
    if family not in laws:
        raise ScaleError(
            f"expected the random or orthogonal family, received {family!r}. The finite-n law of "
            "the length is not known for it: use length_mean and length_relative_variance."
        )
    probabilities = np.asarray(p, dtype=np.float64)
    if n < 3 or not ((probabilities > 0) & (probabilities < 1)).all():
        raise ScaleError(
            f"expected n >= 3 and probabilities between 0 and 1, received n={n} and {p!r}. "
            "The ends of the law are not quantiles."
        )
    if v == 0:
        return np.ones(probabilities.shape)
    return laws[family](v, n, probabilities.ravel()).reshape(probabilities.shape)


def _random_quantile(v: float, n: int, p: NDArray[np.float64]) -> NDArray[np.float64]:
    levels = (np.arange(_GRID) + 0.5) / _GRID
    w = v / n * chi2.ppf(levels, n - 1)
    root = np.sqrt(1 - w[w < 1])

    def excess(u: float, level: float) -> float:
        return float(norm.cdf((root - u) / math.sqrt(v / n)).mean()) - level

    # q <= t exactly when u >= t**-0.5.
    width = 12 * math.sqrt(v / n)
    bounds = (root.min() - width, root.max() + width)
    return np.array([brentq(excess, *bounds, args=(level,)) ** -2.0 for level in p])


def _orthogonal_quantile(v: float, n: int, p: NDArray[np.float64]) -> NDArray[np.float64]:
    r = math.sqrt(v)
    angle = np.linspace(0, math.pi, 50 * _GRID + 1)[1:-1]
    t = np.cos(angle)
    inverse_q = 1 - 2 * r * t + v
    # With t = cos(angle), dt adds one power of sin(angle).
    log_density = (n - 2) * np.log(np.sin(angle)) + np.log1p(-r * t) - n / 2 * np.log(inverse_q)
    upper = np.cumsum(np.exp(log_density - log_density.max()))
    q: NDArray[np.float64] = np.interp(1 - p, upper / upper[-1], 1 / inverse_q)
    return q


def _moments(family: str, v: float) -> tuple[float, float]:
    """Return the limits of the means of M and M², M = ((I-W)(I-W)ᵀ)⁻¹: sections A.2 and A.5."""
    if family == "random":
        return 1 / (1 - v), (1 - v) ** -4
    if family == "orthogonal":
        return 1 / (1 - v), (1 + v) / (1 - v) ** 3
    if family == "antisymmetric":
        root = math.sqrt(1 + 4 * v)
        return 2 / (1 + root), 1 / root
    kappa = math.sqrt(1 - 4 * v)
    return 2 / (kappa * (1 + kappa)), kappa**-5


def _squared_gain(family: str, gain: float) -> float:
    law = families.get(family)
    edge = math.inf if law.symmetry == -1 else 1 / law.radius_edge
    value = scales.require_scale("gain", gain).value
    if not value < edge:
        raise ScaleError(
            f"expected 0 <= gain < {edge} for the {family} family, received {gain!r}. "
            "At larger gains the spectral radius reaches 1 and the linear DEQ has no stable "
            "fixed point."
        )
    return value**2
