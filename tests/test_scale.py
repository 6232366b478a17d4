"""Scales: targets are hit, two at once are an error."""

import contextlib

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import deq_init.jax
import deq_init.torch
from deq_init import scale
from deq_init.errors import ScaleError

import reference
from backends import BACKENDS, EPSILON, FAMILIES, HALF

sizes = st.sampled_from([1, 2, 7, 40])
targets = st.floats(0.05, 5.0)
seeds = st.integers(0, 2**32 - 1)
RTOL = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-5, "float64": 1e-12}


@pytest.mark.parametrize("kind", ["spectral_norm", "spectral_radius"])
@given(n=sizes, seed=seeds, target=targets, dtype=st.sampled_from(list(EPSILON)))
def test_targets_are_hit(backend, family, kind, n, seed, target, dtype):
    if family == "antisymmetric" and n == 1:
        with pytest.raises(ScaleError, match="expected a gain for an antisymmetric matrix of one"):
            backend.sample(family, (n, n), **{kind: target})
        return
    w = backend.sample(family, (n, n), seed=seed, dtype=dtype, **{kind: target})
    got = getattr(reference, kind)(w)
    assert got == pytest.approx(target, rel=RTOL[dtype])


@given(rows=sizes, columns=sizes, seed=seeds, target=targets)
def test_spectral_norm_of_rectangles(backend, rows, columns, seed, target):
    for family in ("random", "orthogonal"):
        w = backend.sample(family, (rows, columns), seed=seed, spectral_norm=target)
        assert reference.spectral_norm(w) == pytest.approx(target, rel=1e-5)


@pytest.mark.parametrize("kind", ["spectral_norm", "spectral_radius"])
def test_a_target_changes_the_scale_and_nothing_else(backend, family, kind):
    w = backend.sample(family, (12, 12), seed=3, **{kind: 0.7}).astype(np.float64)
    unit = backend.sample(family, (12, 12), seed=3).astype(np.float64)
    factor = w[0, 1] / unit[0, 1]
    np.testing.assert_allclose(w, factor * unit, rtol=1e-5, atol=1e-9)
    assert factor > 0


@pytest.mark.parametrize("kind", ["spectral_norm", "spectral_radius"])
@given(n=sizes, target=targets, dtype=st.sampled_from(["float32", "float64"]))
def test_rescale(kind, n, target, dtype):
    w = np.random.default_rng(n).standard_normal((n, n)).astype(dtype)
    for backend in BACKENDS.values():
        if backend.rescale is None:
            continue
        before = w.copy()
        got = backend.rescale(w, **{kind: target})
        assert (w == before).all()
        assert got.dtype == w.dtype
        assert getattr(reference, kind)(got) == pytest.approx(target, rel=RTOL[dtype])


def test_large_matrices_hit_their_target():
    for family in FAMILIES:
        w = BACKENDS["numpy"].sample(family, (400, 400), seed=1, spectral_norm=0.9)
        assert reference.spectral_norm(w) == pytest.approx(0.9, rel=1e-5)


@pytest.mark.parametrize("kind", ["spectral_norm", "spectral_radius"])
def test_rescaling_an_empty_matrix_leaves_it(kind):
    for backend in BACKENDS.values():
        if backend.rescale is not None:
            assert backend.rescale(np.empty((0, 0), np.float32), **{kind: 1.0}).shape == (0, 0)


def test_gain_edges(backend):
    """Norm edges 2, 1, 2 and radius edges 1, 1, 2 times the gain, as n grows.

    At n = 300 the deviations have standard deviation below 0.02 (norms) and 0.03 (radii): bands
    of 0.15 are five of them, and the edges differ by factors of 2.
    """
    edges = {"random": (2, 1), "orthogonal": (1, 1), "goe": (2, 2), "antisymmetric": (2, 2)}
    for family, (norm, radius) in edges.items():
        w = backend.sample(family, (300, 300), seed=11, gain=0.5)
        assert reference.spectral_norm(w) == pytest.approx(0.5 * norm, abs=0.075 * norm)
        assert reference.spectral_radius(w) == pytest.approx(0.5 * radius, abs=0.075 * radius)


def test_the_default_gain_can_be_told_from_one_that_was_given():
    assert scale.resolve() == scale.Scale("gain", 1.0)
    assert scale.resolve(spectral_norm=0.5) == scale.Scale("spectral_norm", 0.5)
    with pytest.raises(ScaleError, match=r"received gain=1\.0, spectral_norm=0\.5"):
        scale.resolve(1.0, spectral_norm=0.5)


# Half precision


@pytest.mark.parametrize(("dtype", "rtol"), [("bfloat16", 5e-4), ("float16", 5e-5)])
@pytest.mark.parametrize(("kind", "n"), [("spectral_norm", 64), ("spectral_radius", 200)])
def test_orthogonal_matrices_keep_their_target_in_half_precision(backend, kind, n, dtype, rtol):
    """Rounding alone moves it by 2e-3 and 2e-4, for most of the entries round up, or down."""
    for seed in range(2):
        w = backend.sample("orthogonal", (n, n), seed=seed, dtype=dtype, **{kind: 0.9})
        assert getattr(reference, kind)(w) == pytest.approx(0.9, rel=rtol)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("n", [2, 8, 32])
def test_the_better_one_of_rounding_and_its_correction_is_kept(backend, family, n, dtype):
    """Against both, made from the float32 matrix, up to what float32 changes in few roundings."""
    for target in (0.9, 3e-3):
        wide = backend.sample(family, (n, n), seed=n, spectral_norm=target).astype(np.float64)
        half = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16

        def rounded(w, half=half):
            return w.astype(np.float32).astype(half)

        plain = rounded(wide)
        corrected = rounded(wide * (target / reference.spectral_norm(plain)))
        errors = [abs(reference.spectral_norm(w) / target - 1) for w in (plain, corrected)]
        w = backend.sample(family, (n, n), seed=n, dtype=dtype, spectral_norm=target)
        assert abs(reference.spectral_norm(w) / target - 1) <= min(errors) + 2e-6


def test_rescale_keeps_the_target_in_half_precision():
    w = BACKENDS["numpy"].sample("orthogonal", (64, 64), seed=3).astype(np.float16)
    for backend in BACKENDS.values():
        if backend.rescale is not None:
            got = backend.rescale(w, spectral_norm=0.9)
            assert got.dtype == np.float16
            assert reference.spectral_norm(got) == pytest.approx(0.9, rel=5e-5)


# Beyond what a dtype holds


@pytest.mark.parametrize("kind", ["spectral_norm", "spectral_radius"])
@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [("float32", -100), ("float32", 110), ("float64", -990), ("float64", 990)],
)
def test_rescale_of_very_small_and_large_matrices(kind, dtype, exponent):
    """w times a power of two, which is exact, is rescaled to what w is."""
    w = np.random.default_rng(0).standard_normal((24, 24)).astype(dtype)
    expected = w * (0.9 / getattr(reference, kind)(w))
    scaled = np.ldexp(w, exponent)
    for backend in BACKENDS.values():
        if backend.rescale is not None:
            got = backend.rescale(scaled, **{kind: 0.9})
            np.testing.assert_allclose(got, expected, rtol=1e-5 if dtype == "float32" else 1e-11)
    with jax.enable_x64(dtype == "float64"):
        got = jax.jit(lambda w: deq_init.jax.rescale(w, **{kind: 0.9}))(scaled)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("exponent", [-90, 90])
def test_rescale_of_very_small_and_large_matrices_that_are_not_decomposed(exponent):
    """ARPACK's products with WᵀW are beyond float32."""
    w = np.random.default_rng(0).standard_normal((260, 260)).astype(np.float32)
    expected = w * (0.9 / reference.spectral_norm(w))
    for name in ("numpy", "torch"):
        got = BACKENDS[name].rescale(np.ldexp(w, exponent), spectral_norm=0.9)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_rescale_where_norm_and_target_are_far_apart():
    """The factor 1e42 is no float32, the result is one."""
    for backend in BACKENDS.values():
        if backend.rescale is not None:
            got = backend.rescale(np.diag([4e-32, 2e-32]).astype(np.float32), spectral_norm=1e10)
            np.testing.assert_allclose(got, np.diag([1e10, 5e9]), rtol=1e-5)


LARGEST = {
    "float16": np.finfo(np.float16).max,
    "bfloat16": ml_dtypes.finfo(ml_dtypes.bfloat16).max,
    "float32": np.finfo(np.float32).max,
    "float64": np.finfo(np.float64).max,
}


def test_the_largest_numbers():
    assert {name: float(value) for name, value in LARGEST.items()} == scale.LARGEST


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["gain", "spectral_norm", "spectral_radius"])
def test_a_scale_beyond_the_dtype_is_an_error_that_names_both(backend, family, kind, dtype):
    largest = float(LARGEST[dtype])
    with pytest.raises(ScaleError, match=rf"{kind}.*in {dtype}, whose largest number is"):
        backend.sample(family, (8, 8), dtype=dtype, **{kind: 1.01 * largest})
    with pytest.raises(ScaleError, match=f"{kind} to be 0, or at least .*in {dtype}"):
        backend.sample(family, (8, 8), dtype=dtype, **{kind: 1e-7 if dtype == "float16" else 1e-39})
    w = backend.sample(family, (8, 8), dtype=dtype, **{kind: largest / 16})
    assert np.isfinite(w.astype(np.float64)).all()
    assert not backend.sample(family, (8, 8), dtype=dtype, **{kind: 0.0}).any()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rescaling_beyond_the_dtype_is_an_error_and_changes_nothing(dtype):
    shear = np.array([[1, 1e4], [0, 1]], dtype)  # of radius 1, and of larger entries
    most = float(LARGEST[dtype])
    for backend in BACKENDS.values():
        if backend.rescale is not None:
            with pytest.raises(ScaleError, match=f"at most .*in {dtype}, whose largest number"):
                backend.rescale(shear, spectral_norm=1.01 * most)
            with pytest.raises(ScaleError, match=f"in {dtype} can have"):
                backend.rescale(shear, spectral_radius=most / 100)
    for options in ({"spectral_norm": 1.01 * most}, {"spectral_radius": most / 100}):
        w = torch.from_numpy(shear.copy())
        with contextlib.suppress(ScaleError):
            deq_init.torch.rescale_(w, **options)
        np.testing.assert_array_equal(w, shear)


def test_a_radius_that_fits_of_entries_that_do_not(backend):
    """Its 2 x 2 matrix has entries of more than twice the radius."""
    wide = backend.sample("random", (2, 2), seed=0, spectral_radius=3e4)
    assert np.abs(wide).max() > LARGEST["float16"]
    with pytest.raises(ScaleError, match="in float16 can have"):
        backend.sample("random", (2, 2), seed=0, dtype="float16", spectral_radius=3e4)


def test_a_model_with_a_weight_that_cannot_hold_the_scale_is_left_as_it_is():
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4, dtype=torch.float16)}
    )
    before = model["a"].weight.clone()
    with pytest.raises(ScaleError, match=r"b\.weight: .*float16"):
        deq_init.torch.initialize_(model, "random", spectral_norm=1e6)
    assert torch.equal(model["a"].weight, before)


@pytest.mark.parametrize(
    "value",
    [b"0.5", bytearray(b"1"), np.array([0.5]), np.array(True), torch.tensor(True),
     torch.tensor(0.5j), True, "1"],
)  # fmt: skip
def test_what_is_no_number_is_no_scale(value):
    with pytest.raises(ScaleError, match="expected gain to be a finite number"):
        scale.resolve(value)
