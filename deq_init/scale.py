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


HALF = ("float16", "bfloat16")

LARGEST = {
    "float16": 65504.0,
    "bfloat16": (2 - 2.0**-7) * 2.0**127,
    "float32": (2 - 2.0**-23) * 2.0**127,
    "float64": (2 - 2.0**-52) * 2.0**1023,
}
"""The largest number of each dtype that a matrix can have."""

_LEAST = {"float16": 2.0**-20, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
"""The smallest typical entry: below it, float16 has 4 bits left, and others may have none."""


def require_representable(
    target: Scale, dtype: str, largest: float = 1.0, typical: float = 1.0
) -> None:
    """Raise ScaleError for a scale whose matrix is too large or too small for a dtype.

    Parameters
    ----------
    target : Scale
        The scale.
    dtype : str
        Name of one of the four floating dtypes.
    largest, typical : float
        Largest and typical modulus of the entries of a matrix of scale 1.
    """
    value = target.value
    if value * max(largest, 1.0) > LARGEST[dtype]:
        limit, what = LARGEST[dtype] / max(largest, 1.0), "at most"
    elif 0 < value * typical < _LEAST[dtype]:
        limit, what = _LEAST[dtype] / typical, "0, or at least"
    else:
        return
    raise ScaleError(
        f"expected {target.kind} to be {what} {limit:.4g} for this shape in {dtype}, whose largest "
        f"number is {LARGEST[dtype]:.5g} and whose smallest normal one is "
        f"{_SMALLEST_NORMAL[dtype]:.2g}, received {value!r}. Use a scale near 1 or a wider dtype."
    )


_SMALLEST_NORMAL = {**_LEAST, "float16": 2.0**-14}


def require_finite_product(factor: float, dtype: str, finite: Any) -> None:
    """Raise ScaleError if weights that were multiplied by a factor do not fit into their dtype."""
    if not finite:
        raise ScaleError(
            f"expected a factor on finite weights in {dtype} whose products fit into it, received "
            f"{factor!r}, which gives entries that are not finite. Use a smaller factor or a wider "
            "dtype."
        )


def require_finite(target: Scale, dtype: str, finite: Any) -> None:
    """Raise ScaleError if a matrix that was scaled to its target does not fit into the dtype."""
    if not finite:
        raise ScaleError(
            f"expected {target.kind}={target.value!r} to be one that a matrix in {dtype} can have, "
            f"received one that gives entries beyond {LARGEST[dtype]:.5g}, the largest number of "
            f"that dtype. Use a smaller {target.kind} or a wider dtype."
        )


def power_of_two(largest: float) -> float:
    """Return a power of two near a number >= 0: 1 if it is neither large nor small, or zero.

    NaN if it is not finite.

    Examples
    --------
    >>> power_of_two(3e-12), power_of_two(50.0)
    (1.8189894035458565e-12, 1.0)
    """
    if not math.isfinite(largest):
        return math.nan
    if largest == 0 or 2.0**-20 <= largest <= 2.0**20:
        return 1.0
    return math.ldexp(0.5, math.frexp(largest)[1])


def measure(xp: MatrixPrimitives, w: Array, kind: Kind, *, symmetry: int = 0) -> Array:
    """Return the spectral norm or radius of a matrix, a scalar array; NaN if it is not finite.

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
    # Some LAPACKs give wrong eigenvalues of very small and large matrices; squares overflow.
    w, unit = xp.normalized(w)
    if symmetry == 1:
        return xp.symmetric_norm(w) * unit
    if kind == "spectral_norm" or symmetry == -1:
        return xp.spectral_norm(w) * unit
    return xp.spectral_radius(w) * unit


def is_corrected(target: Scale, dtype: str) -> bool:
    """Return whether a matrix of this scale and dtype takes a :func:`correction`."""
    # Near the largest number, it could overflow.
    return dtype in HALF and target.kind != "gain" and 0 < target.value <= LARGEST[dtype] / 2


def correction(
    xp: MatrixPrimitives, w: Array, target: Scale, dtype: str, *, symmetry: int = 0
) -> Array:
    """Return what to multiply a matrix by, so that it meets its target after rounding.

    Rounding to half precision moves the norm or radius of a matrix that meets the target before.
    Dividing by what it has become mends most of that where many roundings average out, and not in
    small matrices: both are measured, and the better one is taken.

    Parameters
    ----------
    xp, w, symmetry
        As for :func:`measure`.
    target : Scale
        A spectral norm or radius, which ``w`` has.
    dtype : {"float16", "bfloat16"}
        What ``w`` will be rounded to.

    Returns
    -------
    scalar array
        A factor near 1, or 1.
    """

    def rounded(matrix: Array) -> Array:
        return measure(xp, xp.rounded(matrix, dtype), target.kind, symmetry=symmetry)

    before = rounded(w)
    factor = target.value / before
    after = rounded(w * factor)
    # 1, 0 or -1, without comparisons, which not all frameworks multiply by.
    better = xp.sign(abs(before - target.value) - abs(after - target.value))
    chosen = (abs(better) + better) * 0.5
    return factor * chosen + (1.0 - chosen)


def rescaling(
    xp: MatrixPrimitives, w: Array, target: Scale, dtype: str, *, traced: bool = False
) -> tuple[Any, Any]:
    """Return (unit, factor) for which w / unit * factor meets the target when it has this dtype.

    Parameters
    ----------
    xp : MatrixPrimitives
        The backend's linear algebra.
    w : array, shape (m, n)
        A float32 or float64 matrix, not empty.
    target : Scale
        A spectral norm or radius.
    dtype : str
        Dtype of the result.
    traced : bool
        Whether values are not known: what cannot be met then gives entries that are not finite.

    Raises
    ------
    ScaleError
        If the dtype does not hold the target, or the norm or radius of w is zero or not finite: no
        factor changes it to the target.
    """
    require_representable(target, dtype, typical=max(w.shape) ** -0.5)
    scaled, unit = xp.normalized(w)
    measured = measure(xp, scaled, target.kind)
    if not traced and not 0 < float(measured) < math.inf:
        raise ScaleError(
            f"expected a matrix whose {target.kind} is finite and positive, received one with "
            f"{target.kind} {float(measured)}. Initialize the matrix before rescaling it."
        )
    factor: Any = target.value / (measured if traced else float(measured))
    if is_corrected(target, dtype):
        factor = factor * correction(xp, scaled * factor, target, dtype)
    return unit, factor if traced else float(factor)
