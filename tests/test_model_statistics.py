"""Statistics of the reference models' fixed points and Jacobians, against theory.

They hold for weights as the models draw them, used as the models use them: a wrong scale, fan or
orientation of W or U shows here.
"""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import deq_init.torch
from deq_init import families, theory
from deq_init.torch.models import DEQFCN, DEQTransformer

import backends

INPUTS, DRAWS, SAMPLES = 64, 6, 4
SIGMAS = 5  # two-sided false alarm of a normal mean: 6e-7


def inputs(seed):
    """Inputs of squared length INPUTS: those of the entries of U x are then N(0, input_gain²)."""
    x = np.random.default_rng(seed).standard_normal((SAMPLES, INPUTS))
    return torch.from_numpy(x / np.sqrt((x**2).mean(1, keepdims=True)))


@torch.no_grad()
def measure(seed, width, **options):
    """Means over the samples of length, Jacobian norm and radius; the norm that h gives."""
    model = DEQFCN(
        INPUTS, width, 2, input_gain=1.0, rtol=1e-8, max_steps=500, seed=seed,
        dtype=torch.float64, **options,
    )  # fmt: skip
    x = inputs(seed)
    _, solution = model(x)
    z, injected = solution.value, model.inject(x)
    assert solution.converged.all()

    def f(z):
        return model.cell(z, injected)

    norm = deq_init.torch.jacobian_norm(f, z).value
    radius = deq_init.torch.jacobian_spectral_radius(f, z).value
    h = z @ model.W.T + (injected if options["form"] == "in" else 0)
    slopes = torch.func.vmap(torch.func.vmap(torch.func.grad(model.activation)))(h)
    by_slopes = options["gain"] * slopes.abs().amax(1)
    return [v.mean().item() for v in (z**2, norm, radius, by_slopes)]


@given(
    family=st.sampled_from(backends.FAMILIES),
    activation=st.sampled_from(["tanh", "relu", "hard_tanh", "gelu"]),
    form=st.sampled_from(["out", "in"]),
    width=st.integers(96, 224),
    radius=st.floats(0.3, 0.75),
    seed=st.integers(0, 2**32),
)
def test_the_fully_connected_model_has_the_length_and_jacobian_of_theory(
    family, activation, form, width, radius, seed
):
    """Means of 6 draws of W and U, 4 inputs each, at a gain for the radius; theory.md, B.1 and B.2.

    Length: the preactivations' variance differs from draw to draw by √(2/n), relatively, and with
    it the gain by half of that; so does the input's. All samples of a draw count as one. A bias
    of the next order is allowed for. Norm: with its correction for n, good to 1 %, and a deviation
    of n^(-2/3) at most. Radius: within 8 % of the limit at these widths, and a deviation of 0.5/√n
    at most. False alarms: below 1e-6 an assertion, 2e-4 in all.
    """
    cell = {"family": family, "activation": activation, "form": form}
    law = {"activation": activation, "form": form}
    gain = theory.gain_for(family, spectral_radius=radius, **law)
    expected = theory.mean_field(family, gain, **law).length
    found = np.mean([measure(seed + i, width, gain=gain, **cell) for i in range(DRAWS)], axis=0)
    near = [theory.mean_field(family, gain * s, **law).length for s in (0.999, 1.001)]
    slope = np.log(near[1] / near[0]) / np.log(1.001 / 0.999)
    variance = 4 / width + slope**2 / (2 * width)
    share = SIGMAS / math.sqrt(DRAWS)
    assert abs(found[0] / expected - 1) <= share * math.sqrt(variance) + 2 * variance
    norm = theory.jacobian_norm(family, gain, **law, n=width)
    assert abs(found[1] / norm - 1) <= share * width ** (-2 / 3) + 0.01
    assert abs(found[2] / radius - 1) <= share * 0.5 / math.sqrt(width) + 0.08
    if family == "orthogonal":
        # Exact at any width.
        assert found[1] == pytest.approx(found[3], rel=2e-3)


def test_lengths_spread_most_for_random_then_goe_then_orthogonal_near_the_edge():
    """Share of draws whose length is over five times the median, linear model, radius 0.98.

    1000 draws of each family at n = 100; the state is solved for, as iteration does not converge
    where a draw's own radius exceeds 1. Fisher's exact test, one-sided: an ordering that is not
    there passes with probability 1e-6 each. The orthogonal share is that of the exact law, too.
    """
    n, draws, radius = 100, 1000, 0.98
    x = inputs(0)[:1]
    over = {}
    for family in families.PAPER:
        gain = radius / families.get(family).radius_edge
        lengths = []
        for seed in range(draws):
            model = DEQFCN(
                INPUTS, n, 1, family=family, gain=gain, activation="linear", seed=seed,
                dtype=torch.float64,
            )  # fmt: skip
            with torch.no_grad():
                injected = model.inject(x).T
                injected *= math.sqrt(n) / injected.norm()
                z = torch.linalg.solve(torch.eye(n) - model.W, injected)
            lengths.append(z.square().mean().item())
        over[family] = int((np.array(lengths) > 5 * np.median(lengths)).sum())
    for more, less in (("random", "goe"), ("goe", "orthogonal")):
        table = [[over[more], draws - over[more]], [over[less], draws - over[less]]]
        assert scipy.stats.fisher_exact(table, "greater").pvalue < 1e-6
    levels = np.linspace(0.5, 0.9999, 2000)
    quantiles = theory.length_quantile("orthogonal", radius, n, levels)
    share = 1 - np.interp(5 * quantiles[0], quantiles, levels)
    assert scipy.stats.binomtest(over["orthogonal"], draws, share).pvalue > 1e-6


GAINS = (0.1, 0.3, 0.6)


@pytest.fixture(scope="module", params=["post", "pre", "none"])
def block(request):
    """Norm and radius of the transformer block's Jacobian at each family and gain, one draw."""
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 30, (2, 8)))

    @torch.no_grad()
    def measured(family, gain):
        model = DEQTransformer(
            30, 24, 3, norm=request.param, family=family, gain=gain, rtol=1e-4, max_steps=200,
            seed=0,
        )  # fmt: skip
        _, solution = model(tokens)
        injected = model.inject(tokens)
        assert solution.converged.all()
        return [
            size(lambda z: model.cell(z, injected), solution.value, rtol=1e-2).value.mean().item()
            for size in (deq_init.torch.jacobian_norm, deq_init.torch.jacobian_spectral_radius)
        ]

    grid = [(family, gain) for family in families.PAPER for gain in GAINS]
    return request.param, {key: np.array(measured(*key)) for key in grid}


def test_what_the_gain_does_to_the_transformers_jacobian(block):
    """The scales are the architecture's: see docs/models.md. One draw of n = 192, fixed seed."""
    norm, sizes = block
    for family in families.PAPER:
        small, middle, large = (sizes[family, gain] for gain in GAINS)
        if norm == "post":
            # The skip connection passes the state on, whatever the gain: less of it than 1, as
            # normalization takes out two directions of each token.
            assert 0.85 < small[1] <= small[0] < 1.05
            assert small[1] > large[1]
            assert small[0] < large[0]
        else:
            # Values and output are a product of two matrices, that of norms of at most 2 gain
            # each; what is normalized before is divided by a length that has a factor of the gain
            # itself.
            power = 2 if norm == "none" else 1
            for i in range(2):
                rise = math.log(middle[i] / small[i]) / math.log(3)
                assert rise == pytest.approx(power, abs=0.2)
            assert (large > middle).all()
    if norm == "none":
        # Values and output: norms multiply, and those of normal matrices are twice orthogonal ones.
        assert sizes["random", 0.1][0] > sizes["orthogonal", 0.1][0]
        assert sizes["goe", 0.1][0] > sizes["orthogonal", 0.1][0]
