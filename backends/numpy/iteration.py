"""Loops and batches of vectors in NumPy's words, for the core's iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deq_init.fixed_point import eliminate

State = tuple[Any, ...]


class Iteration:
    """NumPy arrays on the CPU: Python's own loops, indices and conditions."""

    def while_loop(
        self, cond: Callable[[State], Any], body: Callable[[State], State], state: State
    ) -> State:
        """Loop while the condition holds.

        What is not finite shows in the results, without warnings, as in other frameworks.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            while cond(state):
                state = body(state)
        return state

    def fori_loop(
        self, start: int, stop: int, body: Callable[[int, State], State], state: State
    ) -> State:
        """Loop over indices."""
        for index in range(start, stop):
            state = body(index, state)
        return state

    def integer(self, value: int) -> int:
        """An index."""
        return value

    def zeros(self, shape: tuple[int, ...], like: Any) -> Any:
        """Zeros."""
        return np.zeros(shape, like.dtype)

    def eye(self, size: int, like: Any) -> Any:
        """The identity."""
        return np.eye(size, dtype=like.dtype)

    def integers(self, x: Any) -> Any:
        """Booleans as numbers."""
        return x.astype(np.int64)

    def transpose(self, x: Any) -> Any:
        """The last two axes swapped."""
        return x.mT

    def put(self, x: Any, index: int, value: Any) -> Any:
        """Set x[:, index], in place."""
        x[:, index] = value
        return x

    def take(self, x: Any, index: int) -> Any:
        """x[:, index], a copy."""
        return x[:, index].copy()

    def leading(self, x: Any, count: int) -> Any:
        """x[:, :count]."""
        return x[:, :count]

    def at_length(self, count: int, longest: int, f: Callable[[int], Any]) -> Any:
        """f(count)."""
        return f(count)

    def put_leading(self, x: Any, part: Any) -> Any:
        """The array itself, of which the part is a view."""
        return x

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Arrays joined."""
        return np.concatenate(arrays, axis)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Choice by entry."""
        return np.where(condition, x, y)

    def select(self, condition: Any, x: Any, y: Any) -> Any:
        """Choice by row."""
        return x if condition.all() else np.where(condition[:, None], x, y)

    def any(self, x: Any) -> bool:
        """Whether any entry is true."""
        return bool(x.any())

    def isfinite(self, x: Any) -> Any:
        """Whether entries are finite."""
        return np.isfinite(x)

    def sum(self, x: Any, axis: int) -> Any:
        """Sum along an axis."""
        return x.sum(axis)

    def lengths(self, x: Any) -> Any:
        """Euclidean lengths along the last axis."""
        return np.sqrt(np.vecdot(x, x))

    def max(self, x: Any, axis: int) -> Any:
        """Largest entry along an axis."""
        return x.max(axis)

    def sqrt(self, x: Any) -> Any:
        """Square root."""
        return np.sqrt(x)

    def largest(self, x: Any) -> Any:
        """Largest modulus."""
        return np.abs(x).max()

    def solve_positive(self, a: Any, b: Any, least: float) -> Any:
        """Elimination."""
        return eliminate(self, a, b, least)

    def minimum(self, x: Any, y: Any) -> Any:
        """The smaller."""
        return min(x, y) if isinstance(x, int) else np.minimum(x, y)

    def maximum(self, x: Any, y: Any) -> Any:
        """The larger."""
        return max(x, y) if isinstance(x, int) else np.maximum(x, y)

    def eigh(self, x: Any) -> tuple[Any, Any]:
        """Eigenvalues and eigenvectors of small symmetric matrices, in float64."""
        values, vectors = np.linalg.eigh(x.astype(np.float64))
        return values.astype(x.dtype), vectors.astype(x.dtype)

    def eig(self, x: Any) -> tuple[Any, Any]:
        """Moduli of eigenvalues and left eigenvectors of small matrices, in float64."""
        values, vectors = np.linalg.eig(x.astype(np.float64))
        return abs(values).astype(x.dtype), abs(_inverses(vectors).mT).astype(x.dtype)


def _inverses(x: Any) -> Any:
    """Return the inverses of matrices, infinite for those that have none."""
    try:
        return np.linalg.inv(x)
    except np.linalg.LinAlgError:
        if x.ndim == 2:
            return np.full_like(x, np.inf)
        return np.stack([_inverses(one) for one in x])


xp = Iteration()
