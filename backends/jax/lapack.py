"""LAPACK's decompositions on the CPU, which must not meet in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

import jax

_Called = TypeVar("_Called", bound=Callable[..., Any])


def one_by_one(f: _Called) -> _Called:
    """Return f of unbatched arrays, so that ``jax.vmap`` takes one after another on the CPU.

    A batched LAPACK kernel of jaxlib 0.10 is split over XLA's threads, and waits for its parts in
    one of these: as many kernels at once as there are threads, two on a small machine, wait for
    ever. Derivatives are those of f itself, with its batches, and so are batches that an explicit
    mesh has sharded.
    """

    @jax.custom_batching.custom_vmap
    def sequential(*arrays: jax.Array) -> Any:
        return f(*arrays)

    @sequential.def_vmap
    def batch(size: int, batched: Sequence[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        del size
        axes = tuple(0 if is_batched else None for is_batched in batched)

        def loop(*arrays: jax.Array) -> Any:
            def one(mapped: Sequence[jax.Array]) -> Any:
                rest = iter(mapped)
                return sequential(
                    *(
                        x if axis is None else next(rest)
                        for x, axis in zip(arrays, axes, strict=True)
                    )
                )

            return jax.lax.map(one, [x for x, axis in zip(arrays, axes, strict=True) if axis == 0])

        def at_once(*arrays: jax.Array) -> Any:
            return jax.vmap(f, axes)(*arrays)

        if any(axis == 0 and _sharded(x) for x, axis in zip(arrays, axes, strict=True)):
            result = at_once(*arrays)
        else:
            result = jax.lax.platform_dependent(*arrays, cpu=loop, default=at_once)
        return result, jax.tree.map(lambda _: True, result)

    @jax.custom_jvp
    def differentiable(*arrays: jax.Array) -> Any:
        return sequential(*arrays)

    differentiable.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))
    return cast(_Called, wraps(f)(lambda *arrays: differentiable(*arrays)))


def _sharded(x: jax.Array) -> bool:
    """Whether the first axis is split, on a mesh whose axes are explicit."""
    return jax.typeof(x).sharding.spec[0] is not None
