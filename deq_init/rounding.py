"""How much a map rounds: found out from a few of its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deq_init._protocol import Array, IterationPrimitives

_NUDGES = (1e-3, 2.5e-4)  # of |z|, to tell rounding from curvature


def error(
    xp: IterationPrimitives,
    f: Callable[[Array], Array],
    z: Array,
    normals: Array,
    above: float,
    numbers: Callable[[Array], Any] = np.asarray,
) -> float:
    """Return the relative error of f's values at z, 0 if it is not above a number.

    From second differences of f over two distances: those of a smooth f fall by 16 with the
    square of the distance, and those of rounding hardly do. Costs five evaluations of f.

    Parameters
    ----------
    xp : IterationPrimitives
        The backend's arrays.
    f : callable
        Maps arrays of shape (batch, n) to such, each row for itself.
    z, normals : array, shape (batch, n)
        Where, and directions.
    above : float
        Errors up to this one count as 0.
    numbers : callable
        Makes what NumPy can read of an array.
    """

    def values(z: Array) -> NDArray[Any]:
        return np.array(numbers(f(z)), np.float64)

    with np.errstate(all="ignore"):  # where f diverges
        middle = values(z)
        size, length = (np.median(numbers(xp.lengths(x))) for x in (z, normals))
        if not 0 < size < np.inf:
            return 0.0
        direction = normals * float(size / length)
        errors, largest = [], 0.0
        for nudge in _NUDGES:
            bend = values(z + nudge * direction) + values(z - nudge * direction) - 2 * middle
            errors.append(relative(bend, middle) / 6**0.5)  # of three errors, one twice
            largest = max(largest, _largest(bend))
        coarse, fine = errors
        known = fine > above and fine > coarse / 3
        # Where a threshold lies between, few entries differ by much; rounding is small in all.
        return fine if known and largest < 0.1 * _largest(middle) else 0.0


def _largest(values: NDArray[Any]) -> float:
    """Return the largest absolute value of those that are finite."""
    return float(np.max(np.abs(values), where=np.isfinite(values), initial=0.0))


def relative(differences: NDArray[Any], values: NDArray[Any]) -> float:
    """Return the median of |difference| / |value| over the samples where it is finite."""
    size = np.maximum(np.linalg.norm(values, axis=1), 1e-30)
    ratios = np.linalg.norm(differences, axis=1) / size
    ratios = ratios[np.isfinite(ratios)]
    return float(np.median(ratios)) if len(ratios) else float("nan")
