"""Every formula of deq_init.theory against matrices from the sampler of each backend.

Matrices come from the backend's public initializer at gain 1, and are scaled, solved and decomposed
in NumPy. Each backend has seeds of its own, so that its numbers are not those of another.

``agrees`` compares means over independent draws by Student's t at a false-alarm rate of 1e-6 each,
beside an allowance for what the formula leaves out at this size, which each test states. Each test
also rejects a formula that is wrong, mostly that of another family: for GOE and antisymmetric
matrices that of random ones is the formula without Onsager's reaction term.
"""

import functools

import numpy as np
import pytest
import scipy.special
import scipy.stats

from deq_init import families, theory

import backends

N, DRAWS = 128, 24
SMALL, MANY = 32, 120
FALSE_ALARM = 1e-6
NAMES = ("numpy", "torch", "jax", "keras-tensorflow", "keras-jax", "keras-torch")


@functools.cache
def draws(name, family, n=N, count=DRAWS):
    """Matrices at gain 1, (count, n, n)."""
    backend, first = backends.BACKENDS[name], 10_000 * NAMES.index(name) + n
    sampled = (backend.sample(family, (n, n), first + i) for i in range(count))
    return np.array([backend.map(array) for array in sampled], dtype=np.float64)


def agrees(values, expected, relative):
    """Whether the mean of independent values is the expected one, give or take what is allowed."""
    quantile = scipy.stats.t(len(values) - 1).isf(FALSE_ALARM / 2)
    allowed = quantile * values.std(ddof=1) / len(values) ** 0.5 + relative * abs(expected)
    return abs(values.mean() - expected) < allowed


def inputs(n, count):
    """Normal quantiles in random orders, (n, count): inputs whose moments do not fluctuate."""
    x = scipy.special.ndtri((np.arange(n) + 0.5) / n)
    x /= np.sqrt((x**2).mean())
    return np.random.default_rng(0).permuted(np.tile(x, (count, 1)), axis=1).T


def solve(w, x, form, function=np.tanh, steps=300):
    """Return z and h, (k, n, inputs), and for which matrices plain iteration converges."""
    z = np.zeros((len(w), *x.shape))
    for _ in range(steps):
        h = w @ z + (x if form == "in" else 0)
        change = function(h) + (x if form == "out" else 0) - z
        done = np.abs(change).max((1, 2)) < 1e-7
        if done.all():
            break
        # What diverges is left where it is before it overflows.
        z += np.where(np.abs(z) < 1e9, change, 0)
    return z, h, done


def linear_formulas(family, gain):
    size = None if family == "random" else N
    return {
        "mean": theory.length_mean(family, gain, N),
        "variance": theory.length_relative_variance(family, gain, N),
        "gradient": theory.input_gradient_mean(family, gain, size),
    }


def test_linear_moments(backend, family):
    """Radius 0.7, all inputs of 24 matrices. Allowances are for the next order in 1/n.

    Means 20/n²; variance 10/n, that of random matrices 25/n (21/n is needed at this radius); the
    gradients of random matrices, whose 1/n term is not known, 20/n.
    """
    gain = 0.7 / families.get(family).radius_edge
    inverse = np.linalg.inv(np.eye(N) - gain * draws(backend.name, family))
    lengths = (inverse**2).sum(1)
    measured = {
        "mean": lengths.mean(1),
        "variance": ((lengths / lengths.mean() - 1) ** 2).mean(1),
        "gradient": ((inverse.swapaxes(1, 2) @ inverse) ** 2).sum((1, 2)) / N,
    }
    allowed = {
        "mean": 20 / N**2,
        "variance": (25 if family == "random" else 10) / N,
        "gradient": 20 / N if family == "random" else 20 / N**2,
    }
    expected = linear_formulas(family, gain)
    for name, values in measured.items():
        assert agrees(values, expected[name], allowed[name]), name
    wrong = linear_formulas("antisymmetric" if family == "random" else "random", gain)
    for name in measured:
        # Random and orthogonal means are equal in the limit.
        if (family, name) == ("orthogonal", "mean"):
            continue
        assert not agrees(measured[name], wrong[name], allowed[name]), name
    if family == "orthogonal":
        assert agrees(measured["variance"], theory.orthogonal_length_variance(gain, N), 0)


@pytest.mark.parametrize("family", ["random", "orthogonal"])
def test_exact_laws(backend, family):
    """One input's lengths have the quantiles: 120 matrices of size 32, Kolmogorov-Smirnov.

    A gain that is 15 % larger is rejected.
    """
    gain, p = 0.7, np.linspace(0.01, 0.99, 99)
    w = gain * draws(backend.name, family, SMALL, MANY)
    z = np.linalg.solve(np.eye(SMALL) - w, np.ones((SMALL, 1)))

    def pvalue(at):
        quantiles = theory.length_quantile(family, at, SMALL, p)
        levels = np.interp((z**2).mean((1, 2)), quantiles, p, 0, 1)
        return scipy.stats.kstest(levels, "uniform").pvalue

    assert pvalue(gain) > FALSE_ALARM
    assert pvalue(1.15 * gain) < FALSE_ALARM


@pytest.mark.parametrize("family", ["random", "orthogonal"])
def test_nonlinear_variance(backend, family):
    """Eight inputs of each of 120 matrices of size 32; allowance for the size 10 %.

    Rejected: the linear DEQ's variance, and half and twice the formula.
    """
    gain = 0.6
    z, _, done = solve(gain * draws(backend.name, family, SMALL, MANY), inputs(SMALL, 8), "out")
    assert done.all()
    lengths = (z**2).mean(1)
    values = ((lengths / lengths.mean() - 1) ** 2).mean(1)
    expected = theory.length_relative_variance(family, gain, SMALL, "tanh")
    assert agrees(values, expected, 0.1)
    for wrong in (
        theory.length_relative_variance(family, gain, SMALL), expected / 2, 2 * expected,
    ):  # fmt: skip
        assert not agrees(values, wrong, 0.1)


# Theory's part is the same for every backend.
critical_gain = functools.cache(theory.critical_gain)
gain_for = functools.cache(theory.gain_for)


@functools.cache
def mean_field_formulas(family, gain, form):
    found = theory.mean_field(family, gain, "tanh", form=form)
    return {
        "length": found.length,
        "preactivation": found.preactivation_variance,
        "adjoint": theory.adjoint_amplification(family, gain, "tanh", form=form),
        "norm": theory.jacobian_norm(family, gain, "tanh", form=form, n=N),
        "radius": theory.jacobian_spectral_radius(family, gain, "tanh", form=form),
    }


def spectral_radii(slope, w, symmetry):
    """Spectral radii of diag(slope) W for slopes > 0, (k,)."""
    if symmetry == 0:
        return np.abs(np.linalg.eigvals(slope[:, :, None] * w)).max(1)
    # Similar to a matrix of W's symmetry, whose radius is its norm.
    root = np.sqrt(slope)
    return spectral_norms(root[:, :, None] * w * root[:, None, :])


def spectral_norms(w):
    return np.linalg.eigvalsh(w @ w.swapaxes(1, 2))[:, -1] ** 0.5


@pytest.mark.parametrize(
    ("form", "target"), [("out", {"jacobian_norm": 0.8}), ("in", {"spectral_radius": 0.6})]
)
def test_mean_field(backend, family, form, target):
    """tanh at the gain that theory gives for a target: eight inputs of each of 12 matrices.

    Allowances for the size: 1.5 %, adjoint amplification 3 %. Radii are known to differ from the
    limit by 4 % (random, orthogonal: eigenvalues beyond the edge) and -3 % (the others), and a
    mean of four by 1.8 % from that: allowance 9 %.
    """
    symmetry = families.get(family).symmetry
    gain = gain_for(family, "tanh", form=form, **target)
    w = gain * draws(backend.name, family)[:12]
    z, h, done = solve(w, inputs(N, 8), form)
    assert done.all()
    slope = 1 - np.tanh(h[:, :, 0]) ** 2
    jacobian = slope[:, :, None] * w
    measured = {
        "length": (z**2).mean((1, 2)),
        "preactivation": (h**2).mean((1, 2)),
        "adjoint": (np.linalg.inv(np.eye(N) - jacobian) ** 2).sum((1, 2)) / N,
    }
    right = mean_field_formulas(family, gain, form)
    wrong = mean_field_formulas("random" if symmetry else "goe", gain, form)
    for name, values in measured.items():
        allowed = 0.03 if name == "adjoint" else 0.015
        assert agrees(values, right[name], allowed), name
        assert not agrees(values, wrong[name], allowed), name
    norms = spectral_norms(jacobian)
    assert agrees(norms, right["norm"], 0.015)
    assert not agrees(norms, 2 * gain, 0.015)  # without φ'
    radius = spectral_radii(slope[:4], w[:4], symmetry).mean()
    bias = 0.97 if symmetry else 1.04
    assert radius == pytest.approx(bias * right["radius"], rel=0.09)
    assert radius != pytest.approx(bias * wrong["radius"], rel=0.09)


def test_critical_gain(backend, family):
    """Plain iteration converges for four matrices at 0.75 times it, for none at 1.4 times.

    tanh, but relu for GOE, where tanh has no gain at which it stops.
    """
    activation, form, function = "tanh", "in", np.tanh
    if family == "goe":
        activation, form, function = "relu", "out", lambda h: np.maximum(h, 0)
    edge = critical_gain(family, activation, form=form)
    for factor, converges in ((0.75, True), (1.4, False)):
        w = factor * edge * draws(backend.name, family)[:4]
        *_, done = solve(w, inputs(N, 1), form, function)
        assert (done == converges).all()


def distance(values, line, density):
    """The largest distance of two distribution functions, in eigenvalues of one matrix."""
    law = np.cumsum(density) * (line[1] - line[0])
    return N * np.abs(np.searchsorted(np.sort(values.ravel()), line) / values.size - law).max()


def test_singular_values(backend, family):
    """Pooled over 24 matrices: within 4 singular values of the law; a gain 12 % off is not.

    Distances of single matrices are below 4.5 in thousands, with a mean below 2.8 and a standard
    deviation below 0.6; that of a pool is below their mean.
    """
    gain = 0.7
    w = gain * draws(backend.name, family)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(w @ w.swapaxes(1, 2)), 0))
    if family == "orthogonal":
        np.testing.assert_allclose(values, gain, rtol=1e-5)
        return
    line = np.linspace(0, 2.2 * gain, 4001)
    assert distance(values, line, theory.singular_value_density(family, gain, line)) < 4
    wrong = theory.singular_value_density(family, 1.12 * gain, line)
    assert distance(values, line, wrong) > 4


@pytest.mark.parametrize("family", ["goe", "antisymmetric"])
def test_eigenvalues_on_a_line(backend, family):
    """As for singular values, pooled over 8 matrices."""
    gain = 0.7
    w = gain * draws(backend.name, family)[:8]
    values = np.linalg.eigvalsh(w if family == "goe" else -1j * w)
    line = np.linspace(-2.2 * gain, 2.2 * gain, 4001)
    assert distance(values, line, theory.eigenvalue_density(family, gain, line)) < 4
    wrong = theory.eigenvalue_density(family, 1.12 * gain, line)
    assert distance(values, line, wrong) > 4


def test_eigenvalues_in_the_disc(backend):
    """Six matrices' moduli up to 0.8 of the edge: within 9 eigenvalues; a gain 12 % off is not.

    A single matrix's count within a circle has a standard deviation of 3.1, hence 1.3 for a mean
    of six; at this size the means lie 2 below the limit.
    """
    gain = 0.7
    values = np.abs(np.linalg.eigvals(gain * draws(backend.name, "random")[:6]))
    line = np.linspace(0, 0.8 * gain, 4001)
    for at, holds in ((gain, True), (1.12 * gain, False)):
        density = 2 * np.pi * line * theory.eigenvalue_density("random", at, line)
        assert (distance(values, line, density) < 9) == holds


def test_eigenvalues_on_the_circle(backend):
    """Six matrices' angles: within 3 eigenvalues; those of a QR without its sign fix are not."""
    gain = 0.7
    values = np.linalg.eigvals(gain * draws(backend.name, "orthogonal")[:6])
    np.testing.assert_allclose(np.abs(values), gain, rtol=1e-5)
    line = np.linspace(-np.pi, np.pi, 4001)
    density = theory.eigenvalue_density("orthogonal", gain, line)
    assert distance(np.angle(values), line, density) < 3
    normals = np.random.default_rng(0).standard_normal((6, N, N))
    wrong = np.linalg.eigvals(np.linalg.qr(normals)[0])
    assert distance(np.angle(wrong), line, density) > 3
