"""Norms from products with vectors: against LAPACK, on the families and on harder matrices."""

import jax
import numpy as np
import pytest
import torch

import deq_init.jax.iteration
import deq_init.numpy
import deq_init.torch.iteration
from deq_init import spectra
from deq_init.numpy import primitives as numpy_primitives

from backends import BACKENDS, EPSILON, FAMILIES, HALF

XP = {"torch": deq_init.torch.iteration.xp, "jax": deq_init.jax.iteration.xp}
TO = {"torch": torch.from_numpy, "jax": jax.numpy.asarray}


def norm(framework, w, symmetric=False, start=None):
    xp, to = XP[framework], TO[framework]
    if start is None:
        start = np.random.default_rng(5).standard_normal((1, w.shape[1])).astype(w.dtype)
    estimate = spectra.matrix_norm(xp, to(w), to(start), symmetric=symmetric)
    return spectra.Estimate(
        *(np.asarray(x) for x in (estimate.value, estimate.error, estimate.matvecs)),
        np.asarray(estimate.converged),
    )


def exact(w):
    return np.linalg.norm(w.astype(np.float64), 2)


@pytest.mark.parametrize("framework", XP)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 2, 20, 300])
def test_families(framework, family, n):
    """To 1e-6, converged, and below the norm by no more than the error estimate and rounding."""
    w = getattr(deq_init.numpy, family)((n, n), 0.7, seed=n)
    for symmetric in {False, family == "goe"}:
        estimate, truth = norm(framework, w, symmetric), exact(w)
        assert estimate.converged.all()
        assert abs(estimate.value[0] - truth) <= 2e-6 * truth
        assert estimate.value[0] >= truth - estimate.error[0] - 1e-6 * truth


@pytest.mark.parametrize("framework", XP)
@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (1, 7), (7, 1)])
def test_rectangles(framework, shape):
    w = deq_init.numpy.random(shape, seed=1)
    assert abs(norm(framework, w).value[0] / exact(w) - 1) < 2e-6


@pytest.mark.parametrize("framework", XP)
def test_float64_and_the_most_negative_eigenvalue(framework):
    w = deq_init.numpy.goe((120, 120), seed=2, dtype=np.float64) - 0.5 * np.eye(120)
    with jax.enable_x64(True):
        estimate = norm(framework, w, symmetric=True)
    assert abs(estimate.value[0] / exact(w) - 1) < 1e-13


@pytest.mark.parametrize("framework", XP)
def test_hard_matrices(framework):
    rng = np.random.default_rng(0)
    q = deq_init.numpy.orthogonal((400, 400), seed=3)
    clustered = (q * np.linspace(1, 1 - 1e-3, 400, dtype=np.float32)) @ q.T
    cases = {
        "zero": np.zeros((30, 30), np.float32),
        "rank one": np.outer(rng.standard_normal(300), rng.standard_normal(300)).astype("float32"),
        "diagonal": np.diag(np.arange(300, dtype=np.float32)),
        "clustered": clustered.astype(np.float32),
        "huge": deq_init.numpy.random((300, 300), seed=1) * np.float32(1e15),
        "tiny": deq_init.numpy.random((300, 300), seed=1) * np.float32(1e-12),
    }
    for name, w in cases.items():
        estimate, truth = norm(framework, w), exact(w)
        error = abs(estimate.value[0] - truth)
        assert error <= max(1e-5 * truth, estimate.error[0]), name
        assert estimate.converged[0] == (estimate.error[0] <= 1e-6 * estimate.value[0]), name


@pytest.mark.parametrize("framework", XP)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_entries_that_are_not_finite(framework, bad):
    w = deq_init.numpy.random((300, 300), seed=1)
    w[7, 3] = bad
    estimate = norm(framework, w)
    assert np.isnan(estimate.value[0])
    assert not estimate.converged[0]


@pytest.mark.parametrize("framework", XP)
def test_a_batch_is_as_its_members_and_one_of_them_may_fail(framework):
    xp, to = XP[framework], TO[framework]
    w = np.stack([deq_init.numpy.goe((60, 60), seed=seed) for seed in range(3)])
    w[1, 0, 0] = np.nan
    start = np.random.default_rng(1).standard_normal((3, 60)).astype(np.float32)
    each = to(w)
    estimate = spectra.symmetric_norm(
        xp, lambda x: (each @ x[:, :, None])[:, :, 0], to(start), rtol=1e-6, max_steps=60
    )
    values = np.asarray(estimate.value)
    assert np.isnan(values[1])
    for i in (0, 2):
        assert abs(values[i] / exact(w[i]) - 1) < 2e-6


@pytest.mark.parametrize("framework", XP)
def test_too_few_steps_are_reported(framework):
    xp, to = XP[framework], TO[framework]
    w = to(deq_init.numpy.goe((400, 400), seed=4))
    start = to(np.random.default_rng(2).standard_normal((1, 400)).astype(np.float32))
    estimate = spectra.symmetric_norm(xp, lambda x: x @ w, start, rtol=1e-6, max_steps=10)
    assert int(estimate.matvecs) == 10
    assert not bool(estimate.converged[0])
    truth = exact(np.asarray(w))
    short = truth - float(estimate.value[0])
    assert 0.001 < short < 3 * float(estimate.error[0])


def test_the_path_of_large_matrices_is_tested_above():
    assert 40 < spectra.WORTHWHILE <= 300


def test_numpy_falls_back_to_lapack():
    """ARPACK refuses a zero matrix: its starting vector vanishes."""
    assert numpy_primitives.xp.spectral_norm(np.zeros((300, 300), np.float32)) == 0
    assert numpy_primitives.xp.symmetric_norm(np.zeros((300, 300), np.float32)) == 0


@pytest.mark.parametrize("dtype", HALF)
def test_targets_hold_after_the_cast_to_half_precision(backend, dtype):
    """To a twentieth of the dtype's epsilon; without adjusting for the cast it is a third."""
    shape = (256, 256)
    w = backend.sample("orthogonal", shape, seed=3, dtype=dtype, spectral_norm=0.9)
    assert abs(exact(w) / 0.9 - 1) < EPSILON[dtype] / 20
    unadjusted = BACKENDS["numpy"].sample("orthogonal", shape, seed=3, spectral_norm=0.9)
    assert abs(exact(unadjusted.astype(w.dtype)) / 0.9 - 1) > EPSILON[dtype] / 5
    gone = backend.sample("orthogonal", (8, 8), seed=3, dtype=dtype, spectral_norm=0.0)
    assert (gone == 0).all()
