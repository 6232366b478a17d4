"""The field of normals: bits as JAX lays them out, values as the inverse normal CDF."""

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from deq_init import draws
from deq_init.errors import SeedError
from deq_init.numpy import primitives as numpy_primitives
from deq_init.torch import primitives as torch_primitives

TORCH = torch_primitives.Primitives(torch.device("cpu"))


def normals(seed, shape, dtype):
    return numpy_primitives.normals(seed, shape, dtype)[:, :]


# Known answers of threefry2x32-20 published with Random123 (file kat_vectors).
KNOWN = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "expected"), KNOWN)
def test_threefry_known_answers(key, counter, expected):
    words = [np.array([word], np.uint32) for word in counter]
    got = draws.threefry2x32(numpy_primitives.xp, key, *words)
    assert tuple(int(word[0]) for word in got) == expected
    words = [torch.tensor([word]) for word in counter]
    assert tuple(int(word[0]) for word in draws.threefry2x32(TORCH, key, *words)) == expected


@given(seed=st.integers(0, 2**32 - 1), count=st.sampled_from([1, 2, 255, 300]))
def test_bits_equal_jax(seed, count):
    expected = np.asarray(jax.random.bits(jax.random.key(seed), (count,)))
    for xp in (numpy_primitives.xp, TORCH):
        a, b = draws.threefry2x32(
            xp, draws.key_from_seed(seed), *xp.counters(range(1), range(count), 0)
        )
        assert (np.asarray(a ^ b).astype(np.uint32)[0] == expected).all()


@given(seed=st.integers(0, 2**63 - 1))
def test_64_bit_seeds_and_words_equal_jax(seed):
    with jax.enable_x64(True):
        key = jax.random.key(seed)
        expected = np.asarray(jax.random.bits(key, (50,), np.uint64))
        assert draws.key_from_seed(seed) == tuple(np.asarray(jax.random.key_data(key)).tolist())
    xp = numpy_primitives.xp
    a, b = draws.threefry2x32(xp, draws.key_from_seed(seed), *xp.counters(range(1), range(50), 0))
    assert ((a.astype(np.uint64) << np.uint64(32) | b)[0] == expected).all()


@given(seed=st.integers(0, 2**32 - 1), index=st.integers(0, 2**32 - 1))
def test_fold_in_equals_jax(seed, index):
    expected = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), index))
    got = draws.fold_in(draws.key_from_seed(seed), index)
    assert got == tuple(np.asarray(expected).tolist())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_normals_equal_jax(dtype, tolerance, seed):
    with jax.enable_x64(dtype == "float64"):
        expected = np.asarray(jax.random.normal(jax.random.key(seed), (257, 65), dtype))
    got = normals(seed, (257, 65), dtype)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normals_are_the_inverse_cdf_of_the_bits(dtype):
    """Against the uniform numbers of jax.random.uniform, which share the bits."""
    with jax.enable_x64(dtype == "float64"):
        low = np.nextafter(np.array(-1, dtype), np.array(0, dtype))
        u = jax.random.uniform(jax.random.key(3), (1000,), dtype, low, 1.0)
    expected = scipy.special.ndtri((np.asarray(u, np.float64) + 1) / 2)
    got = normals(3, (1, 1000), dtype)[0]
    # Near u = -1, (u + 1) / 2 keeps few digits in float64: hence the looser bound there.
    np.testing.assert_allclose(got, expected, rtol=1e-6 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_words_give_numpys_normals(dtype):
    got = draws.normals(TORCH, draws.key_from_seed(9), range(1), range(100_000), 0, dtype).numpy()[
        0
    ]
    expected = normals(9, (1, 100_000), dtype)[0]
    np.testing.assert_allclose(got, expected, rtol=2e-7 if dtype == "float32" else 1e-12)


@given(
    rows=st.tuples(st.integers(0, 60), st.integers(0, 60)),
    columns=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_a_region_is_a_slice_of_the_field(rows, columns):
    field = numpy_primitives.normals(5, (60, 40), "float32")
    region = slice(*sorted(rows)), slice(*sorted(columns))
    assert (field[region] == field[:, :][region]).all()


def test_large_fields_are_drawn_in_threads_and_alike():
    field = numpy_primitives.normals(6, (1000, 600), "float32")
    whole = field[:, :]
    assert whole.size >= numpy_primitives._PARALLEL
    for row in (0, 333, 999):
        assert (whole[row] == field[row : row + 1, :][0]).all()


@pytest.mark.parametrize("shape", [(1, 1), (40, 30), (30, 40), (300, 200), (1200, 900), (5, 0)])
@pytest.mark.parametrize("lower", [True, False])
def test_half_a_field_is_the_same_field(shape, lower):
    field = numpy_primitives.normals(6, shape, "float32")
    cut = np.tril if lower else np.triu
    assert (cut(field.trapezoid(lower)) == cut(field[:, :])).all()


def test_counters_beyond_32_bits():
    """Entry (3, 7) of a field of 2**33 columns has counter 3 · 2**33 + 7."""
    for xp in (numpy_primitives.xp, TORCH):
        high, low = xp.counters(range(3, 4), range(7, 8), 2**33)
        assert (int(high[0, 0]), int(low[0, 0])) == (6, 7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normals_are_normal(dtype):
    """Law: standard normal entries. 2**18 of them, Kolmogorov-Smirnov, false alarms 1e-6."""
    g = normals(2024, (512, 512), dtype).ravel()
    assert scipy.stats.kstest(g, "norm").pvalue > 1e-6
    shifted = g + 0.02
    assert scipy.stats.kstest(shifted, "norm").pvalue < 1e-6


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0", True, np.array([1, 2])])
def test_bad_seeds(seed):
    with pytest.raises(SeedError, match=r"expected seed to be an integer in \[0, 2\*\*64\)"):
        draws.key_from_seed(seed)


def test_fresh_entropy():
    assert draws.key_from_seed(None) != draws.key_from_seed(None)
