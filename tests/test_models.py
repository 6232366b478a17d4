"""The JAX reference model: its fixed point and its gradients. The activations that models name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import deq_init.jax
import deq_init.torch.models
from deq_init.jax import models
from deq_init.theory.activations import ACTIVATIONS


@pytest.fixture
def problem():
    with jax.enable_x64(True):
        model = models.DEQFCN(
            inputs=5, width=12, classes=3, method="batch", rtol=1e-12, max_steps=500
        )
        params = model.init(jax.random.key(0), deq_init.jax.orthogonal(0.6))
        x = jax.random.normal(jax.random.key(1), (4, 5))
        yield model, params, x


def test_fixed_point(problem):
    model, params, x = problem
    logits, solution = model.apply(params, x)
    z = np.asarray(solution.value)
    residual = np.tanh(z @ params["W"]) + x @ params["U"] - z
    assert bool(solution.converged)
    assert np.abs(residual).max() < 1e-11
    np.testing.assert_allclose(logits, z @ params["R"] + params["b"], rtol=1e-12)


def test_gradients_equal_those_of_the_unrolled_iteration(problem):
    model, params, x = problem

    def implicit(params):
        return (model.apply(params, x)[0] ** 2).sum()

    def unrolled(params):
        z = jnp.zeros((4, 12))
        for _ in range(200):
            z = jnp.tanh(z @ params["W"]) + x @ params["U"]
        return ((z @ params["R"] + params["b"]) ** 2).sum()

    expected, got = jax.grad(unrolled)(params), jax.grad(implicit)(params)
    for name, value in expected.items():
        assert np.abs(value).max() > 1e-3
        np.testing.assert_allclose(got[name], value, atol=1e-8, err_msg=name)


def test_iteration_stops_at_the_cap_and_says_so():
    solution = models.iterate(lambda z: 2.0 * z + 1.0, jnp.zeros(3), rtol=1e-6, max_steps=7)
    assert int(solution.steps) == 7
    assert not bool(solution.converged)
    assert float(solution.value[0]) == 2.0**7 - 1


def test_families_share_all_but_w():
    model = models.DEQFCN(inputs=5, width=8, classes=3)
    a, b = (
        model.init(jax.random.key(2), init)
        for init in (deq_init.jax.random(0.5), deq_init.jax.goe(0.5))
    )
    assert (a["W"] != b["W"]).any()
    assert all((a[name] == b[name]).all() for name in ("U", "R", "b"))


def test_named_activations_are_those_of_theory():
    """Values to rounding and slopes by differentiation, between -30 and 30; both sides of kinks."""
    h = np.linspace(-30, 30, 1201) + 1e-3
    for named in (models.ACTIVATIONS, deq_init.torch.models.ACTIVATIONS):
        assert set(named) == set(ACTIVATIONS)
    with jax.enable_x64(True):

        @jax.jit
        def jax_pairs(at):
            return {
                name: jax.jvp(f, (at,), (jnp.ones_like(at),))
                for name, f in models.ACTIVATIONS.items()
            }

        found = [jax_pairs(jnp.asarray(h)), {}]
    for name, function in deq_init.torch.models.ACTIVATIONS.items():
        at = torch.tensor(h, requires_grad=True)
        values = function(at)
        (slopes,) = torch.autograd.grad(values.sum(), at)
        found[1][name] = values.detach().numpy(), slopes.numpy()
    for name, phi in ACTIVATIONS.items():
        for value, slope in (pairs[name] for pairs in found):
            np.testing.assert_allclose(value, phi.function(h), rtol=1e-12, atol=1e-13, err_msg=name)
            np.testing.assert_allclose(slope, phi.derivative(h), rtol=0, atol=1e-12, err_msg=name)
