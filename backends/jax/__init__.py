"""The families as JAX initializers, in the idiom of ``jax.nn.initializers``.

Kernels have the layout (..., in, out), as in Flax: a layer computes ``z @ kernel``.
"""

from deq_init.errors import require

require("jax", "jax")

from deq_init.jax.initializers import antisymmetric, goe, orthogonal, random, rescale  # noqa: E402
from deq_init.jax.jacobian import (  # noqa: E402
    fixed_point,
    jacobian_norm,
    jacobian_spectral_radius,
    multiply,
    rescale_jacobian,
)
from deq_init.jax.looped import initial_state  # noqa: E402
from deq_init.jax.selection import initialize  # noqa: E402
from deq_init.jax.verdict import check  # noqa: E402

__all__ = [
    "antisymmetric",
    "check",
    "fixed_point",
    "goe",
    "initial_state",
    "initialize",
    "jacobian_norm",
    "jacobian_spectral_radius",
    "multiply",
    "orthogonal",
    "random",
    "rescale",
    "rescale_jacobian",
]
