"""Derivatives of gradients of fixed points: written-out iterations and central differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import deq_init.jax
import deq_init.jax.implicit
import deq_init.torch
import deq_init.torch.implicit
from deq_init.errors import FunctionError, SolverError
from deq_init.jax import models as jax_models
from deq_init.torch import models as torch_models

TIGHT = {"rtol": 1e-13, "max_steps": 300}
SIZES = (3, 5, 3)
QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}


def close(found, expected, atol=1e-6):
    expected = np.asarray(expected)
    assert abs(expected).max() > 1e-2
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-6, atol=atol)


def slope(function, x, step=1e-5):
    return (function(x + step) - function(x - step)) / (2 * step)


def in_torch(a, gradient="implicit", steps=None):
    """A loss of two fixed points of z = tanh(a z) + sin(a²) z / 5 + 1, the second from the first.

    sin(a²) is no leaf, and a is used beside it. With ``steps``, a loop.
    """

    def solve(given):
        encoded = torch.sin(a * a) / 5

        def f(z):
            return torch.tanh(a * z) + encoded * z / given + 1

        z = torch.zeros(2, 1, dtype=torch.float64)
        if steps:
            for _ in range(steps):
                z = f(z)
            return z
        found = deq_init.torch.fixed_point(f, z, **TIGHT)
        return deq_init.torch.implicit.with_gradient(f, found, gradient=gradient, **TIGHT).value

    return (solve(solve(1.0)) ** 3).sum() * a


def test_pytorch_derivatives_of_three_orders():
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    found, expected = in_torch(a), in_torch(a, steps=150)
    for _ in range(3):
        found, expected = (
            torch.autograd.grad(value, a, create_graph=True)[0] for value in (found, expected)
        )
        close(found.detach(), expected.detach())

    def gradient(at):
        at = at.detach().requires_grad_()
        return torch.autograd.grad(in_torch(at), at)[0]

    hessian = torch.autograd.functional.hessian(in_torch, a.detach())
    close(hessian, slope(gradient, a.detach()))


def test_pytorch_has_no_second_derivative_of_one_step_gradients():
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    torch.autograd.grad(in_torch(a, "one_step"), a)
    for ask in (
        lambda: torch.autograd.grad(in_torch(a, "one_step"), a, create_graph=True),
        lambda: in_torch(a, "one_step").backward(create_graph=True),
        lambda: torch.autograd.functional.hessian(lambda a: in_torch(a, "one_step"), a),
    ):
        with pytest.raises(SolverError, match="gradient='implicit' or 'unrolled' for a second"):
            ask()


class Hidden(torch.autograd.Function):
    """z / 2 + h, in which no operation of PyTorch takes h."""

    @staticmethod
    def forward(ctx, z, h):
        return z / 2 + torch.tensor(h.tolist(), dtype=z.dtype)

    @staticmethod
    def backward(ctx, g):
        return g / 2, g


def test_what_is_not_found_is_an_error_in_pytorch():
    a = torch.tensor([[0.4]], dtype=torch.float64, requires_grad=True)

    def loss():
        h = a * a
        found = deq_init.torch.fixed_point(
            lambda z: Hidden.apply(z, h), torch.zeros_like(a), **TIGHT
        )
        f = deq_init.torch.implicit.with_gradient(lambda z: Hidden.apply(z, h), found, **TIGHT)
        return (f.value**2).sum()

    # z = 2 a², and the loss 4 a⁴.
    torch.testing.assert_close(torch.autograd.grad(loss(), a)[0], 16 * a.detach() ** 3)
    with pytest.raises(FunctionError, match="tensors can be found for a second derivative"):
        torch.autograd.grad(loss(), a, create_graph=True)


def torch_model(gradient, **given):
    given = {"method": "plain" if gradient == "unrolled" else "anderson"} | TIGHT | given
    return torch_models.DEQFCN(
        *SIZES, family="goe", gain=0.3, input_gain=1.0, bias=True, seed=0, dtype=torch.float64,
        gradient=gradient, **given,
    )  # fmt: skip


def samples(batch=4):
    x = np.random.default_rng(1).standard_normal((batch, SIZES[0]))
    return x, np.arange(batch) % SIZES[-1]


def torch_product(gradient, x, classes):
    """The Hessian of the cross-entropy times ones."""
    model = torch_model(gradient)
    parameters = list(model.parameters())
    loss = torch.nn.functional.cross_entropy(model(x)[0], classes)
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    return torch.autograd.grad(sum(g.sum() for g in first), parameters)


def test_pytorch_products_with_the_hessian():
    x, classes = map(torch.from_numpy, samples())
    found = torch_product("implicit", x, classes)
    for a, b in zip(found, torch_product("unrolled", x, classes), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert found[0].norm() > 0.1
    # A lost sample has no part in W's, U's and c's.
    more = torch.cat([x, torch.full((1, SIZES[0]), torch.nan, dtype=x.dtype)])
    model = torch_model("implicit")
    loss = torch.nn.functional.cross_entropy(model(more)[0][:4], classes)
    first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    lost = torch.autograd.grad(sum(g.sum() for g in first), list(model.parameters()))
    for a, b in zip(lost, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_gradient_penalty_in_pytorch():
    results = []
    for gradient in ("implicit", "unrolled"):
        model = torch_model(gradient)
        x = torch.from_numpy(samples()[0]).requires_grad_()
        loss = model(x)[0].pow(2).sum()
        (of_x,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + of_x.pow(2).sum()).backward()
        results.append([p.grad for p in (*model.parameters(), x)])
    for a, b in zip(*results, strict=True):
        assert b.norm() > 1e-2
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_memory_of_second_derivatives_does_not_grow_with_the_steps():
    counts = []
    for steps in (5, 200):
        # A gain at which plain iteration takes all its steps.
        model = torch_models.DEQFCN(
            *SIZES, family="antisymmetric", gain=2.0, method="plain", rtol=1e-9, max_steps=steps,
            seed=0,
        )  # fmt: skip
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=saved: kept.append(x) or x, lambda x: x
        ):
            loss = model(torch.ones(2, SIZES[0]))[0].pow(2).sum()
            (g,) = torch.autograd.grad(loss, model.W, create_graph=True)
        # What the products with the Jacobian keep for a moment grows: each the same few.
        before = len(saved)
        (g * g).sum().backward()
        assert model.W.grad.isfinite().all()
        counts.append(len([x for x in saved[:before] if x.requires_grad]))
    assert counts[0] == counts[1]


def in_jax(a, gradient="implicit", steps=None):
    """As in_torch, for one fixed point."""

    def f(a, z):
        return jnp.tanh(a * z) + jnp.sin(a * a) / 5 * z + 1

    z = jnp.zeros((2, 1))
    if steps:
        for _ in range(steps):
            z = f(a, z)
    else:
        fixed = jax.lax.stop_gradient(a)
        found = deq_init.jax.fixed_point(lambda z: f(fixed, z), z, method="plain", **TIGHT)
        with_gradient = deq_init.jax.implicit.with_gradient
        z = with_gradient(f, a, found, gradient=gradient, method="plain", **TIGHT).value
    return (z**3).sum() * a


def quick(function, *arguments):
    return jax.jit(function, compiler_options=QUICK)(*arguments)


def test_jax_derivatives_of_three_orders():
    with jax.enable_x64(True):
        a = jnp.asarray(0.4)
        loop = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

        def written_out(a):
            z = torch.zeros(2, 1, dtype=torch.float64)
            for _ in range(150):
                z = torch.tanh(a * z) + torch.sin(a * a) / 5 * z + 1
            return (z**3).sum() * a

        value = written_out(loop)
        expected = []
        for _ in range(3):
            (value,) = torch.autograd.grad(value, loop, create_graph=True)
            expected.append(value.item())
        hessian = jax.hessian(in_jax)
        close(quick(jax.vmap(jax.grad(jax.grad(in_jax))), a[None])[0], expected[1])
        forward, second, third = quick(
            lambda a: (jax.jvp(in_jax, (a,), (1.0,))[1], *jax.jvp(hessian, (a,), (1.0,))), a
        )
        close(forward, expected[0])
        close(second, expected[1])
        close(third, expected[2])


def test_the_derivative_of_jaxs_one_step_gradient():
    def one_step(a):
        return in_jax(a, "one_step")

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(one_step), compiler_options=QUICK)
        expected = slope(gradient, jnp.asarray(0.4))
        close(quick(jax.grad(jax.grad(one_step)), 0.4), expected)


@pytest.mark.parametrize("method", ["batch", "plain"])
def test_jaxs_products_with_the_hessian_are_pytorchs(method):
    x, classes = samples()
    with jax.enable_x64(True):
        model = jax_models.DEQFCN(*SIZES, input_gain=1.0, bias=True, method=method, **TIGHT)
        params = model.init(jax.random.key(0), deq_init.jax.goe(0.3), jnp.float64)

        def loss(params):
            logits = jax.nn.log_softmax(model.apply(params, jnp.asarray(x))[0])
            return -jnp.take_along_axis(logits, classes[:, None], 1).mean()

        ones = jax.tree.map(jnp.ones_like, params)
        found = quick(lambda p: jax.jvp(jax.grad(loss), (p,), (ones,))[1], params)
    expected = torch_product("unrolled", torch.from_numpy(x), torch.from_numpy(classes))
    names = [name for name, _ in torch_model("implicit").named_parameters()]
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[name], value.numpy().T, rtol=1e-6, atol=1e-7, err_msg=name)


def test_memory_of_jaxs_second_derivatives_does_not_grow_with_the_steps():
    def bytes_of(steps):
        model = jax_models.DEQFCN(*SIZES, method="plain", rtol=1e-6, max_steps=steps)
        params = model.init(jax.random.key(0), deq_init.jax.goe(0.3), jnp.float32)

        def loss(params):
            return model.apply(params, jnp.ones((64, SIZES[0])))[0].sum()

        product = jax.jit(lambda p: jax.jvp(jax.grad(loss), (p,), (p,))[1], compiler_options=QUICK)
        return product.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(10) == bytes_of(1000)


CASES = [("torch", "plain"), ("torch", "anderson"), ("jax", "plain")]


@pytest.mark.parametrize(("family", "gain"), [("orthogonal", 2.0), ("orthogonal", 0.5)])
@pytest.mark.parametrize(("framework", "method"), CASES)
def test_the_backward_solve_has_a_status_and_is_never_worse_than_one_step(
    framework, method, family, gain
):
    """z = W z + x at its exact fixed point: the residual of u is that of u = g or smaller."""
    make = getattr(deq_init.torch, f"{family}_")
    w = make(torch.empty(16, 16, dtype=torch.float64), gain=gain, seed=0).numpy()
    g = np.random.default_rng(0).standard_normal((2, 16))
    reports = []
    options = {"method": method, "rtol": 1e-8, "max_steps": 60, "report": reports.append}
    if framework == "torch":
        x = torch.zeros(2, 16, dtype=torch.float64, requires_grad=True)
        exact = deq_init.fixed_point.Solution(
            torch.zeros_like(x), torch.zeros(2), torch.ones(2), torch.ones(2, dtype=torch.bool)
        )
        value = deq_init.torch.implicit.with_gradient(
            lambda z: z @ torch.from_numpy(w).T + x, exact, **options
        ).value
        (u,) = torch.autograd.grad(value, x, torch.from_numpy(g))
        u = u.numpy()
    else:
        with jax.enable_x64(True):

            def loss(x):
                exact = deq_init.fixed_point.Solution(
                    jnp.zeros((2, 16)), jnp.zeros(2), jnp.ones(2, int), jnp.ones(2, bool)
                )
                value = deq_init.jax.implicit.with_gradient(
                    lambda x, z: z @ w.T + x, x, exact, **options
                ).value
                return (value * g).sum()

            u = np.asarray(quick(jax.grad(loss), jnp.zeros((2, 16))))
            jax.effects_barrier()
    (status,) = reports
    residual = np.linalg.norm(u @ w + g - u, axis=1) / np.linalg.norm(g, axis=1)
    floor = np.linalg.norm(g @ w, axis=1) / np.linalg.norm(g, axis=1)
    assert (residual <= floor * (1 + 1e-9)).all()
    np.testing.assert_allclose(np.asarray(status.residual), residual, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(np.asarray(status.value), u, rtol=1e-12)
    converged = np.asarray(status.converged)
    assert (residual[converged] < 1e-6).all()
    if method == "plain":
        assert converged.all() == (gain < 1)
        assert ((np.asarray(status.index) == 0) == (gain > 1)).all()
        if gain > 1:
            np.testing.assert_allclose(u, g, rtol=1e-12)
