"""LAPACK's decompositions on the CPU, which must not meet in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

_Called = TypeVar("_Called", bound=Callable[..., Any])


def one_by_one(f: _Called) -> _Called:
    """Return f of unbatched arrays, so that ``jax.vmap`` takes one after another on the CPU.

    A batched LAPACK kernel of jaxlib 0.10 is split over XLA's threads, and waits for its parts in
    one of these: as many kernels at once as there are threads, two on a small machine, wait for
    ever. Derivatives are those of f itself, with its batches, and so are batches that an explicit
    mesh has sharded.
    """
    sequential = jax.custom_batching.custom_vmap(f)

    @sequential.def_vmap
    def batch(size: int, batched: Sequence[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        def loop(*arrays: jax.Array) -> Any:
            rows = [
                x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
                for x, is_batched in zip(arrays, batched, strict=True)
            ]
            return jax.lax.map(lambda row: sequential(*row), rows)

        at_once = jax.vmap(f, [0 if is_batched else None for is_batched in batched])
        if any(is_batched and _sharded(x) for x, is_batched in zip(arrays, batched, strict=True)):
            result = at_once(*arrays)
        else:
            result = jax.lax.platform_dependent(*arrays, cpu=loop, default=at_once)
        return result, jax.tree.map(lambda _: True, result)

    differentiable = jax.custom_jvp(sequential)
    differentiable.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))
    return cast(_Called, differentiable)


def _sharded(x: jax.Array) -> bool:
    """Whether the first axis is split, on a mesh whose axes are explicit."""
    return jax.typeof(x).sharding.spec[0] is not None
