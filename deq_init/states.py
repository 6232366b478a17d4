"""States of a fixed-point map: one array or several, flattened to a vector for each sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deq_init import plan as plans
from deq_init.errors import FunctionError, ShapeError

_ADVICE = {
    "f": "Pass a map z -> f(z) that returns the next state alone",
    "solver": "Pass a function of f and z0 that returns the fixed point alone",
}
_EPSILONS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


@dataclass(frozen=True)
class Layout:
    """How the leaves of a state lie in vectors of shape (batch, n).

    Attributes
    ----------
    shapes : tuple of tuple of int
        Shape of each leaf, the batch first.
    dtypes : tuple of str
        Names of their dtypes.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @property
    def dtype(self) -> str:
        """What the vectors are computed in: float64 if a leaf has it, else float32."""
        return max(plans.compute_dtype(dtype) for dtype in self.dtypes)

    @property
    def rounding(self) -> float:
        """Machine epsilon of the coarsest leaf."""
        return max(_EPSILONS[dtype] for dtype in self.dtypes)

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.shapes[0][0]

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """First and last column of each leaf."""
        result, begin = [], 0
        for shape in self.shapes:
            end = begin + math.prod(shape[1:])
            result.append((begin, end))
            begin = end
        return tuple(result)

    @property
    def n(self) -> int:
        """Length of the vectors."""
        return self.bounds[-1][1]


def layout(shapes: Iterable[Iterable[int]], dtypes: Iterable[Any]) -> Layout:
    """Return the layout of a state's leaves.

    Raises
    ------
    ShapeError
        If they do not all have the shape (batch, ...) with one batch, or hold no number a sample.
    DTypeError
        For a dtype that is not real and floating.
    """
    result = Layout(tuple(tuple(shape) for shape in shapes), tuple(map(str, dtypes)))
    batches = {shape[0] if shape else None for shape in result.shapes}
    if len(batches) != 1 or None in batches or result.n == 0:
        raise ShapeError(
            "expected a state of arrays of shape (batch, ...), all with the same batch, received "
            f"shapes {list(result.shapes)}. Add a batch axis of length 1 to a single sample."
        )
    for dtype in result.dtypes:
        plans.compute_dtype(dtype)
    return result


def require_like(
    expected: Layout, tree: Any, z: Any, shapes: Iterable[Iterable[int]] | None, source: str = "f"
) -> None:
    """Raise FunctionError if what f, or a solver, returned is not like the state it was given.

    Parameters
    ----------
    expected : Layout
        Of the state that was given.
    tree, z : state
        What was given, and what came back.
    shapes : iterable of shape, or None
        Of the arrays that came back; None if they are not in the tree that was given.
    source : {"f", "solver"}
        What returned z.
    """
    if shapes is not None and tuple(tuple(shape) for shape in shapes) == expected.shapes:
        return
    advice = _ADVICE[source]
    if shapes is None:
        advice += (
            ", in the same tuples, lists and dictionaries; leave out caches, losses and other "
            "values that are not iterated"
        )
    raise FunctionError(
        f"expected {source} to return a state like the one that it is given, {outline(tree)}, "
        f"received {outline(z)}. {advice}."
    )


def outline(z: Any) -> str:
    """Return a tree of arrays in words, cut after some 200 characters.

    Examples
    --------
    >>> outline((np.zeros((4, 8)), {"cache": None, "step": 1}))
    "(ndarray (4, 8), {'cache': None, 'step': int})"
    """
    text = _outline(z)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _outline(z: Any) -> str:
    if z is None:
        return "None"
    if isinstance(z, Mapping):
        return "{" + ", ".join(f"{key!r}: {_outline(part)}" for key, part in z.items()) + "}"
    if isinstance(z, (tuple, list)):
        parts = ", ".join(map(_outline, z))
        if isinstance(z, list):
            return f"[{parts}]"
        name = type(z).__name__ if hasattr(z, "_fields") else ""
        return f"{name}({parts}{',' if len(z) == 1 else ''})"
    name = "ndarray" if isinstance(z, np.ndarray) else "array"  # of a framework
    try:
        return f"{name} {tuple(z.shape)}"
    except (AttributeError, TypeError, ValueError):
        return type(z).__name__
