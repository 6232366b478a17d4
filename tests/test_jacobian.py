"""The Jacobian at a fixed point: against the dense one, in PyTorch and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.autograd.function import once_differentiable

import deq_init.jax
import deq_init.numpy
import deq_init.torch
from deq_init import jacobian
from deq_init.errors import FunctionError
from deq_init.torch.iteration import xp as torch_loops

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


# --- Accuracy -------------------------------------------------------------------------------------


def test_a_singular_value_that_the_start_hardly_contains_is_found():
    """A diagonal whose largest entry, 1.0, once gave 0.9603 with an error of 5e-4."""
    d = np.insert(np.linspace(0.05, 0.96, 19), 4, 1.0)
    for start in range(20):
        z = torch.from_numpy(np.random.default_rng(start).standard_normal((1, 20)))
        found = jacobian.norm(
            torch_loops,
            lambda v: v * torch.from_numpy(d),
            lambda v: v * torch.from_numpy(d),
            z,
            rtol=1e-3,
            max_steps=128,
        )
        assert found.converged[0]
        assert abs(found.value[0] - 1) <= found.error[0] + 1e-12
    found = deq_init.torch.jacobian_norm(
        lambda v: v * torch.from_numpy(d), torch.zeros(1, 20, dtype=torch.float64)
    )
    assert abs(found.value[0] - 1) <= 1e-3


# --- Backward passes that cannot be differentiated ------------------------------------------------


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        y = torch.tanh(h)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0] ** 2)


class Raw(Once):
    """As a kernel does: with data alone."""

    @staticmethod
    def backward(ctx, g):
        slopes = 1 - ctx.saved_tensors[0].detach().numpy() ** 2
        return torch.from_numpy(g.detach().numpy() * slopes)


class Twice(Once):
    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0] ** 2)


W = deq_init.numpy.random((32, 32), 0.4, seed=1, dtype=np.float64)
MAPS = {
    "F(Wz)": (lambda F, w, z: F(z @ w.T), lambda s: s[:, None] * W),
    "W F(z)": (lambda F, w, z: F(z) @ w.T, lambda s: W * s),
    "z / 2 + W F(z)": (lambda F, w, z: 0.5 * z + F(z) @ w.T, lambda s: 0.5 * np.eye(32) + W * s),
}


def slopes_at(name, z):
    return 1 - np.tanh(z @ W.T if name == "F(Wz)" else z) ** 2


@pytest.mark.parametrize("function", [Once, Raw, Twice])
@pytest.mark.parametrize("name", MAPS)
def test_backward_passes_that_cannot_be_differentiated(name, function):
    """Against the dense Jacobian: 0 was taken for what passes through the function."""
    f, dense = MAPS[name]
    z = np.random.default_rng(0).standard_normal((2, 32))
    expected = [dense(s) for s in slopes_at(name, z)]
    norms = [np.linalg.norm(j, 2) for j in expected]
    radii = [abs(np.linalg.eigvals(j)).max() for j in expected]
    for dtype, rtol in ((torch.float64, 1e-7), (torch.float32, 1e-3)):
        w = torch.from_numpy(W).to(dtype)
        at = torch.from_numpy(z).to(dtype)
        norm = deq_init.torch.jacobian_norm(lambda z, w=w: f(function.apply, w, z), at, rtol=rtol)
        assert norm.converged.all()
        np.testing.assert_allclose(norm.value, norms, rtol=rtol)
        radius = deq_init.torch.jacobian_spectral_radius(
            lambda z, w=w: f(function.apply, w, z), at, rtol=1e-3
        )
        np.testing.assert_allclose(radius.value, radii, rtol=1e-3)


def test_rescaling_and_checking_through_a_kernel():
    """At z = 0, tanh's slope is 1, so that J = I / 2 + W; the norm of W alone once became 0.58."""
    w = torch.nn.Parameter(torch.from_numpy(W.copy()))

    def f(z):
        return 0.5 * z + Raw.apply(z) @ w.T

    z0 = torch.zeros(2, 32, dtype=torch.float64)
    result = deq_init.torch.rescale_jacobian_(w, f, z0, jacobian_norm=0.9)
    assert result.reached
    exact = np.linalg.norm(0.5 * np.eye(32) + w.detach().numpy(), 2)
    assert abs(exact / 0.9 - 1) < 0.01
    assert abs(deq_init.torch.check(f, z0).look.jacobian_norm.mean / exact - 1) < 0.01


def test_neither_derivatives_nor_differences():
    with pytest.raises(FunctionError, match="derivative of f's backward pass"):
        deq_init.torch.jacobian_norm(lambda z: Raw.apply(z) + torch.randn_like(z), torch.ones(2, 5))


def test_a_custom_vjp_in_jax():
    """JAX has no forward mode of it; its backward pass is transposed, or the error says why not."""

    def custom(backward):
        function = jax.custom_vjp(jnp.tanh)
        function.defvjp(lambda h: (jnp.tanh(h), jnp.tanh(h)), backward)
        return function

    def called_back(y, g):
        shape = jax.ShapeDtypeStruct(g.shape, g.dtype)
        return (jax.pure_callback(lambda y, g: g * (1 - y**2), shape, y, g),)

    w = jnp.asarray(W, jnp.float32)
    z = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    good = custom(lambda y, g: (g * (1 - y**2),))
    found = deq_init.jax.jacobian_norm(lambda z: 0.5 * z + good(z) @ w.T, jnp.asarray(z))
    dense = [MAPS["z / 2 + W F(z)"][1](s) for s in 1 - np.tanh(z) ** 2]
    np.testing.assert_allclose(found.value, [np.linalg.norm(j, 2) for j in dense], rtol=1e-3)
    _, result = deq_init.jax.rescale_jacobian(
        lambda w, z: 0.5 * z + good(z) @ w.T, w, jnp.zeros((1, 32)), jacobian_norm=0.9
    )
    assert result.reached
    bad = custom(called_back)
    with pytest.raises(FunctionError, match="custom_jvp"):
        deq_init.jax.jacobian_norm(lambda z: bad(z @ w.T), jnp.asarray(z))


def test_a_norm_converges_where_singular_values_crowd_at_the_edge():
    """The slopes of tanh crowd below 1, so the singular values of an orthogonal layer do, too."""
    w = deq_init.torch.orthogonal_(torch.empty(512, 512), 0.45, seed=1)
    x = torch.randn(2, 512, generator=torch.Generator().manual_seed(3))
    f = lambda z: torch.tanh(z @ w.T) + x  # noqa: E731
    z = deq_init.torch.fixed_point(f, torch.zeros(2, 512)).value
    slopes = 1 - torch.tanh(z @ w.T) ** 2
    found = deq_init.torch.jacobian_norm(f, z)
    assert found.converged.all()
    error = (found.value - torch.linalg.matrix_norm(slopes[:, :, None] * w, 2)).abs()
    assert (error <= found.error + 1e-6).all()
