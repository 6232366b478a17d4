"""Where the state of a looped or implicit model starts, in JAX's idiom."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from deq_init import looped as core
from deq_init import plan as plans
from deq_init.looped import Start


def initial_state(
    kind: Start, like: jax.Array, key: jax.Array | None = None, *, deviation: float = 1.0
) -> jax.Array:
    """Return a state to start a solver or a loop from.

    Parameters
    ----------
    kind : {"zeros", "input", "normal", "mixed"}
        Zeros; ``like`` itself; normal entries; or each sample zeros or normal, with probability ½.
    like : Array, shape (batch, ...)
        What the state is to be like: the injected or embedded input.
    key : Array, optional
        For "normal" and "mixed". ``jax.random.key(seed)`` gives what ``seed`` gives in the other
        backends.
    deviation : float, default 1.0
        Standard deviation of the normal entries.

    Raises
    ------
    ModelError, SeedError, DTypeError
        For an unknown kind, a deviation that is not finite, no key for a random start, or a dtype
        that is not real and floating.

    See Also
    --------
    deq_init.looped : which start is for what.

    Examples
    --------
    >>> initial_state("normal", jnp.zeros((2, 3)), jax.random.key(0)).shape
    (2, 3)
    """
    core.require_start(kind, deviation, key is not None)
    like = jnp.asarray(like)
    plans.compute_dtype(like.dtype.name)
    if kind == "input":
        return like
    if key is None or kind == "zeros":
        return jnp.zeros_like(like)
    wide = jnp.promote_types(like.dtype, jnp.float32)
    normals = jax.random.normal(jax.random.fold_in(key, core.NORMALS), like.shape, wide)
    state = (deviation * normals).astype(like.dtype)
    if kind == "normal":
        return state
    choice = jax.random.normal(jax.random.fold_in(key, core.CHOICE), like.shape[:1], jnp.float32)
    return jnp.where(choice.reshape(-1, *(1,) * (like.ndim - 1)) > 0, state, 0)
