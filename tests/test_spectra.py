"""Norms from products with vectors: against LAPACK, on the families and on harder matrices."""

import jax
import numpy as np
import pytest
import torch

import deq_init.jax.iteration
import deq_init.numpy
import deq_init.numpy.iteration
import deq_init.torch.iteration
from deq_init import spectra
from deq_init.numpy import primitives as numpy_primitives

from backends import BACKENDS, EPSILON, FAMILIES, HALF

XP = {
    "torch": deq_init.torch.iteration.xp,
    "jax": deq_init.jax.iteration.xp,
    "numpy": deq_init.numpy.iteration.xp,
}
TO = {"torch": torch.from_numpy, "jax": jax.numpy.asarray, "numpy": np.array}


def norm(framework, w, symmetric=False, start=None):
    xp, to = XP[framework], TO[framework]
    if start is None:
        start = np.random.default_rng(5).standard_normal((1, w.shape[1])).astype(w.dtype)
    estimate = spectra.matrix_norm(xp, to(w), to(start), symmetric=symmetric)
    return spectra.Estimate(
        *(np.asarray(x) for x in (estimate.value, estimate.error, estimate.matvecs)),
        np.asarray(estimate.converged),
    )


def radius(framework, w):
    xp, to = XP[framework], TO[framework]
    start = np.random.default_rng(5).standard_normal((1, len(w))).astype(w.dtype)
    estimate = spectra.matrix_radius(xp, to(w), to(start), compiled=framework == "jax")
    return (
        float(estimate.value[0]),
        float(estimate.error[0]),
        int(estimate.matvecs),
        bool(estimate.converged[0]),
    )


def largest_eigenvalue(w):
    return np.abs(np.linalg.eigvals(w.astype(np.float64))).max()


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


@pytest.mark.parametrize("framework", XP)
def test_radius_of_random_matrices(framework):
    """To 1e-6 in far fewer products than columns; float32 eigenvalues in JAX are off by more."""
    w = deq_init.numpy.random((512, 512), 0.7, seed=1)
    value, error, products, converged = radius(framework, w)
    assert converged
    assert error <= 1e-5 * value
    assert abs(value / largest_eigenvalue(w) - 1) < (1e-5 if framework == "jax" else 1e-6)
    assert products < 256


def test_radius_in_float64():
    w = deq_init.numpy.random((300, 300), seed=2, dtype=np.float64)
    value, _, products, converged = radius("numpy", w)
    assert converged
    assert products < 300
    assert abs(value / largest_eigenvalue(w) - 1) < 1e-11


@pytest.mark.parametrize("framework", ["torch", "numpy"])
def test_radius_is_right_wherever_it_converged(framework):
    """Or reported as not found: clusters, pairs, outliers and ill-conditioned eigenvalues."""
    rng = np.random.default_rng(0)
    n = 200
    w = deq_init.numpy.random((n, n), seed=3)
    q = deq_init.numpy.orthogonal((n, n), seed=4)
    moduli = np.concatenate([np.ones(4), np.linspace(0.9999, 0.1, n - 4)]).astype(np.float32)
    outlier = w + 3 * np.outer(rng.standard_normal(n), rng.standard_normal(n)) / n
    cases = {
        "orthogonal": (q, False),
        "goe": (deq_init.numpy.goe((n, n), seed=5), True),
        "outlier": (outlier.astype(np.float32), True),
        "rank one": (np.outer(q[0], q[0] + q[1]).astype(np.float32), True),
        "clustered": ((q * moduli) @ q.T, None),
        "triangular": (np.triu(w) * 3, False),
        "nilpotent": (np.diag(np.ones(n - 1, np.float32), 1), False),
        "huge": (w * np.float32(1e15), True),
        "tiny": (w * np.float32(1e-12), True),
        "zero": (np.zeros((n, n), np.float32), None),
    }
    for name, (matrix, expected) in cases.items():
        value, _, _, converged = radius(framework, matrix)
        truth = largest_eigenvalue(matrix)
        assert expected in (None, converged), name
        assert not converged or abs(value - truth) <= 1e-5 * truth, name


def test_radius_of_what_is_not_finite():
    w = deq_init.numpy.random((300, 300), seed=1)
    w[7, 3] = np.nan
    for framework in ("torch", "numpy"):
        value, _, _, converged = radius(framework, w)
        assert np.isnan(value)
        assert not converged


def test_an_eigenvalue_about_to_be_overtaken_has_not_converged():
    """Two looks agree on 1.0; the margin waits for what turns out to be 1.002."""
    blocks = np.diag(np.full(200, 0.99, np.float32) - np.linspace(0, 0.9, 200, dtype=np.float32))
    blocks[0, 0], blocks[1, 1] = 1.0, 1.002
    start = np.random.default_rng(0).standard_normal((1, 200)).astype(np.float32)
    start[0, 1] = 1e-6
    found = {
        margin: spectra.spectral_radius(
            XP["numpy"], lambda x: x @ blocks, start, rtol=1e-3, max_steps=200, margin=margin
        )
        for margin in (1e-5, 0.05)
    }
    assert found[1e-5].converged[0]
    assert abs(found[1e-5].value[0] - 1.0) < 1e-4
    assert found[0.05].converged[0]
    assert abs(found[0.05].value[0] - 1.002) < 1e-4


def test_a_matrix_waits_for_all_within_a_hundredth_of_the_largest_eigenvalue():
    """1.0 stands still from 29 products to 78, when 1.002, hardly in the start, is near 0.99."""
    diagonal = np.linspace(0.98, 0, 200, dtype=np.float32)
    diagonal[:2] = 1.0, 1.002
    start = np.random.default_rng(0).standard_normal((1, 200)).astype(np.float32)
    start[0, :2] = 30, 1e-10
    found = spectra.matrix_radius(XP["numpy"], np.diag(diagonal), start)
    assert not found.converged[0] or abs(found.value[0] - 1.002) < 1e-5


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_radius_target_of_a_large_matrix(framework):
    """To 1e-6, as LAPACK in float64 sees it."""
    backend, n = BACKENDS[framework], spectra.RADIUS_WORTHWHILE
    w = backend.sample("random", (n, n), seed=6, spectral_radius=0.9)
    assert abs(largest_eigenvalue(w) / 0.9 - 1) < 1e-6


@pytest.mark.parametrize(
    ("framework", "family"),
    [("jax", "random"), *((name, family) for name in ("numpy", "torch") for family in FAMILIES)],
)
def test_norm_targets_are_not_overshot(framework, family):
    """By more than 2e-6: a Ritz value is a lower bound, so scaling by it errs upwards."""
    shape = (spectra.WORTHWHILE, spectra.WORTHWHILE)
    for seed in range(3):
        w = BACKENDS[framework].sample(family, shape, seed=seed, spectral_norm=0.9)
        assert abs(exact(w) / 0.9 - 1) < 2e-6
