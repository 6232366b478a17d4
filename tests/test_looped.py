"""Starts of the state, and the residual scale of looped transformers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

import deq_init.jax
import deq_init.torch
from deq_init import looped
from deq_init.errors import DTypeError, ModelError, SeedError, ShapeError
from deq_init.jax import initial_state
from deq_init.jax.models import DEQFCN, DEQTransformer

KEY = jax.random.key(5)


def test_zeros_and_input_are_what_they_say():
    like = jnp.arange(6.0).reshape(2, 3)
    assert (initial_state("zeros", like) == 0).all()
    assert (initial_state("input", like) == like).all()
    assert initial_state("normal", like.astype(jnp.bfloat16), KEY).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["zeros", "input", "normal", "mixed"])
def test_one_seed_is_one_start_in_pytorch_and_jax(kind, dtype):
    like = np.ones((16, 3, 5), dtype)
    found = deq_init.torch.initial_state(kind, torch.from_numpy(like), seed=5, deviation=0.4)
    with jax.enable_x64(True):
        expected = initial_state(kind, jnp.asarray(like), KEY, deviation=0.4)
        atol = {"float32": 1e-5, "float64": 1e-12}[dtype]
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_pytorchs_own_random_numbers():
    like = torch.zeros(3, 4)
    first, second, third = (
        deq_init.torch.initial_state("normal", like, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    with pytest.raises(SeedError, match="expected a seed or a generator"):
        deq_init.torch.initial_state("normal", like, seed=0, generator=torch.Generator())


def test_normal_starts_have_their_law():
    """8192 entries: Kolmogorov-Smirnov against N(0, 0.3²), false alarm 1e-6."""
    state = np.asarray(initial_state("normal", jnp.zeros((64, 8, 16)), KEY, deviation=0.3))
    assert scipy.stats.kstest(state.ravel() / 0.3, "norm").pvalue > 1e-6


def test_mixed_starts_are_zeros_or_normal_sample_by_sample():
    """4096 samples: as many of either kind as a fair coin has, false alarm 1e-6."""
    like = jnp.zeros((4096, 2, 2))
    mixed = np.asarray(initial_state("mixed", like, KEY))
    normal = np.asarray(initial_state("normal", like, KEY))
    zero = (mixed == 0).all(axis=(1, 2))
    assert (mixed[~zero] == normal[~zero]).all()
    assert scipy.stats.binomtest(int(zero.sum()), 4096, 0.5).pvalue > 1e-6


def test_starts_that_cannot_be_had():
    like = jnp.zeros((2, 3))
    with pytest.raises(ModelError, match="expected a start out of 'zeros'"):
        initial_state("ones", like)
    with pytest.raises(SeedError, match="expected a key for a start that is mixed"):
        initial_state("mixed", like)
    for start in (initial_state, deq_init.torch.initial_state):
        integers = like.astype(int) if start is initial_state else torch.zeros(2, dtype=torch.int32)
        with pytest.raises(DTypeError, match="expected a real floating dtype"):
            start("zeros", integers)
    with pytest.raises(ModelError, match="expected deviation as a finite number"):
        initial_state("normal", like, KEY, deviation=math.nan)


@pytest.mark.parametrize("method", ["batch", "plain"])
def test_a_contraction_has_one_fixed_point_wherever_it_starts(method):
    model = DEQFCN(4, 16, 3, method=method, rtol=1e-6, max_steps=100)
    params = model.init(jax.random.key(0), deq_init.jax.orthogonal(0.5))
    x = jax.random.normal(KEY, (6, 4))
    injected = x @ params["U"]
    found = [
        model.apply(params, x, initial_state(kind, injected, KEY))[1]
        for kind in ("zeros", "input", "normal", "mixed")
    ]
    for solution in found:
        assert solution.converged.all()
        np.testing.assert_allclose(solution.value, found[0].value, atol=1e-5)
    # From the fixed point itself there is nothing to do.
    assert model.apply(params, x, found[0].value)[1].steps.max() <= 2
    with pytest.raises(ShapeError, match=r"expected a start z0 of shape \(6, 16\)"):
        model.apply(params, x, jnp.zeros((6, 15)))


def test_residual_scale():
    assert looped.residual_scale(8, layers=4, strength=2.0) == 2.0 / (8 * math.sqrt(4))
    with pytest.raises(ShapeError, match="expected loops as a positive integer"):
        looped.residual_scale(0)
    with pytest.raises(ModelError, match="expected strength as a finite number"):
        looped.residual_scale(4, strength=math.inf)


def test_one_over_loops_keeps_a_looped_transformers_state_in_size():
    """By how much z grows from 4 loops to 64, in a pre-norm block with a skip connection.

    Updates that were all the same would give 1 with ε = 1/N, and √(64/4) = 4 with ε = 1/√N.
    """
    tokens = jax.random.randint(KEY, (2, 8), 0, 30)

    def size(loops, branch_scale):
        model = DEQTransformer(
            30, 32, 4, norm="pre", skip=1.0, branch_scale=branch_scale, method="plain",
            rtol=1e-7, max_steps=loops + 1,
        )  # fmt: skip
        params = model.init(jax.random.key(0), "orthogonal", 1.0)
        start = model.embed(params, tokens)
        _, solution = model.apply(params, tokens, start)
        assert (solution.steps == loops + 1).all()
        return float(jnp.linalg.norm(solution.value - start) / jnp.linalg.norm(start))

    growth = size(64, looped.residual_scale(64)) / size(4, looped.residual_scale(4))
    assert 2 / 3 < growth < 4 / 3
    assert size(64, 1 / 8) / size(4, 1 / 2) > 2
