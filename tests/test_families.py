"""What holds for every matrix of a family, in every backend."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deq_init import families
from deq_init.numpy import primitives as numpy_primitives

import reference
from backends import BACKENDS, EPSILON, FAMILIES, HALF, SQUARE

# Few sizes, so that compiled backends compile each once; 100 spans several panels of reflections.
sizes = st.sampled_from([1, 2, 3, 8, 41, 100])
seeds = st.integers(0, 2**32 - 1)
gains = st.floats(0.01, 10.0)
floats = st.sampled_from(["float32", "float64"])
all_floats = st.sampled_from(list(EPSILON))


def tolerance(dtype, n):
    """Rounding of an n-term computation done in at least float32 and cast to the dtype."""
    return 4 * EPSILON[dtype] if dtype in HALF else 40 * EPSILON[dtype] * np.sqrt(n)


@given(rows=sizes, columns=sizes, seed=seeds, dtype=all_floats)
def test_shape_and_dtype(backend, family, rows, columns, seed, dtype):
    shape = (rows, rows) if family in SQUARE else (rows, columns)
    w = backend.sample(family, shape, seed=seed, dtype=dtype)
    assert w.shape == shape
    assert w.dtype.name == dtype
    assert np.isfinite(w.astype(np.float64)).all()


@given(n=sizes, seed=seeds, dtype=all_floats, gain=gains)
def test_symmetry_to_the_bit(backend, n, seed, dtype, gain):
    w = backend.sample("goe", (n, n), seed=seed, dtype=dtype, gain=gain)
    assert (w == w.T).all()
    w = backend.sample("antisymmetric", (n, n), seed=seed, dtype=dtype, gain=gain)
    assert (w == -w.T).all()


@given(rows=sizes, columns=sizes, seed=seeds, dtype=floats)
def test_orthogonal_is_an_isometry(backend, rows, columns, seed, dtype):
    w = backend.sample("orthogonal", (rows, columns), seed=seed, dtype=dtype).astype(np.float64)
    product = w.T @ w if rows >= columns else w @ w.T
    error = np.abs(product - np.eye(min(rows, columns))).max()
    assert error <= tolerance(dtype, max(rows, columns))


@given(n=sizes, seed=seeds, dtype=st.sampled_from(HALF))
def test_half_precision_is_the_cast_of_float32(backend, family, n, seed, dtype):
    half = backend.sample(family, (n, n), seed=seed, dtype=dtype)
    full = backend.sample(family, (n, n), seed=seed, dtype="float32")
    assert (half == full.astype(half.dtype)).all()


@given(n=sizes, seed=seeds, dtype=floats)
def test_the_same_seed_gives_the_same_matrix(backend, family, n, seed, dtype):
    first = backend.sample(family, (n, n), seed=seed, dtype=dtype)
    again = backend.sample(family, (n, n), seed=seed, dtype=dtype)
    other = backend.sample(family, (n, n), seed=seed ^ 1, dtype=dtype)
    assert (first == again).all()
    if n > 2:
        assert (first != other).any()


@given(n=sizes, seed=seeds, gain=gains, dtype=floats)
def test_linear_in_the_gain(backend, family, n, seed, gain, dtype):
    unit = backend.sample(family, (n, n), seed=seed, dtype=dtype)
    scaled = backend.sample(family, (n, n), seed=seed, dtype=dtype, gain=gain)
    np.testing.assert_allclose(scaled, gain * unit, rtol=8 * EPSILON[dtype], atol=0)


@given(rows=sizes, columns=sizes, seed=seeds, dtype=floats)
def test_equals_the_naive_definition(backend, family, rows, columns, seed, dtype):
    """The map g -> W, from JAX's or our own normals, against one reflection at a time."""
    shape = (rows, rows) if family in SQUARE else (rows, columns)
    g = numpy_primitives.normals(seed, shape, dtype)[:, :]
    expected = reference.unit(family, g, shape[1 if backend.layout == "out_in" else 0])
    w = backend.sample(family, shape, seed=seed, dtype=dtype)
    # JAX's inverse error function is good to 6e-6 in float32 and 2e-12 in float64.
    bound = 1e-5 if dtype == "float32" else 1e-11
    assert np.abs(w - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("shape", [(129, 200), (300, 900), (900, 300)])
def test_orthogonal_matrices_of_several_panels_equal_the_naive_definition(shape):
    g = numpy_primitives.normals(5, shape, "float32")[:, :]
    expected = reference.orthogonal(g.astype(np.float64))
    for backend in BACKENDS.values():
        w = backend.sample("orthogonal", shape, seed=5)
        assert np.abs(w - expected).max() <= 1e-5 * np.abs(expected).max(), backend.name


@pytest.mark.parametrize("n", [64, 300])
def test_one_seed_one_matrix_in_every_backend(family, n):
    """Within 1e-5 of the largest entry, in float32."""
    expected = BACKENDS["numpy"].sample(family, (n, n), seed=17)
    for backend in BACKENDS.values():
        w = backend.sample(family, (n, n), seed=17)
        assert np.abs(w - expected).max() <= 1e-5 * np.abs(expected).max(), backend.name


def test_fan_in_is_the_length_of_the_vectors_acted_on(backend):
    """A random matrix from 3 to 2000 dimensions has entries of variance gain²/3 and back 1/2000.

    Law: sum of squares times fan_in is chi-square with 6000 degrees of freedom, relative standard
    deviation 0.018: a band of 10 % is 5.4 of them. The transposed fan is off by a factor of 667.
    """
    for out, fan_in in ((2000, 3), (3, 2000)):
        w = backend.sample("random", backend.shape(out, fan_in), seed=1).astype(np.float64)
        assert abs((w**2).mean() * fan_in - 1) < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_convolution_kernels_flatten_to_the_matrix(backend, family):
    """The array of a kernel is that of the matrix it flattens to."""
    if backend.layout == "out_in":
        shape, flat = (6, 2, 1, 3), (6, 6)
    else:
        shape, flat = (1, 3, 2, 6), (6, 6)
    w = backend.sample(family, shape, seed=4)
    assert w.shape == shape
    assert (w.reshape(flat) == backend.sample(family, flat, seed=4)).all()


@pytest.mark.parametrize("n", [40, 300])
@pytest.mark.parametrize("determinant", [1, -1])
def test_determinant(backend, n, determinant):
    """The sign of the determinant is set, by the last column or not at all."""
    for seed in range(4):
        free = backend.sample("orthogonal", (n, n), seed=seed)
        w = backend.sample("orthogonal", (n, n), seed=seed, gain=0.5, determinant=determinant)
        assert np.linalg.slogdet(w.astype(np.float64))[0] == determinant
        sign = np.linalg.slogdet(free.astype(np.float64))[0]
        np.testing.assert_allclose(w[:, :-1], 0.5 * free[:, :-1], rtol=1e-6)
        np.testing.assert_allclose(w[:, -1], 0.5 * free[:, -1] * sign * determinant, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", [{"gain": 0.7}, {"spectral_norm": 0.9}])
def test_blocks(backend, family, axis, scale):
    """Block i is the array of its own shape whose key has i folded in: as jax.random.fold_in."""
    shape = (12, 4) if axis == 0 else (4, 12)
    w = backend.sample(family, shape, seed=3, blocks=(3, axis), **scale)
    if axis == (0 if backend.layout == "out_in" else 1):
        assert (w == backend.sample(family, shape, seed=3, blocks=3, **scale)).all()
    for i, block in enumerate(np.split(w, 3, axis)):
        high, low = np.asarray(
            jax.random.key_data(jax.random.fold_in(jax.random.key(3), i)), np.uint64
        )
        seed = int(high << np.uint64(32) | low)
        expected = BACKENDS["numpy"].sample(family, (4, 4), seed=seed, **scale)
        np.testing.assert_allclose(block, expected, atol=2e-5)


def test_blocks_of_convolutions(backend):
    """Grouped along the outputs: each group a matrix of its own."""
    shape = (8, 2, 3, 3) if backend.layout == "out_in" else (3, 3, 2, 8)
    w = backend.map(backend.sample("orthogonal", shape, seed=1, blocks=2)).astype(np.float64)
    for half in (w[:4], w[4:]):
        np.testing.assert_allclose(half @ half.T, np.eye(4), atol=1e-5)
    assert np.abs(w[:4] @ w[4:].T).max() > 1e-3


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_empty_shapes(backend, family, shape):
    if family in SQUARE:
        shape = (0, 0)
    assert backend.sample(family, shape, seed=0).shape == shape


def test_many_blocks_of_an_empty_array(backend):
    shape = (0, 4) if backend.layout == "out_in" else (4, 0)
    assert backend.sample("random", shape, seed=0, blocks=10**9).shape == shape


def test_a_zero_normal_counts_as_positive():
    """Sign 0 is +1, and an all-zero vector gives a reflection, not NaN."""
    g = np.array([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [4.0, 0.0, 0.0]])
    q = families.orthogonal(numpy_primitives.xp, g.copy())
    np.testing.assert_allclose(q, reference.orthogonal(g), atol=1e-14)
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-14)
    assert abs(q[0, 0]) < 1e-14


def test_one_by_one_orthogonal_is_the_sign():
    for seed in range(8):
        g = numpy_primitives.normals(seed, (1, 1), "float32")[:, :]
        assert BACKENDS["numpy"].sample("orthogonal", (1, 1), seed=seed) == np.sign(g)


def test_torch_generators(family):
    import deq_init.torch

    init = getattr(deq_init.torch, family + "_")
    w = [torch.empty(8, 8) for _ in range(4)]
    init(w[0], generator=torch.Generator().manual_seed(3))
    init(w[1], generator=torch.Generator().manual_seed(3))
    torch.manual_seed(5)
    init(w[2])
    torch.manual_seed(5)
    init(w[3])
    assert torch.equal(w[0], w[1])
    assert torch.equal(w[2], w[3])
    assert not torch.equal(w[0], w[2])


def test_torch_under_autocast(family):
    import deq_init.torch

    init = getattr(deq_init.torch, family + "_")
    expected = init(torch.empty(64, 64), seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(init(torch.empty(64, 64), seed=0), expected)


def test_torch_meta_tensors_are_left_alone(family):
    import deq_init.torch

    w = torch.empty(8, 8, device="meta")
    assert getattr(deq_init.torch, family + "_")(w) is w


def test_torch_parameters_and_strides(family):
    import deq_init.torch

    init = getattr(deq_init.torch, family + "_")
    expected = init(torch.empty(6, 6), seed=2)
    parameter = torch.nn.Parameter(torch.empty(6, 6))
    assert init(parameter, seed=2) is parameter
    assert parameter.requires_grad
    assert torch.equal(parameter, expected)
    assert torch.equal(init(torch.empty(6, 12)[:, ::2], seed=2), expected)
    assert torch.equal(init(torch.empty(6, 6).T, seed=2), expected)


def test_numpy_generators_and_fresh_entropy(family):
    import deq_init.numpy

    init = getattr(deq_init.numpy, family)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = init((5, 5), seed=np.random.default_rng(1))
    assert (first == init((5, 5), seed=np.random.default_rng(1))).all()
    assert (init((5, 5)) != init((5, 5))).any()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_jax_under_vmap_and_with_raw_keys(family):
    import deq_init.jax

    init = getattr(deq_init.jax, family)()
    keys = jax.random.split(jax.random.key(0), 3)
    batch = jax.vmap(lambda key: init(key, (6, 6)))(keys)
    for key, w in zip(keys, batch, strict=True):
        # vmap may order sums differently.
        np.testing.assert_allclose(w, init(key, (6, 6)), atol=1e-6)
    raw = init(jax.random.PRNGKey(7), (6, 6))
    assert (raw == init(jax.random.key(7), (6, 6))).all()
    abstract = jax.eval_shape(lambda key: init(key, (6, 6), "bfloat16"), keys[0])
    assert (abstract.shape, abstract.dtype.name) == ((6, 6), "bfloat16")


@pytest.mark.parametrize("scale", [{}, {"spectral_norm": 0.9}, {"spectral_radius": 0.9}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_jax_under_jit(family, scale, dtype):
    import deq_init.jax

    init = getattr(deq_init.jax, family)(**scale)
    with jax.enable_x64(dtype == "float64"):
        eager = init(jax.random.key(3), (20, 20), dtype)
        jitted = jax.jit(lambda key: init(key, (20, 20), dtype))(jax.random.key(3))
    assert jitted.dtype.name == dtype
    tolerance = 4 * EPSILON[dtype] if dtype in HALF else 40 * EPSILON[dtype]
    np.testing.assert_allclose(
        np.asarray(jitted, np.float64), np.asarray(eager, np.float64), atol=tolerance
    )
