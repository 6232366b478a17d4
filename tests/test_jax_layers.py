"""JAX's initializers through the forward pass of the layers of Flax, Haiku and Equinox.

An orthogonal kernel of gain 0.9 with no fewer outputs than inputs multiplies every vector's length
by 0.9. Each test would see another flattening, another scale, and a kernel that was not set.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deq_init.jax

ORTHOGONAL = deq_init.jax.orthogonal(0.9)
KEY = jax.random.key(1)
RNG = np.random.default_rng(0)


def vectors(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def check_lengths(x, y, factor=0.9):
    x, y = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, y))
    np.testing.assert_allclose(
        np.linalg.norm(y, axis=1), factor * np.linalg.norm(x, axis=1), rtol=1e-5
    )


class Recorder:
    """An initializer that keeps the shapes that it was asked for."""

    def __init__(self):
        self.shapes = []

    def __call__(self, key, shape, *args, **options):
        self.shapes.append(tuple(shape))
        return ORTHOGONAL(key, shape, *args, **options)


def linen_layers():
    nn = pytest.importorskip("flax.linen", reason="flax is not installed")
    return {
        "Dense": (nn.Dense(32, kernel_init=ORTHOGONAL), vectors(4, 16)),
        "Dense, bfloat16 compute": (
            nn.Dense(32, param_dtype=jnp.float32, kernel_init=ORTHOGONAL),
            vectors(4, 16),
        ),
        "DenseGeneral, several output axes": (
            nn.DenseGeneral((4, 8), kernel_init=ORTHOGONAL),
            vectors(4, 16),
        ),
        "DenseGeneral, several input axes": (
            nn.DenseGeneral(40, axis=(-2, -1), kernel_init=ORTHOGONAL),
            vectors(4, 4, 8),
        ),
        "Conv": (
            nn.Conv(64, (3, 2), padding="VALID", kernel_init=ORTHOGONAL),
            vectors(4, 3, 2, 5),
        ),
    }


@pytest.mark.parametrize("name", list(linen_layers()))
def test_flax_linen(name):
    layer, x = linen_layers()[name]
    check_lengths(x, layer.apply(layer.init(KEY, x), x))
