"""Standard normals of JAX keys, each entry by itself.

A Threefry key's normals are those of :mod:`deq_init.draws`, and to the bit those of
``jax.random.normal(key, shape)`` with ``jax_threefry_partitionable=True``, whatever that option is.
They are computed from the entry's counter, so that an array that is sharded by its user needs no
communication, and a symmetric matrix no transpose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deq_init import axes, draws, families
from deq_init import plan as plans
from deq_init.errors import SeedError, ShapeError


class Words:
    """Arithmetic on uint32 arrays, which wrap by themselves."""

    def wrap(self, words: jax.Array) -> jax.Array:
        """The words."""
        return words

    def rotate_left(self, words: jax.Array, bits: int) -> jax.Array:
        """Words rotated left."""
        return words << bits | words >> (32 - bits)


@dataclass(frozen=True)
class Entries:
    """The normals of a plan's whole array from a Threefry key, blocks and all.

    Arrays that it returns have the array's shape, of any number of axes.
    """

    key: jax.Array
    plan: plans.Plan
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns of a block."""
        return self.plan.rows, self.plan.columns

    @cached_property
    def _all(self) -> jax.Array:
        return self._draw(*self._coordinates())

    def __getitem__(self, region: tuple[slice, slice]) -> jax.Array:
        """Return the normals of these rows and columns."""
        return self._all[region]

    def mirrored(self, diagonal: float, below: float) -> jax.Array:
        """Return the normal of (min, max) of each entry's row and column, times its factor."""
        rows, columns = self._coordinates()
        entries = self._draw(jnp.minimum(rows, columns), jnp.maximum(rows, columns))
        off_diagonal = jnp.where(rows < columns, 1.0, float(below))
        return entries * jnp.where(rows == columns, diagonal, off_diagonal).astype(self.dtype)

    def _coordinates(self) -> tuple[jax.Array, jax.Array]:
        """Return each entry's row and column in the matrix of its block."""
        plan, view = self.plan, self.plan.view
        if max(plan.rows, plan.columns, *plan.shape) >= 2**32:
            raise ShapeError(
                "expected less than 2**32 rows and columns, which are counted in 32 bits, received "
                f"shape {plan.shape}, a matrix of shape {(plan.rows, plan.columns)}. Use blocks=, "
                "or sample parts of it with keys of their own."
            )
        index = [lax.broadcasted_iota(np.uint32, plan.shape, a) for a in range(len(plan.shape))]
        lengths = list(plan.shape)
        if plan.blocks is not None:
            lengths[plan.axis] //= plan.blocks
            index[plan.axis] = index[plan.axis] % np.uint32(lengths[plan.axis])

        def flat(axes: tuple[int, ...]) -> jax.Array:
            result = jnp.zeros(plan.shape, np.uint32)
            for axis in axes:
                result = result * np.uint32(lengths[axis]) + index[axis]
            return result

        outputs, inputs = flat(view.outputs), flat(view.inputs)
        return (outputs, inputs) if view.layout == "out_in" else (inputs, outputs)

    def _draw(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        a, b = draws.threefry2x32(
            Words(), self._key_words(), *counters(rows, columns, self.plan.columns)
        )
        return _normals(a, b, self.dtype)

    def _key_words(self) -> tuple[jax.Array, jax.Array]:
        """Return the two words of the key, or of each entry's matrix's key, to broadcast."""
        plan, view = self.plan, self.plan.view
        keys = self.key
        lengths = [1] * len(plan.shape)
        if view.batch:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(keys, np.arange(view.count))
            for place, axis in enumerate(view.batch):
                lengths[place] = plan.shape[axis]
        if plan.blocks is not None:
            fold = jax.vmap(jax.random.fold_in, (None, 0))
            fold = jax.vmap(fold, (0, None)) if view.batch else fold
            keys = fold(keys, np.arange(plan.blocks))
        data = jax.random.key_data(keys)
        if plan.blocks is not None:
            length = plan.shape[plan.axis]
            data = jnp.repeat(data, length // plan.blocks, axis=-2)
            lengths[view.order.index(plan.axis)] = length
        first, second = (data[..., i].reshape(lengths).transpose(view.inverse) for i in (0, 1))
        return first, second


def field(key: jax.Array, plan: plans.Plan, index: plans.Index, dtype: str) -> families.Normals:
    """Return the field of one matrix, as :meth:`deq_init.plan.Plan.sample` asks for it."""
    for number in index:
        key = jax.random.fold_in(key, number)
    shape = (plan.rows, plan.columns)
    if not is_threefry(key):
        return jax.random.normal(key, shape, dtype)
    view = axes.View(shape, (), (1,), (0,), "out_in")
    return Entries(key, replace(plan, view=view, blocks=None, block_shape=shape), dtype)


def require_key(key: Any) -> None:
    """Raise SeedError if the argument is not one key of JAX's, typed or raw."""
    try:
        jax.random.key_impl(key)
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        valid = not (key.shape if typed else key.shape[:-1])
    except (TypeError, ValueError, AttributeError):
        valid = False
    if not valid:
        kind = getattr(key, "dtype", type(key).__name__)
        received = repr(key) if not hasattr(key, "shape") else f"{kind} of shape {key.shape}"
        raise SeedError(
            f"expected one key of JAX's, received {received}. Pass jax.random.key(0); for a batch "
            "of keys, use jax.vmap."
        )


def is_threefry(key: jax.Array) -> bool:
    """Whether a key, typed or raw, is one of Threefry-2x32."""
    return jax.random.key_impl(key) == "threefry2x32"


def counters(rows: jax.Array, columns: jax.Array, stride: int) -> tuple[jax.Array, jax.Array]:
    """Return high and low words of the 64-bit integers i · stride + j, i and j arrays of uint32.

    Products are made of 16-bit halves: there may be no 64-bit integers.
    """
    top, bottom = rows >> 16, rows & 0xFFFF
    stride_top, stride_bottom = np.uint32(stride >> 16), np.uint32(stride & 0xFFFF)
    middle = top * stride_bottom + (bottom * stride_bottom >> 16)
    other = bottom * stride_top + (middle & 0xFFFF)
    product = rows * np.uint32(stride)
    low = product + columns
    high = top * stride_top + (middle >> 16) + (other >> 16) + (low < product).astype(np.uint32)
    return high, low


def _normals(a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """Return what ``jax.random.normal`` makes of these random words, operation by operation."""
    if dtype == "float64":
        bits: Any = a.astype(np.uint64) << 32 | b.astype(np.uint64)
    else:
        bits = a ^ b
    info = np.finfo(dtype)
    one = np.ones((), dtype)
    pattern = bits >> (info.bits - info.nmant) | one.view(bits.dtype)
    low = np.nextafter(-one, one)
    uniform = lax.bitcast_convert_type(pattern, dtype) - one
    uniform = lax.max(low, uniform * (one - low) + low)
    return lax.erf_inv(uniform) * np.sqrt(2 * one)
