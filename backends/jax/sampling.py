"""A checked request and a key, made into an array."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from deq_init import plan as plans
from deq_init.jax import normals, placement, primitives


def sample_untraced(
    plan: plans.Plan, dtype: str, sharding: Any, key: jax.Array, value: float
) -> jax.Array:
    """Return the array of a plan, within ``jit``.

    Parameters
    ----------
    plan : Plan
        Its own value does not matter.
    dtype : str
        Of the array.
    sharding : NamedSharding or None
        Of the array.
    key : Array
        A key of JAX's, typed or raw.
    value : float
        Value of the plan's scale.

    Returns
    -------
    Array, shape ``plan.shape``
    """
    compute = plans.compute_dtype(dtype)

    def build(key: jax.Array, value: jax.Array) -> jax.Array:
        scaled = plan.with_value(value.astype(compute))
        # An unused draw checks the key, and marks it as used for jax_debug_key_reuse.
        jax.random.bits(key)
        with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
            if plan.entrywise and normals.is_threefry(key):
                w = scaled.realize(primitives.xp, normals.Entries(key, plan, compute))
            else:
                w = _sample(scaled, key, compute)
        return w.astype(dtype)

    return placement.placed(build, sharding)(key, jnp.asarray(value))


def _sample(plan: plans.Plan, key: jax.Array, dtype: str) -> jax.Array:
    """Return the array, compiled once for all the slices of a stack."""
    if not plan.view.batch or 0 in plan.shape:
        return plan.sample(primitives.xp, lambda index: normals.field(key, plan, index, dtype))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(plan.view.count))
    one = plan.slice
    slices = jax.lax.map(lambda own: _sample(one, own, dtype), keys)
    return plan.arrange(primitives.xp, slices)


sample = jax.jit(sample_untraced, static_argnums=(0, 1, 2))
"""The same, compiled. The scale's value is traced, so that a new one compiles nothing."""
