"""Loops and batches of vectors in JAX's words, for the core's iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from deq_init.fixed_point import eliminate
from deq_init.jax.lapack import normalized, one_by_one

State = tuple[Any, ...]


_LENGTHS = (40, 80)


class Iteration:
    """JAX's structured loops, traced or not."""

    def while_loop(
        self, cond: Callable[[State], Any], body: Callable[[State], State], state: State
    ) -> State:
        """Loop while the condition holds."""
        return jax.lax.while_loop(cond, body, state)

    def fori_loop(
        self, start: Any, stop: Any, body: Callable[[Any, State], State], state: State
    ) -> State:
        """Loop over indices."""
        return jax.lax.fori_loop(start, stop, body, state)

    def integer(self, value: int) -> jax.Array:
        """An index."""
        return jnp.asarray(value, jnp.int32)

    def zeros(self, shape: tuple[int, ...], like: jax.Array) -> jax.Array:
        """Zeros."""
        return jnp.zeros(shape, like.dtype)

    def eye(self, size: int, like: jax.Array) -> jax.Array:
        """The identity."""
        return jnp.eye(size, dtype=like.dtype)

    def integers(self, x: jax.Array) -> jax.Array:
        """Booleans as numbers."""
        return x.astype(jnp.int32)

    def transpose(self, x: jax.Array) -> jax.Array:
        """The last two axes swapped."""
        return x.mT

    def put(self, x: jax.Array, index: Any, value: jax.Array) -> jax.Array:
        """A new array with x[:, index] set."""
        return x.at[:, index].set(value)

    def take(self, x: jax.Array, index: Any) -> jax.Array:
        """x[:, index]."""
        return jax.lax.dynamic_index_in_dim(x, index, 1, keepdims=False)

    def leading(self, x: jax.Array, count: Any) -> jax.Array:
        """x[:, :count], or all of x if the count is traced."""
        return x[:, :count] if isinstance(count, int) else x

    def at_length(self, count: Any, longest: int, f: Callable[[int], Any]) -> Any:
        """f at one of several lengths that are compiled: decompositions grow with their cubes."""
        if isinstance(count, int):
            return f(count)
        lengths = [*(k for k in _LENGTHS if k < longest), longest]
        index = jnp.searchsorted(jnp.asarray(lengths), count)
        return jax.lax.switch(index, [partial(f, k) for k in lengths])

    def put_leading(self, x: jax.Array, part: jax.Array) -> jax.Array:
        """A new array with the part first."""
        return x.at[:, : part.shape[1]].set(part)

    def concatenate(self, arrays: Sequence[jax.Array], axis: int) -> jax.Array:
        """Arrays joined."""
        return jnp.concatenate(arrays, axis)

    def where(self, condition: jax.Array, x: Any, y: Any) -> jax.Array:
        """Choice by entry."""
        return jnp.where(condition, x, y)

    def select(self, condition: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        """Choice by row."""
        return jnp.where(condition[:, None], x, y)

    def any(self, x: jax.Array) -> jax.Array:
        """Whether any entry is true."""
        return jnp.any(x)

    def isfinite(self, x: jax.Array) -> jax.Array:
        """Whether entries are finite."""
        return jnp.isfinite(x)

    def sum(self, x: jax.Array, axis: int) -> jax.Array:
        """Sum along an axis."""
        return jnp.sum(x, axis)

    def lengths(self, x: jax.Array) -> jax.Array:
        """Euclidean lengths along the last axis."""
        return jnp.sqrt(jnp.sum(x * x, -1))

    def max(self, x: jax.Array, axis: int) -> jax.Array:
        """Largest entry along an axis."""
        return jnp.max(x, axis)

    def sqrt(self, x: jax.Array) -> jax.Array:
        """Square root."""
        return jnp.sqrt(x)

    def largest(self, x: jax.Array) -> jax.Array:
        """Largest modulus."""
        return jnp.max(jnp.abs(x))

    def solve_positive(self, a: jax.Array, b: jax.Array, least: float) -> jax.Array:
        """Elimination."""
        return eliminate(self, a, b, least)

    def minimum(self, x: Any, y: Any) -> jax.Array:
        """The smaller."""
        return jnp.minimum(x, y)

    def maximum(self, x: Any, y: Any) -> jax.Array:
        """The larger."""
        return jnp.maximum(x, y)

    def eigh(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Eigenvalues and eigenvectors of small symmetric matrices."""
        return _eigh(x)

    def eig(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Moduli of eigenvalues and left eigenvectors of small matrices."""
        return _eig(x)


def _moduli(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # LAPACK's own scaling of very small and large matrices is not undone in some of its versions.
    x, unit = normalized(x)
    values, vectors = jnp.linalg.eig(x)
    return jnp.abs(values) * unit, jnp.abs(jnp.linalg.inv(vectors).mT)


_eigh = jax.vmap(one_by_one(lambda x: tuple(jnp.linalg.eigh(x))))
_eig = jax.vmap(one_by_one(_moduli))

xp = Iteration()
