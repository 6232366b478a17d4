"""Where arrays are put: ``out_sharding``, as ``jax.random`` understands it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from deq_init.errors import ShardingError


def canonical(out_sharding: Any) -> NamedSharding | None:
    """Return the sharding that was asked for, on the mesh that it names or the current one.

    Raises
    ------
    ShardingError
        If it is neither a NamedSharding nor a PartitionSpec, or there is no mesh for the latter.
    """
    if out_sharding is None or isinstance(out_sharding, NamedSharding):
        return out_sharding
    if not isinstance(out_sharding, PartitionSpec):
        raise ShardingError(
            "expected out_sharding as a jax.sharding.NamedSharding or PartitionSpec, received "
            f"{out_sharding!r}. Pass e.g. jax.P('x', None), or leave it out."
        )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise ShardingError(
            f"expected a mesh for out_sharding={out_sharding}, and none is set. Call within "
            "jax.set_mesh(mesh), or pass NamedSharding(mesh, spec)."
        )
    return NamedSharding(mesh, out_sharding)


def placed(
    function: Callable[..., jax.Array], sharding: NamedSharding | None
) -> Callable[..., jax.Array]:
    """Return the function with its result's sharding stated, for a call within ``jit``.

    The compiler then computes each shard where it is to be, and the whole nowhere if it can.
    """
    if sharding is None:
        return function
    explicit = sharding.mesh.explicit_axes
    if explicit:
        return jax.sharding.auto_axes(function, axes=explicit, out_sharding=sharding)
    return lambda *args: jax.lax.with_sharding_constraint(function(*args), sharding)
