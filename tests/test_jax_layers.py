"""JAX's initializers through the forward pass of the layers of Flax, Haiku and Equinox.

An orthogonal kernel of gain 0.9 with no fewer outputs than inputs multiplies every vector's length
by 0.9. Each test would see another flattening, another scale, and a kernel that was not set.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deq_init.jax

KEY = jax.random.key(1)


def vectors(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def check_lengths(x, y, factor=0.9):
    x, y = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, y))
    np.testing.assert_allclose(
        np.linalg.norm(y, axis=1), factor * np.linalg.norm(x, axis=1), rtol=1e-5
    )


class Recorder:
    """An orthogonal initializer that keeps the shapes that it was asked for."""

    def __init__(self):
        self.shapes = set()

    def __call__(self, key, shape, *args, **options):
        self.shapes.add(tuple(shape))
        return deq_init.jax.orthogonal(0.9)(key, shape, *args, **options)


LINEN = {
    "Dense": (lambda nn, init: nn.Dense(32, kernel_init=init), (4, 16), (16, 32)),
    "DenseGeneral, several output axes": (
        lambda nn, init: nn.DenseGeneral((4, 8), kernel_init=init), (4, 16), (16, 32),
    ),
    "DenseGeneral, several input axes": (
        lambda nn, init: nn.DenseGeneral(40, axis=(-2, -1), kernel_init=init), (4, 4, 8), (32, 40),
    ),
    "Conv": (
        lambda nn, init: nn.Conv(64, (3, 2), padding="VALID", kernel_init=init),
        (4, 3, 2, 5), (3, 2, 5, 64),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEN)
def test_flax_linen(name):
    nn = pytest.importorskip("flax.linen")
    build, shape, matrix = LINEN[name]
    init = Recorder()
    layer, x = build(nn, init), vectors(*shape)
    check_lengths(x, layer.apply(layer.init(KEY, x), x))
    assert init.shapes == {matrix}


def test_flax_linen_attention():
    """A sequence of one token attends to itself: the output is that of two orthogonal maps."""
    nn = pytest.importorskip("flax.linen")
    init = Recorder()
    layer = nn.MultiHeadDotProductAttention(num_heads=4, kernel_init=init)
    x = vectors(4, 1, 16)
    check_lengths(x, layer.apply(layer.init(KEY, x), x), 0.81)
    assert init.shapes == {(16, 16)}


def test_flax_linen_initialize():
    nn = pytest.importorskip("flax.linen")
    layer, x = nn.Sequential([nn.Dense(16), nn.Dense(16)]), vectors(4, 16)
    variables, summary = deq_init.jax.initialize(
        layer.init(KEY, x), "orthogonal", 0.9, key=KEY, verbose=False
    )
    assert summary.names == ("params/layers_0/kernel", "params/layers_1/kernel")
    check_lengths(x, layer.apply(variables, x), 0.81)


def test_flax_linen_attention_initialize():
    """All four projections are set, the three to several axes as matrices to all of them."""
    nn = pytest.importorskip("flax.linen")
    layer, x = nn.MultiHeadDotProductAttention(num_heads=4), vectors(4, 1, 16)
    before = layer.init(KEY, x)
    after, summary = deq_init.jax.initialize(before, "orthogonal", 0.9, key=KEY, verbose=False)
    assert len(summary.names) == 4
    check_lengths(x, layer.apply(after, x), 0.81)


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx")
    init, x = Recorder(), vectors(4, 16)
    layer = nnx.Linear(16, 32, kernel_init=init, rngs=nnx.Rngs(0))
    check_lengths(x, layer(x))
    assert init.shapes == {(16, 32)}


def test_flax_nnx_initialize():
    nnx = pytest.importorskip("flax.nnx")
    layer = nnx.Linear(16, 16, rngs=nnx.Rngs(0))
    state, summary = deq_init.jax.initialize(
        nnx.state(layer), "goe", spectral_norm=0.9, key=KEY, verbose=False
    )
    nnx.update(layer, state)
    assert summary.names == ("kernel",)
    w = np.asarray(layer(jnp.eye(16)))
    np.testing.assert_allclose(w, w.T, atol=1e-6)
    assert abs(np.linalg.norm(w, 2) - 0.9) < 1e-5


@pytest.mark.parametrize(
    ("name", "shape"), [("Linear", (4, 16)), ("Conv2D", (4, 3, 2, 5))], ids=["Linear", "Conv2D"]
)
def test_haiku(name, shape):
    hk = pytest.importorskip("haiku")

    def w_init(shape, dtype):
        return deq_init.jax.orthogonal(0.9)(hk.next_rng_key(), shape, dtype)

    def forward(x):
        if name == "Linear":
            return hk.Linear(32, w_init=w_init)(x)
        return hk.Conv2D(64, (3, 2), padding="VALID", w_init=w_init)(x)

    model, x = hk.transform(forward), vectors(*shape)
    check_lengths(x, model.apply(model.init(KEY, x), None, x))


def test_haiku_initialize():
    hk = pytest.importorskip("haiku")
    model, x = hk.transform(lambda x: hk.Linear(32)(x)), vectors(4, 16)
    params, summary = deq_init.jax.initialize(
        model.init(KEY, x), "orthogonal", 0.9, key=KEY, verbose=False
    )
    assert summary.names == ("linear/w",)
    check_lengths(x, model.apply(params, None, x))


def test_equinox():
    """Weights are (out, in): the transpose of a kernel."""
    eqx = pytest.importorskip("equinox")
    layer, x = eqx.nn.Linear(16, 32, use_bias=False, key=KEY), vectors(4, 16)
    weight = deq_init.jax.orthogonal(0.9)(KEY, (16, 32)).T
    layer = eqx.tree_at(lambda layer: layer.weight, layer, weight)
    check_lengths(x, jax.vmap(layer)(x))


def test_equinox_initialize():
    eqx = pytest.importorskip("equinox")
    convolution = eqx.nn.Conv2d(5, 64, (3, 2), use_bias=False, key=KEY)
    model = eqx.nn.Sequential([convolution, eqx.nn.Lambda(jnp.ravel)])
    model, summary = deq_init.jax.initialize(
        model, "orthogonal", 0.9, key=KEY, layout="out_in", verbose=False
    )
    x = vectors(4, 5, 3, 2)
    check_lengths(x, jax.vmap(model)(x))
    assert summary.names == ("layers/0/weight",)


def test_equinox_layout_decides_the_fan_in():
    """2048 outputs: mean square over gain² is 1 within 20 %; the other fan is off 128-fold."""
    eqx = pytest.importorskip("equinox")
    layer = eqx.nn.Linear(16, 2048, use_bias=False, key=KEY)
    layer, _ = deq_init.jax.initialize(
        layer, "random", 0.9, key=KEY, layout="out_in", verbose=False
    )
    x = vectors(16)
    ratio = float(jnp.mean(layer(x) ** 2) / jnp.mean(x**2)) / 0.81
    assert abs(ratio - 1) < 0.2
