"""Loops over batches of vectors in TensorFlow's words: the same code under ``tf.function``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from deq_init.fixed_point import eliminate

State = tuple[Any, ...]


class Iteration:
    """TensorFlow's structured loops, traced or not; the batch may be unknown."""

    def while_loop(
        self, cond: Callable[[State], Any], body: Callable[[State], State], state: State
    ) -> State:
        """Loop while the condition holds."""
        state = tuple(map(tf.convert_to_tensor, state))

        def keep(*state: Any) -> Any:
            return cond(state)

        def step(*before: Any) -> State:
            after = body(before)
            # Known lengths are lost in broadcasts, and a loop's shapes must not change.
            return tuple(tf.ensure_shape(y, x.shape) for x, y in zip(before, after, strict=True))

        return tuple(tf.while_loop(keep, step, state))

    def fori_loop(
        self, start: int, stop: int, body: Callable[[Any, State], State], state: State
    ) -> State:
        """Loop over indices, known before it is traced: XLA differentiates no other loop."""

        def keep(i: Any, *state: Any) -> Any:
            return i < stop

        def step(i: Any, *before: Any) -> State:
            after = body(i, before)
            shaped = (tf.ensure_shape(y, x.shape) for x, y in zip(before, after, strict=True))
            return i + 1, *shaped

        begin = (tf.constant(start), *state)
        return tuple(tf.while_loop(keep, step, begin, maximum_iterations=stop - start)[1:])

    def integer(self, value: int) -> Any:
        """An index."""
        return tf.constant(value)

    def zeros(self, shape: tuple[int | None, ...], like: Any) -> Any:
        """Zeros; an unknown length is the batch."""
        lengths = [tf.shape(like)[0] if length is None else length for length in shape]
        return tf.ensure_shape(tf.zeros(lengths, like.dtype), shape)

    def eye(self, size: int, like: Any) -> Any:
        """The identity."""
        return tf.eye(size, dtype=like.dtype)

    def integers(self, x: Any) -> Any:
        """Booleans as numbers."""
        return tf.cast(x, tf.int32)

    def transpose(self, x: Any) -> Any:
        """The last two axes swapped."""
        return tf.linalg.matrix_transpose(x)

    def put(self, x: Any, index: Any, value: Any) -> Any:
        """A new tensor with x[:, index] set."""
        here = tf.range(x.shape[1]) == index
        return tf.where(tf.reshape(here, (-1, *(1,) * (x.ndim - 2))), value[:, None], x)

    def take(self, x: Any, index: Any) -> Any:
        """x[:, index]."""
        return tf.gather(x, index, axis=1)

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Tensors joined."""
        return tf.concat(arrays, axis)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Choice by entry."""
        dtype = x.dtype if tf.is_tensor(x) else y.dtype
        return tf.where(condition, tf.cast(x, dtype), tf.cast(y, dtype))

    def select(self, condition: Any, x: Any, y: Any) -> Any:
        """Choice by row."""
        return tf.where(condition[:, None], x, y)

    def any(self, x: Any) -> Any:
        """Whether any entry is true."""
        return tf.reduce_any(x)

    def isfinite(self, x: Any) -> Any:
        """Whether entries are finite."""
        return tf.math.is_finite(x)

    def lengths(self, x: Any) -> Any:
        """Euclidean lengths along the last axis."""
        return tf.sqrt(tf.reduce_sum(x * x, -1))

    def max(self, x: Any, axis: int) -> Any:
        """Largest entry along an axis."""
        return tf.reduce_max(x, axis)

    def sqrt(self, x: Any) -> Any:
        """Square root."""
        return tf.sqrt(x)

    def solve_positive(self, a: Any, b: Any, least: float) -> Any:
        """Elimination."""
        return eliminate(self, a, b, least)

    def minimum(self, x: Any, y: Any) -> Any:
        """The smaller."""
        return tf.minimum(x, y)

    def maximum(self, x: Any, y: Any) -> Any:
        """The larger."""
        return tf.maximum(x, y)


xp = Iteration()
