"""LAPACK's decompositions on the CPU, which must not meet in batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import jax

_Called = TypeVar("_Called", bound=Callable[..., Any])


def one_by_one(f: _Called) -> _Called:
    """Return f of unbatched arrays, so that ``jax.vmap`` takes one after another on the CPU.

    A batched LAPACK kernel of jaxlib 0.10 is split over XLA's threads, and waits for its parts in
    one of these: as many kernels at once as there are threads, two on a small machine, wait for
    ever. Derivatives are those of f.
    """
    sequential = jax.custom_batching.sequential_vmap(f)

    @jax.custom_jvp
    def on_cpu(*arrays: jax.Array) -> Any:
        return sequential(*arrays)

    on_cpu.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))

    @wraps(f)
    def call(*arrays: jax.Array) -> Any:
        return (on_cpu if jax.default_backend() == "cpu" else f)(*arrays)

    return cast(_Called, call)
