"""What "scale" means: ``gain``, ``spectral_norm`` or ``spectral_radius``, one of them.

``gain`` is the square root of the paper's V and a property of the law: the sampled matrix
fluctuates around the edges in :mod:`deq_init.families`. ``spectral_norm`` and ``spectral_radius``
are properties of the sampled matrix, which is multiplied by one number to have them exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from deq_init._protocol import Array, MatrixPrimitives
from deq_init.draws import is_number
from deq_init.errors import ScaleError, ShapeError

Kind = Literal["gain", "spectral_norm", "spectral_radius"]


KINDS: tuple[Kind, ...] = ("gain", "spectral_norm", "spectral_radius")
"""The quantities that can be set, in the order of :func:`resolve`'s arguments."""


class _Default(float):
    """A default value that can be told from the same number given by the caller."""


UNIT_GAIN = _Default(1.0)
"""The default of every ``gain`` argument."""


@dataclass(frozen=True)
class Scale:
    """One scale: which quantity, and its value.

    Attributes
    ----------
    kind : {"gain", "spectral_norm", "spectral_radius"}
        The quantity that is set.
    value : float
        Its value, finite and not negative.
    """

    kind: Kind
    value: float


def resolve(
    gain: float | None = UNIT_GAIN,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
) -> Scale:
    """Return the one scale that was asked for.

    Parameters
    ----------
    gain : float, default 1.0
        Square root of the paper's V.
    spectral_norm, spectral_radius : float, optional
        Target for the sampled matrix.

    Raises
    ------
    ScaleError
        If two scales are given, or one that is not a finite number >= 0.

    Examples
    --------
    >>> resolve(0.9)
    Scale(kind='gain', value=0.9)
    >>> resolve(spectral_norm=0.5)
    Scale(kind='spectral_norm', value=0.5)
    """
    if isinstance(gain, _Default):
        gain = None
    given: dict[Kind, Any] = {
        "gain": gain,
        "spectral_norm": spectral_norm,
        "spectral_radius": spectral_radius,
    }
    chosen = {kind: value for kind, value in given.items() if value is not None}
    if len(chosen) > 1:
        received = ", ".join(f"{kind}={value!r}" for kind, value in chosen.items())
        raise ScaleError(
            "expected at most one of gain, spectral_norm and spectral_radius, "
            f"received {received}. Keep the one that the matrix should have."
        )
    if not chosen:
        return Scale("gain", 1.0)
    return require_scale(*chosen.popitem())


def resolve_target(spectral_norm: float | None, spectral_radius: float | None) -> Scale:
    """Return the one target of a rescaling: like :func:`resolve`, with no default.

    Raises
    ------
    ScaleError
        If not exactly one target is given, or one that is not a finite number >= 0.
    """
    if spectral_norm is None and spectral_radius is None:
        raise ScaleError(
            "expected one of spectral_norm and spectral_radius, received neither. "
            "Pass the value that the matrix should have, e.g. spectral_norm=0.9."
        )
    return resolve(None, spectral_norm, spectral_radius)


def require_scale(kind: Kind, value: Any) -> Scale:
    """Return the scale if its value is a finite real number >= 0, else raise ScaleError."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not is_number(value) or not 0 <= number < math.inf:
        raise ScaleError(
            f"expected {kind} to be a finite number >= 0, received {value!r}. Typical values lie "
            "between 0.1 and 2; for one that is computed inside jit, initialize at gain 1 and "
            "multiply."
        )
    return Scale(kind, number)


def require_factor(value: Any) -> float:
    """Return a factor on weights.

    Raises
    ------
    ScaleError
        If it is not a finite number.
    """
    try:
        number = float(value) if is_number(value) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ScaleError(
            f"expected a finite number as the factor, received {value!r}. Pass e.g. the "
            "suggested_factor of a report of check."
        )
    return number


def require_square(kind: Kind, rows: int, columns: int) -> None:
    """Raise ShapeError if a spectral radius is asked of a matrix that is not square."""
    if kind == "spectral_radius" and rows != columns:
        raise ShapeError(
            "expected a square matrix for spectral_radius, which is defined by eigenvalues, "
            f"received a matrix of shape {(rows, columns)}. Use spectral_norm or gain instead."
        )


def measure(xp: MatrixPrimitives, w: Array, kind: Kind, *, symmetry: int = 0) -> Array:
    """Return the spectral norm or radius of a matrix, a scalar array.

    Parameters
    ----------
    xp : MatrixPrimitives
        The backend's linear algebra.
    w : array, shape (m, n)
        A float32 or float64 matrix.
    kind : {"spectral_norm", "spectral_radius"}
        Largest singular value, or largest modulus of an eigenvalue.
    symmetry : {1, -1, 0}
        Whether ``w`` equals its transpose, minus its transpose, or neither. In the first two cases
        norm and radius are the same.
    """
    if symmetry == 1:
        return xp.symmetric_norm(w)
    if kind == "spectral_norm" or symmetry == -1:
        return xp.spectral_norm(w)
    return xp.spectral_radius(w)


def factor(target: Scale, measured: float) -> float:
    """Return what a matrix must be multiplied by to meet the target.

    Parameters
    ----------
    target : Scale
        A spectral norm or radius.
    measured : float
        The matrix's own.

    Raises
    ------
    ScaleError
        If the measured value is zero or not finite: no factor changes it to the target.
    """
    # Below the smallest normal float32, the factor itself could overflow.
    if not (math.isfinite(measured) and measured > 1.2e-38):
        raise ScaleError(
            f"expected a matrix whose {target.kind} is finite and positive, received one with "
            f"{target.kind} {measured}. Initialize the matrix before rescaling it."
        )
    return target.value / measured
