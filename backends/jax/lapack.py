"""LAPACK's decompositions on the CPU, which must not meet in batches, nor numbers far from 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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


@jax.jit
def normalized(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return w / p and p, the power of two next below the largest modulus of an entry.

    Some versions of LAPACK give wrong eigenvalues of matrices that are much smaller or larger: they
    scale them, and forget to scale back. Zeros and NaN if not all entries are finite.
    """
    largest = lax.stop_gradient(jnp.abs(w).max())
    if w.dtype == jnp.float64:
        exponent: Any = np.uint64(0x7FF << 52)
    else:
        exponent = np.uint32(0xFF << 23)
    words = lax.bitcast_convert_type(largest, exponent.dtype) & exponent
    unit = lax.bitcast_convert_type(words, w.dtype)
    unit = jnp.where(unit == 0, jnp.ones_like(unit), unit)
    finite = jnp.isfinite(unit)
    w = jnp.where(finite, w / unit, jnp.zeros_like(w))
    return w, jnp.where(finite, unit, jnp.full_like(unit, jnp.nan))


def _sharded(x: jax.Array) -> bool:
    """Whether the first axis is split, on a mesh whose axes are explicit."""
    return jax.typeof(x).sharding.spec[0] is not None
