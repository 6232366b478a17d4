"""The linear DEQ and spectra: formulas against simulation with the sampler and published values.

The reference values are Monte-Carlo means with their standard errors, and exact finite-n moments,
obtained with code that shares nothing with this package (n = 200).
"""

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

import deq_init.numpy
from deq_init import families, theory
from deq_init.errors import FamilyError, ScaleError

# family, V, mean of q: Monte Carlo and its standard error, theory with the 1/n term where known
MEANS = [
    ("random", 0.25, 1.3391, 0.0004, None),
    ("random", 0.49, 1.9998, 0.0015, None),
    ("orthogonal", 0.25, 1.3378, 0.0003, 1.33778),
    ("orthogonal", 0.64, 2.8289, 0.0019, 2.82716),
    ("orthogonal", 0.9025, 11.252, 0.030, 11.2058),
    ("goe", 0.0625, 1.2392, 0.0002, 1.2393),
    ("goe", 0.1225, 1.6411, 0.0006, 1.6413),
    ("goe", 0.16, 2.1040, 0.0013, 2.1034),
]


@pytest.mark.parametrize(("family", "v", "simulated", "error", "corrected"), MEANS)
def test_mean(family, v, simulated, error, corrected):
    got = theory.length_mean(family, v**0.5, n=200)
    assert abs(got - simulated) < 5 * error
    if corrected is not None:
        digits = len(str(corrected).split(".")[1])
        assert got == pytest.approx(corrected, abs=1.01 * 10.0**-digits)


@pytest.mark.parametrize(
    ("family", "v", "n", "leading"),
    [
        ("random", 0.25, 10**9, 1.556),
        ("random", 0.49, 10**9, 5.689),
        ("random", 0.64, 10**9, 13.43),
        ("orthogonal", 0.25, 10**9, 1.3333),
        ("orthogonal", 0.64, 10**9, 7.111),
        ("orthogonal", 0.9025, 10**9, 37.03),
        ("goe", 0.0625, 200, 0.6737),
        ("goe", 0.1225, 200, 2.014),
        ("goe", 0.16, 200, 3.887),
        ("goe", 0.2025, 200, 10.34),
    ],
)
def test_relative_variance(family, v, n, leading):
    assert n * theory.length_relative_variance(family, v**0.5, n) == pytest.approx(
        leading, rel=5e-4
    )


@pytest.mark.parametrize(("v", "expected"), [(0.25, 1.33539), (0.64, 7.1663), (0.9025, 38.11)])
def test_orthogonal_variance_is_exact(v, expected):
    assert 200 * theory.orthogonal_length_variance(v**0.5, 200) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gain", [0.3, 0.7])
def test_orthogonal_moments_are_those_of_its_law(gain):
    """Moments in closed form against the density of t integrated numerically."""
    n, r = 50, gain

    def integrand(t, k):
        density = (1 - t * t) ** ((n - 3) / 2) * (1 - r * t) * (1 - 2 * r * t + r * r) ** (-n / 2)
        return density * (1 - 2 * r * t + r * r) ** -k

    moment = [scipy.integrate.quad(integrand, -1, 1, args=(k,))[0] for k in range(3)]
    mean, second = moment[1] / moment[0], moment[2] / moment[0]
    assert theory.length_mean("orthogonal", gain, n) == pytest.approx(mean, rel=1e-8)
    assert theory.orthogonal_length_variance(gain, n) == pytest.approx(
        second / mean**2 - 1, rel=1e-6
    )


@pytest.mark.parametrize(
    ("family", "gain"), [("random", 0.5), ("random", 0.7), ("orthogonal", 0.9)]
)
def test_quantiles_are_those_of_the_sampler(family, gain):
    """Law: exact quantiles. 400 draws at n = 40, Kolmogorov-Smirnov, false alarms 1e-6.

    The distance at which the test fails, 0.137, is seven times the grid that the law is
    interpolated on. A gain off by 10 % moves the median by more than that.
    """
    n, p = 40, np.linspace(0.01, 0.99, 99)
    quantiles = theory.length_quantile(family, gain, n, p)
    init = getattr(deq_init.numpy, family)

    def measured(at):
        w = (init((n, n), at, seed=seed, dtype=np.float64) for seed in range(400))
        z = (np.linalg.solve(np.eye(n) - matrix, np.ones(n)) for matrix in w)
        return np.interp([(solution**2).mean() for solution in z], quantiles, p, 0, 1)

    assert scipy.stats.kstest(measured(gain), "uniform").pvalue > 1e-6
    assert scipy.stats.kstest(measured(1.1 * gain), "uniform").pvalue < 1e-6


@pytest.mark.parametrize(
    ("gain", "n", "draws"), [(0.9, 3, 40_000), (0.9, 10, 20_000), (0.99, 30, 10_000)]
)
def test_quantiles_of_random_are_exact_near_the_edge(gain, n, draws):
    """Matrices of NumPy's own generator, Kolmogorov-Smirnov, false alarms 1e-6.

    The distance at which the test fails is 0.014 to 0.027. A law without the draws that have an
    eigenvalue beyond 1, nor the sign of the determinant, is 0.05 to 0.12 away.
    """
    p = np.linspace(0.005, 0.995, 199)
    quantiles = theory.length_quantile("random", gain, n, p)
    normals = np.random.default_rng(n).standard_normal((draws, n, n))
    z = np.linalg.solve(np.eye(n) - gain / n**0.5 * normals, np.ones((draws, n, 1)))
    levels = np.interp((z**2).mean((1, 2)), quantiles, p)
    # Interpolated between 0.005 and 0.995: ends count as ties there.
    distance = np.abs((np.sort(levels)[None] <= p[:, None]).mean(1) - p).max()
    assert distance < scipy.stats.kstwo(draws).isf(1e-6)


@pytest.mark.parametrize(
    ("family", "gain"),
    [("antisymmetric", 0.5), ("antisymmetric", 2.0), ("goe", 0.3), ("orthogonal", 0.6)],
)
@pytest.mark.parametrize("n", [80, 81])
def test_moments_of_the_sampler(family, gain, n):
    """Means over 200 matrices with their 1/n terms, to 6 standard errors and 5/n² of the mean.

    The 1/n term of the mean is 15 to 60 standard errors for antisymmetric, so that its sign or
    factor cannot be wrong. The variance over matrices and inputs, to 10 %.
    """
    init = getattr(deq_init.numpy, family)
    inverses = [
        np.linalg.inv(np.eye(n) - init((n, n), gain, seed=seed, dtype=np.float64))
        for seed in range(200)
    ]
    lengths = np.array([(inverse**2).sum(0) for inverse in inverses])
    gradients = np.array([((inverse.T @ inverse) ** 2).sum() / n for inverse in inverses])
    for values, expected in (
        (lengths.mean(1), theory.length_mean(family, gain, n)),
        (gradients, theory.input_gradient_mean(family, gain, n)),
    ):
        allowed = 6 * values.std(ddof=1) / 200**0.5 + 5 / n**2 * expected
        assert abs(values.mean() - expected) < allowed
    measured = lengths.var() / lengths.mean() ** 2
    assert measured == pytest.approx(theory.length_relative_variance(family, gain, n), rel=0.1)


def test_adjoint_moment_of_random():
    """Simulated means with their standard error at n = 200, whose 1/n terms are not known."""
    for v, simulated, error, leading in ((0.25, 3.216, 0.003, 3.160), (0.49, 16.32, 0.06, 14.78)):
        mean = theory.input_gradient_mean("random", v**0.5)
        assert mean == pytest.approx(leading, abs=6e-3)
        assert mean < simulated - 5 * error < 1.15 * mean


@pytest.mark.parametrize("family", ["goe", "antisymmetric"])
@pytest.mark.parametrize("k", [1, 2])
def test_moments_are_those_of_the_density(family, k):
    """Mean and gradient mean by integrals over the semicircle."""
    v = 0.2
    edge = 2 * v**0.5

    def integrand(x):
        distance = (1 - x) ** 2 if family == "goe" else 1 + x * x
        return theory.eigenvalue_density(family, v**0.5, x) / distance**k

    function = (theory.length_mean, theory.input_gradient_mean)[k - 1]
    integral = scipy.integrate.quad(integrand, -edge, edge)[0]
    assert function(family, v**0.5) == pytest.approx(integral, rel=1e-6)


def test_eigenvalues_of_the_sampler():
    """Size 256, one matrix. Distances in eigenvalues: 8 is 2.7 times the largest median known."""
    n, gain = 256, 0.7
    line = np.linspace(-2 * gain, 2 * gain, 4001)
    for family in ("goe", "antisymmetric"):
        w = getattr(deq_init.numpy, family)((n, n), gain, seed=1, dtype=np.float64)
        values = np.linalg.eigvalsh(w if family == "goe" else 1j * w)
        law = np.cumsum(theory.eigenvalue_density(family, gain, line)) * (line[1] - line[0])
        assert law[-1] == pytest.approx(1, abs=1e-4)
        distance = np.abs(np.interp(values, line, law) - (np.arange(n) + 0.5) / n).max()
        assert n * distance < 8
    w = deq_init.numpy.random((n, n), gain, seed=1, dtype=np.float64)
    values = np.linalg.eigvals(w)
    assert theory.eigenvalue_density("random", gain, values).astype(bool).mean() > 0.95
    assert theory.eigenvalue_density("random", gain, 0) == pytest.approx(1 / (np.pi * gain**2))
    inner = (np.abs(values) < gain / 2**0.5).sum()
    assert abs(inner - n / 2) < 6 * 11.8**0.5
    w = deq_init.numpy.orthogonal((n, n), gain, seed=1, dtype=np.float64)
    angles = np.sort(np.angle(np.linalg.eigvals(w)))
    density = theory.eigenvalue_density("orthogonal", gain, angles)
    law = (angles + np.pi) * density
    assert n * np.abs(law - (np.arange(n) + 0.5) / n).max() < 8


@pytest.mark.parametrize("family", ["random", "goe", "antisymmetric"])
def test_singular_values_of_the_sampler(family):
    n, gain = 256, 0.7
    w = getattr(deq_init.numpy, family)((n, n), gain, seed=1, dtype=np.float64)
    line = np.linspace(0, 2 * gain, 4001)
    law = np.cumsum(theory.singular_value_density(family, gain, line)) * (line[1] - line[0])
    values = np.sort(np.linalg.svd(w, compute_uv=False))
    distance = np.abs(np.interp(values, line, law) - (np.arange(n) + 0.5) / n).max()
    assert n * distance < 8
    assert theory.singular_value_density(family, gain, -0.1) == 0


def test_orders_near_the_edge():
    """At equal radius near 1 the leading variances are ordered: random, GOE, orthogonal."""
    radius = 0.995
    random = theory.length_relative_variance("random", radius, 10**9)
    goe = theory.length_relative_variance("goe", radius / 2, 10**9)
    orthogonal = theory.length_relative_variance("orthogonal", radius, 10**9)
    assert random > 5 * goe > 5 * orthogonal


def test_errors():
    with pytest.raises(ScaleError, match=r"expected 0 <= gain < 0.5 for the goe family"):
        theory.length_mean("goe", 0.5)
    with pytest.raises(FamilyError):
        theory.length_mean("ginibre", 0.5)
    with pytest.raises(FamilyError, match="finite-n law of the length is not known"):
        theory.length_quantile("goe", 0.3, 100, 0.5)
    with pytest.raises(ScaleError, match="expected no n for the random family"):
        theory.input_gradient_mean("random", 0.5, 100)
    with pytest.raises(FamilyError, match="They all equal the gain"):
        theory.singular_value_density("orthogonal", 0.5, 0.5)
    with pytest.raises(ScaleError, match="expected a positive gain"):
        theory.eigenvalue_density("goe", 0, 0.5)
    with pytest.raises(ScaleError, match="expected real numbers"):
        theory.eigenvalue_density("goe", 0.5, 1j)
    for p in (0, 1, 2.0, -1):
        with pytest.raises(ScaleError, match="probabilities between 0 and 1"):
            theory.length_quantile("orthogonal", 0.5, 200, p)
    with pytest.raises(ScaleError, match="expected gain to be a finite number"):
        theory.length_mean("random", "big")
    assert theory.length_quantile("random", 0.0, 200, 0.3) == 1
    for n in (0, -3, 1.5, True, "8", 7):
        for function in (theory.length_mean, theory.length_relative_variance):
            with pytest.raises(ScaleError, match="expected an integer n >= 8"):
                function("goe", 0.3, n)
    for n in (2, 10.0):
        with pytest.raises(ScaleError, match="expected an integer n >= 3"):
            theory.length_quantile("random", 0.3, n, 0.5)
    with pytest.raises(ScaleError, match="expected an integer n >= 1"):
        theory.orthogonal_length_variance(0.5, 0)
    assert theory.length_mean("goe", 0.3, np.int64(50)) == theory.length_mean("goe", 0.3, 50)


@pytest.mark.parametrize(
    "call",
    [
        lambda f: theory.length_mean(f, 0.3),
        lambda f: theory.length_mean(f, 0.3, 100),
        lambda f: theory.input_gradient_mean(f, 0.3),
        lambda f: theory.length_relative_variance(f, 0.3, 100),
        lambda f: theory.length_relative_variance(f, 0.3, 100, "tanh"),
        lambda f: theory.length_quantile(f, 0.3, 100, 0.5),
        lambda f: theory.eigenvalue_density(f, 0.3, 0.0),
        lambda f: theory.singular_value_density(f, 0.3, 0.0),
        lambda f: theory.mean_field(f, 0.3),
        lambda f: theory.jacobian_norm(f, 0.3, n=100),
        lambda f: theory.jacobian_spectral_radius(f, 0.3),
        lambda f: theory.adjoint_amplification(f, 0.3),
        lambda f: theory.critical_gain(f),
        lambda f: theory.gain_for(f, jacobian_norm=0.5),
    ],
)
def test_a_new_family_has_no_theory(monkeypatch, call):
    """A family that is added takes no other's formulas, whatever its symmetry."""
    for symmetry in (0, 1, -1):
        new = families.Family("sparse", symmetry, False, 1.0, families.random)
        monkeypatch.setitem(families.FAMILIES, "sparse", new)
        with pytest.raises(FamilyError, match="received 'sparse'"):
            call("sparse")


def test_corrections_of_goe_are_those_of_its_moments():
    """The 1/n terms of E tr W^2k / n are V^k times 1, 5, 22, 93, 386 (genus expansion of the GOE).

    Mulase & Waldron, Duality of orthogonal and symplectic matrix integrals (2003). The mean of M is
    the sum of (2k + 1) such terms, that of M² the sum of C(2k + 3, 3) of them.
    """
    gain, n = 0.05, 1000
    for function, count in (
        (theory.length_mean, lambda k: 2 * k + 1),
        (theory.input_gradient_mean, lambda k: scipy.special.comb(2 * k + 3, 3)),
    ):
        series = sum(
            count(k) * term * gain ** (2 * k) for k, term in enumerate((1, 5, 22, 93, 386), start=1)
        )
        correction = n * (function("goe", gain, n) - function("goe", gain))
        assert correction == pytest.approx(series, rel=1e-6)


def test_orthogonal_corrections_are_exact_at_size_one():
    """W = ±gain, each with probability one half."""
    for power, function in ((2, theory.length_mean), (4, theory.input_gradient_mean)):
        exact = ((1 - 0.6) ** -power + (1 + 0.6) ** -power) / 2
        assert function("orthogonal", 0.6, 1) == pytest.approx(exact)
