"""Scales: targets are hit, two at once are an error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deq_init import scale
from deq_init.errors import ScaleError

import reference
from backends import BACKENDS, EPSILON, FAMILIES

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
