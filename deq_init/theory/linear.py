r"""The linear DEQ :math:`z = Wz + x` with :math:`|x|^2 = n`.

The length is :math:`q = |z|^2 / n`; :math:`V` is the squared gain. Sections are those of
``docs/theory.md``, where every formula is derived or cited.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.special import hyp2f1

from deq_init import scale as scales
from deq_init.errors import ScaleError
from deq_init.theory.arguments import by_family, require_size

SMALLEST = 8
"""The least n for expansions in 1/n; their error is of order 1/n², small from n = 50 or so."""


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
        Size of W, at least 8. With it, the 1/n correction is added; what is left out is of order
        1/n², so use it from n = 50 or so. For orthogonal the result is exact at any n >= 1. Without
        n, the limit of large n is returned.

    Raises
    ------
    FamilyError, ScaleError
        For an unknown family, a gain outside the range, or an n that is no such integer.

    Notes
    -----
    For random and GOE the mean at finite n is infinite, since q is proportional to the inverse
    square of a number whose density at 0 is not 0. Below the edge that density falls exponentially
    in n, and the value is the mean without it. Near the edge, and at small n, compare medians:
    :func:`length_quantile`. Sections A.2 to A.5.

    Examples
    --------
    >>> round(length_mean("random", 0.5), 4)
    1.3333
    >>> round(length_mean("orthogonal", 0.5, n=200), 5)
    1.33778
    """
    v = squared_gain(family, gain)
    mean = _moments(family, v)[0]
    if n is None:
        return mean
    least, correction = by_family(_MEAN_CORRECTIONS, family)
    return mean + correction(v) / require_size(n, least)


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
        As in :func:`length_mean`: with it, the 1/n correction is added; none is known for random.

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
    v = squared_gain(family, gain)
    mean = _moments(family, v)[1]
    if n is None:
        return mean
    if family not in _GRADIENT_CORRECTIONS:
        raise ScaleError(
            f"expected no n for the {family} family, received n={n!r}. Its 1/n correction is not "
            "known here: leave out n for the limit."
        )
    least, correction = _GRADIENT_CORRECTIONS[family]
    return mean + correction(v) / require_size(n, least)


def linear_relative_variance(family: str, gain: float, n: int) -> float:
    """Return Var(q) / E(q)² of the linear DEQ: see :func:`length_relative_variance`."""
    m2, m4 = _moments(family, squared_gain(family, gain))
    return 2 / (require_size(n, SMALLEST) + 2) * (m4 / m2**2 - 1)


def orthogonal_length_variance(gain: float, n: int) -> float:
    r"""Return Var(q) / E(q)² for the orthogonal family, exact for every n.

    With :math:`k = n/2` and :math:`F_j = (1-V)^{-2j-1}\,{}_2F_1(-j, k-j-1; k; V)`,
    :math:`E q^{j+1} = \frac12 F_j + \frac12 (1-V) F_{j+1}`. Section A.4.

    Examples
    --------
    >>> round(200 * orthogonal_length_variance(0.5, 200), 5)
    1.33539
    """
    v = squared_gain("orthogonal", gain)
    half = require_size(n) / 2
    f = [(1 - v) ** (-2 * j - 1) * float(hyp2f1(-j, half - j - 1, half, v)) for j in range(3)]
    first, second = ((f[j] + (1 - v) * f[j + 1]) / 2 for j in range(2))
    return second / first**2 - 1


# Limits of the means of M and M², M = ((I-W)(I-W)ᵀ)⁻¹: sections A.2 and A.5. κ = √(1 - 4V).


def _random_moments(v: float) -> tuple[float, float]:
    return 1 / (1 - v), (1 - v) ** -4


def _orthogonal_moments(v: float) -> tuple[float, float]:
    return 1 / (1 - v), (1 + v) / (1 - v) ** 3


def _goe_moments(v: float) -> tuple[float, float]:
    kappa = math.sqrt(1 - 4 * v)
    return 2 / (kappa * (1 + kappa)), kappa**-5


def _antisymmetric_moments(v: float) -> tuple[float, float]:
    root = math.sqrt(1 + 4 * v)
    return 2 / (1 + root), 1 / root


_MOMENTS: dict[str, Callable[[float], tuple[float, float]]] = {
    "random": _random_moments,
    "orthogonal": _orthogonal_moments,
    "goe": _goe_moments,
    "antisymmetric": _antisymmetric_moments,
}


def _moments(family: str, v: float) -> tuple[float, float]:
    return by_family(_MOMENTS, family, "length")(v)


# Terms in 1/n of these means, with the least n at which they are used: those of orthogonal W are
# exact at any.


def _goe_mean_correction(v: float) -> float:
    u = 1 - 4 * v
    return (1 + 4 * v) / (2 * u**2) - u**-1.5 / 2


def _orthogonal_gradient_correction(v: float) -> float:
    r = math.sqrt(v)
    return ((1 - r) ** -4 + (1 + r) ** -4) / 2 - _orthogonal_moments(v)[1]


def _goe_gradient_correction(v: float) -> float:
    s, u = 2 * math.sqrt(v), 1 - 4 * v
    ends = ((1 - s) ** -4 + (1 + s) ** -4) / 4
    return ends - (5 * u**-3.5 - 3 * u**-2.5) / 4


def _antisymmetric_gradient_correction(v: float) -> float:
    u = 1 + 4 * v
    return (1 - (1 + u) / 2 * u**-1.5) / 2


_Correction = tuple[int, Callable[[float], float]]
_MEAN_CORRECTIONS: dict[str, _Correction] = {
    "random": (SMALLEST, lambda v: 2 * v / (1 - v) ** 3),
    "orthogonal": (1, lambda v: 2 * v / (1 - v) ** 2),
    "goe": (SMALLEST, _goe_mean_correction),
    "antisymmetric": (SMALLEST, lambda v: (1 - (1 + 4 * v) ** -0.5) / 2),
}
_GRADIENT_CORRECTIONS: dict[str, _Correction] = {
    "orthogonal": (1, _orthogonal_gradient_correction),
    "goe": (SMALLEST, _goe_gradient_correction),
    "antisymmetric": (SMALLEST, _antisymmetric_gradient_correction),
}
# Gains below which the linear DEQ has a fixed point.
_EDGES = {"random": 1.0, "orthogonal": 1.0, "goe": 0.5, "antisymmetric": math.inf}


def squared_gain(family: str, gain: float) -> float:
    """Return V, or raise FamilyError or ScaleError."""
    edge = by_family(_EDGES, family, "linear DEQ")
    value = scales.require_scale("gain", gain).value
    if not value < edge:
        raise ScaleError(
            f"expected 0 <= gain < {edge} for the {family} family, received {gain!r}. "
            "At larger gains the spectral radius reaches 1 and the linear DEQ has no stable "
            "fixed point."
        )
    return value**2
