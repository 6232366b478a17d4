"""Limits of the spectra of W itself, for plots. Sections are those of ``docs/theory.md``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deq_init import scale as scales
from deq_init.errors import FamilyError, ScaleError
from deq_init.theory.arguments import by_family


def eigenvalue_density(family: str, gain: float, at: ArrayLike) -> NDArray[np.float64]:
    r"""Return the limit of the density of W's eigenvalues, in the coordinate that they vary along.

    ============= =============================== ==========================================
    family        ``at``                          density
    ============= =============================== ==========================================
    random        complex λ, per unit of area     :math:`1/(\pi V)` for :math:`|λ|^2 \le V`
    orthogonal    angle of λ, in radians          :math:`1/(2\pi)`; :math:`|λ| = \sqrt V`
    goe           λ, which is real                :math:`\sqrt{4V - λ^2}/(2\pi V)`
    antisymmetric imaginary part of λ; real 0     :math:`\sqrt{4V - λ^2}/(2\pi V)`
    ============= =============================== ==========================================

    Parameters
    ----------
    family : str
        The law of W.
    gain : float
        Square root of V, positive.
    at : array_like
        Complex for random, otherwise real.

    Returns
    -------
    numpy.ndarray, float64, the shape of ``at``

    Raises
    ------
    FamilyError, ScaleError
        For an unknown family, a gain that is not positive, or points that are not of that kind.

    Notes
    -----
    Section 0.

    Examples
    --------
    >>> eigenvalue_density("goe", 0.5, [0.0, 2.0]).round(4)
    array([0.6366, 0.    ])
    """
    dtype, density = by_family(_EIGENVALUES, family, "eigenvalue density")
    return density(_variance(gain), _points(at, dtype))


def singular_value_density(family: str, gain: float, at: ArrayLike) -> NDArray[np.float64]:
    r"""Return the limit of the density of W's singular values: the quarter circle.

    :math:`\sqrt{4V - s^2}/(\pi V)` on :math:`0 \le s \le 2\sqrt V`, for square random, GOE and
    antisymmetric W.

    Parameters
    ----------
    family : {"random", "goe", "antisymmetric"}
        The law of W. Orthogonal W have no density: every singular value is the gain.
    gain : float
        Square root of V, positive.
    at : array_like
        Singular values.

    Returns
    -------
    numpy.ndarray, float64, the shape of ``at``

    Raises
    ------
    FamilyError, ScaleError
        For another family, or a gain that is not positive.

    Notes
    -----
    Section 0.

    Examples
    --------
    >>> singular_value_density("random", 0.5, [0.0, 2.0]).round(4)
    array([1.2732, 0.    ])
    """
    if family == "orthogonal":
        raise FamilyError(
            f"expected a family whose singular values vary, received {family!r}. They all equal "
            "the gain: draw a line there."
        )
    density = by_family(_SINGULAR_VALUES, family, "singular-value density")
    return density(_variance(gain), _points(at, float))


def _semicircle(v: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    density: NDArray[np.float64] = np.sqrt(np.maximum(4 * v - x * x, 0)) / (2 * math.pi * v)
    return density


def _circle(v: float, angle: NDArray[Any]) -> NDArray[np.float64]:
    return np.full(angle.shape, 1 / (2 * math.pi))


def _disc(v: float, points: NDArray[Any]) -> NDArray[np.float64]:
    density: NDArray[np.float64] = (np.abs(points) ** 2 <= v) / (math.pi * v)
    return density


def _quarter_circle(v: float, s: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(s >= 0, 2 * _semicircle(v, s), 0.0)


_Density = Callable[[float, NDArray[Any]], NDArray[np.float64]]
_EIGENVALUES: dict[str, tuple[type, _Density]] = {
    "random": (complex, _disc),
    "orthogonal": (float, _circle),
    "goe": (float, _semicircle),
    "antisymmetric": (float, _semicircle),
}
_SINGULAR_VALUES: dict[str, _Density] = dict.fromkeys(
    ("random", "goe", "antisymmetric"), _quarter_circle
)


def _variance(gain: float) -> float:
    value = scales.require_scale("gain", gain).value
    if value == 0:
        raise ScaleError(
            "expected a positive gain, received 0. All eigenvalues are 0 there: no density."
        )
    return value**2


def _points(at: ArrayLike, dtype: type) -> NDArray[np.float64]:
    points = np.asarray(at)
    if points.dtype.kind not in ("bif" if dtype is float else "bifc"):
        raise ScaleError(
            f"expected real numbers, received {at!r}. Only eigenvalues of the random family fill "
            "an area of the complex plane; for antisymmetric pass imaginary parts, for orthogonal "
            "angles."
        )
    return points.astype(dtype)
