"""The Jacobian at a fixed point: against the dense one, in PyTorch and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import deq_init.jax
import deq_init.numpy
import deq_init.torch

FRAMEWORKS = ("torch", "jax")
ACTIVATIONS = ("linear", "tanh", "relu")
FAMILIES = ("random", "orthogonal", "goe", "antisymmetric")
N, BATCH = 40, 3


def slopes(activation, h):
    return {"linear": np.ones_like(h), "tanh": 1 - np.tanh(h) ** 2, "relu": (h > 0) * 1.0}[
        activation
    ]


def apply(activation, framework, h):
    if activation == "linear":
        return h
    if framework == "torch":
        return getattr(torch, activation)(h)
    return {"tanh": jnp.tanh, "relu": jax.nn.relu}[activation](h)


def problem(family, activation, framework, gain=0.4):
    """f(z) = φ(W z) + x on a batch, its W, x, and the framework's arrays."""
    w = getattr(deq_init.numpy, family)((N, N), gain, seed=7)
    x = np.random.default_rng(3).standard_normal((BATCH, N)).astype(np.float32)
    to = torch.from_numpy if framework == "torch" else jnp.asarray
    w_, x_ = to(w), to(x)
    return (lambda z: apply(activation, framework, z @ w_.T) + x_), w, x, to(np.zeros_like(x))


def jacobians(w, activation, z):
    """diag(φ'(W z)) W for each sample, in float64."""
    w = w.astype(np.float64)
    return slopes(activation, np.asarray(z, np.float64) @ w.T)[:, :, None] * w


def api(framework):
    return deq_init.torch if framework == "torch" else deq_init.jax


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_norm_and_radius_at_the_fixed_point(family, activation, framework):
    f, w, x, z0 = problem(family, activation, framework)
    solution = api(framework).fixed_point(f, z0)
    assert np.asarray(solution.converged).all()
    z = np.asarray(solution.value)
    np.testing.assert_allclose(np.asarray(f(solution.value)), z, atol=1e-4)
    if activation == "linear":
        exact = np.linalg.solve(np.eye(N) - w.astype(np.float64), x.T.astype(np.float64)).T
        np.testing.assert_allclose(z, exact, atol=1e-3)
    dense = jacobians(w, activation, z)
    norm = api(framework).jacobian_norm(f, solution.value)
    expected = np.linalg.norm(dense, 2, axis=(1, 2))
    np.testing.assert_allclose(np.asarray(norm.value), expected, rtol=1e-3)
    radius = api(framework).jacobian_spectral_radius(f, solution.value)
    expected = np.abs(np.linalg.eigvals(dense)).max(axis=1)
    np.testing.assert_allclose(np.asarray(radius.value), expected, rtol=2e-3)
    assert np.asarray(norm.converged).all()
    assert np.asarray(radius.converged).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("method", ["plain", "anderson"])
def test_divergence_and_nan_are_reported_for_their_samples_alone(framework, method):
    f, *_, z0 = problem("random", "tanh", framework)
    bad = np.zeros((BATCH, N), np.float32)
    bad[1] = np.nan
    bad = torch.from_numpy(bad) if framework == "torch" else jnp.asarray(bad)
    solution = api(framework).fixed_point(lambda z: f(z) + bad, z0, method=method)
    assert np.asarray(solution.converged).tolist() == [True, False, True]
    assert np.isfinite(np.asarray(solution.value)[[0, 2]]).all()
    f, *_, z0 = problem("random", "linear", framework, gain=3.0)
    lost = api(framework).fixed_point(f, z0, method="plain", max_steps=2000)
    assert not np.asarray(lost.converged).any()
    assert np.isfinite(np.asarray(lost.value)).all()


@pytest.mark.parametrize("kind", ["jacobian_norm", "spectral_radius"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("family", ["random", "orthogonal", "goe"])
def test_rescaling_in_pytorch(family, activation, kind):
    _, w, x, z0 = problem(family, activation, "torch", gain=0.2)
    weight, x = torch.nn.Parameter(torch.from_numpy(w)), torch.from_numpy(x)

    def f(z):
        return apply(activation, "torch", z @ weight.T) + x

    before = weight.detach().clone()
    result = deq_init.torch.rescale_jacobian_(weight, f, z0, **{kind: 0.6})
    assert result.reached
    torch.testing.assert_close(weight.detach(), before * result.factor)
    z = deq_init.torch.fixed_point(f, z0).value.detach()
    dense = jacobians(weight.detach().numpy(), activation, z)
    if kind == "jacobian_norm":
        achieved = np.linalg.norm(dense, 2, axis=(1, 2)).mean()
    else:
        achieved = np.abs(np.linalg.eigvals(dense)).max(axis=1).mean()
    assert abs(achieved / 0.6 - 1) < 0.015
    assert abs(result.achieved / achieved - 1) < 0.005


def test_rescaling_in_jax():
    _, w, x, z0 = problem("random", "tanh", "jax", gain=0.2)
    params = {"w": jnp.asarray(w), "x": jnp.asarray(x)}

    def f(params, z):
        return jnp.tanh(z @ params["w"].T) + params["x"]

    new, result = deq_init.jax.rescale_jacobian(f, params, z0, jacobian_norm=0.6, where="w")
    assert result.reached
    assert (new["x"] == params["x"]).all()
    z = deq_init.jax.fixed_point(lambda z: f(new, z), z0).value
    dense = jacobians(np.asarray(new["w"]), "tanh", z)
    assert abs(np.linalg.norm(dense, 2, axis=(1, 2)).mean() / 0.6 - 1) < 0.015


def test_a_target_that_no_scale_meets_leaves_the_weights_alone():
    """|J| of a linear map that W does not enter is 0.5 at every scale."""
    weight = torch.nn.Parameter(torch.ones(4, 4))
    before = weight.detach().clone()
    result = deq_init.torch.rescale_jacobian_(
        weight, lambda z: 0.5 * z + weight.sum() * 0, torch.ones(2, 4), jacobian_norm=0.9
    )
    assert not result.reached
    assert result.reason
    assert torch.equal(weight.detach(), before)


def test_norm_is_compiled_by_jax():
    f, w, _, z0 = problem("goe", "tanh", "jax")
    z = deq_init.jax.fixed_point(f, z0).value
    value = jax.jit(lambda z: deq_init.jax.jacobian_norm(f, z).value)(z)
    expected = np.linalg.norm(jacobians(w, "tanh", z), 2, axis=(1, 2))
    np.testing.assert_allclose(np.asarray(value), expected, rtol=1e-3)
