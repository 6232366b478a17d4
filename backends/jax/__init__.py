"""The families as JAX initializers, in the idiom of ``jax.nn.initializers``.

Kernels have the layout (..., in, out), as in Flax: a layer computes ``z @ kernel``.
"""

from deq_init.errors import missing_framework

try:
    import jax  # noqa: F401
except ImportError:
    raise missing_framework("jax", "jax") from None

from deq_init.jax.initializers import goe, orthogonal, random, rescale

__all__ = ["goe", "orthogonal", "random", "rescale"]
