"""The fixed-point solver: against torchdeq, optimistix and NumPy; and where nothing converges."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
import tensorflow as tf
import torch
import torchdeq
from scipy.optimize import brentq

import deq_init.jax
import deq_init.jax.implicit
import deq_init.numpy
import deq_init.torch
import deq_init.torch.implicit
from deq_init import fixed_point as core
from deq_init.errors import FunctionError, SolverError
from deq_init.jax.iteration import xp as jax_loops
from deq_init.keras.iteration import xp as tensorflow_loops
from deq_init.numpy.iteration import xp as numpy_loops
from deq_init.torch.iteration import xp as torch_loops

FAMILIES = ("random", "orthogonal", "goe", "antisymmetric")
ACTIVATIONS = ("linear", "tanh", "relu")
N, BATCH, LENGTH, WIDTH = 24, 3, 5, 8
RTOL = {"float32": 2e-6, "float64": 1e-11}
AGREES = {"float32": 3e-5, "float64": 1e-8}


def dense(xp, p, z):
    """φ(W z) + x, φ a sum of activations."""
    h = z @ p["w"].T
    a = p["mix"]
    return a[0] * h + a[1] * xp.tanh(h) + a[2] * h * (h > 0) + p["x"]


def transformer(xp, p, z):
    """LayerNorm(x + attention(z) + relu MLP(z)), states of shape (batch, length, d)."""
    q, k, v = (z @ p[name].T for name in "qkv")
    scores = xp.exp(q @ k.swapaxes(-1, -2) / WIDTH**0.5)
    mixed = scores @ v / scores.sum(-1)[..., None]
    hidden = z @ p["up"].T
    y = p["x"] + mixed + (hidden * (hidden > 0)) @ p["down"].T
    centred = y - y.mean(-1)[..., None]
    return centred / xp.sqrt((centred**2).mean(-1)[..., None] + 1e-5)


def dense_case(family, activation, gain=0.4):
    w = getattr(deq_init.numpy, family)((N, N), gain, seed=7, dtype=np.float64)
    x = np.random.default_rng(3).standard_normal((BATCH, N))
    mix = np.eye(3)[ACTIVATIONS.index(activation)]
    return dense, {"w": w, "x": x, "mix": mix}


def transformer_case():
    shapes = dict.fromkeys("qkv", (WIDTH, WIDTH))
    shapes |= {"up": (2 * WIDTH, WIDTH), "down": (WIDTH, 2 * WIDTH)}
    p = {
        name: deq_init.numpy.random(shape, 0.3, seed=seed, dtype=np.float64)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    return transformer, p | {"x": np.random.default_rng(3).standard_normal((BATCH, LENGTH, WIDTH))}


CASES = {f"{f}-{a}": (f, a) for f in FAMILIES for a in ACTIVATIONS} | {"transformer": None}


def case(name):
    return transformer_case() if CASES[name] is None else dense_case(*CASES[name])


@functools.cache
def expected(name):
    """Plain iteration in NumPy, until it stands still."""
    f, p = case(name)
    z = np.zeros_like(p["x"])
    for _ in range(2000):
        z = f(np, p, z)
    assert abs(f(np, p, z) - z).max() < 1e-12
    return z


def close(value, name, dtype):
    exact = expected(name)
    value = np.asarray(value)
    assert value.dtype == dtype
    np.testing.assert_allclose(value, exact, rtol=0, atol=AGREES[dtype] * abs(exact).max())


def in_torch(p, dtype):
    return {key: torch.from_numpy(value).to(getattr(torch, dtype)) for key, value in p.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_pytorch_finds_what_torchdeq_finds(name, dtype):
    f, p = case(name)
    p = in_torch(p, dtype)

    def g(z):
        return f(torch, p, z)

    z0 = torch.zeros_like(p["x"])
    for method in ("plain", "anderson"):
        found = deq_init.torch.fixed_point(g, z0, method=method, rtol=RTOL[dtype])
        assert found.converged.all()
        assert (found.residual <= RTOL[dtype]).all()
        close(found.value, name, dtype)
    for peer in ("fixed_point_iter", "anderson"):
        deq = torchdeq.get_deq(f_solver=peer, f_max_iter=300, f_tol=RTOL[dtype], f_stop_mode="rel")
        with torch.no_grad():
            (value,), _ = deq(g, z0)
        close(value, name, dtype)


@functools.cache
def jitted(f, solver, dtype, max_steps=1000):
    """A solver of ours or of optimistix, compiled once for all parameters."""

    def solve(p, z0):
        def g(z):
            return f(jnp, p, z)

        if isinstance(solver, str):
            return deq_init.jax.fixed_point(
                g, z0, method=solver, rtol=RTOL[dtype], max_steps=max_steps
            )
        rule = solver(RTOL[dtype], RTOL[dtype])
        return optimistix.fixed_point(lambda z, _: g(z), rule, z0, max_steps=max_steps).value

    return jax.jit(solve)


def x64(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def in_jax(p, dtype):
    return {key: jnp.asarray(value, dtype) for key, value in p.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_jax_finds_what_optimistix_finds(name, dtype):
    f, p = case(name)
    with x64(dtype):
        p = in_jax(p, dtype)
        z0 = jnp.zeros_like(p["x"])
        # Compiling takes most of the time: in float32, not everything again.
        for method in ("plain", "anderson") if dtype == "float64" else ("anderson",):
            found = jitted(f, method, dtype)(p, z0)
            assert found.converged.all()
            close(found.value, name, dtype)
        peers = [optimistix.FixedPointIteration] + [optimistix.Chord] * (dtype == "float64")
        for peer in peers:
            close(jitted(f, peer, dtype)(p, z0), name, dtype)


def test_anderson_is_faster_than_plain_iteration():
    f, p = dense_case("goe", "linear", gain=0.48)
    p = in_torch(p, "float64")
    steps = {
        method: deq_init.torch.fixed_point(
            lambda z: f(torch, p, z), torch.zeros_like(p["x"]), method=method, rtol=1e-8
        ).steps
        for method in ("plain", "anderson")
    }
    assert (2 * steps["anderson"] < steps["plain"]).all()


def _times(matrix, x=1.0, activation="linear"):
    return {
        "w": matrix,
        "x": x * np.random.default_rng(3).standard_normal((BATCH, N)),
        "mix": np.eye(3)[ACTIVATIONS.index(activation)],
    }


DIVERGENT = {
    "gain 3": lambda: dense_case("random", "linear", gain=3.0)[1],
    "overflow": lambda: _times(1e30 * np.eye(N)),
    "period 2": lambda: _times(-np.eye(N)),
    "chaos": lambda: dense_case("antisymmetric", "tanh", gain=4.0)[1],
    "no fixed point": lambda: _times(np.eye(N)),
}


def solved(framework, f, p, z0, method, max_steps):
    """The Solution, as NumPy arrays."""
    if framework == "torch":
        p = in_torch(p, "float32")
        found = deq_init.torch.fixed_point(
            lambda z: f(torch, p, z),
            torch.from_numpy(z0),
            method=method,
            rtol=RTOL["float32"],
            max_steps=max_steps,
        )
    else:
        found = jitted(f, method, "float32", max_steps)(in_jax(p, "float32"), jnp.asarray(z0))
    return [np.asarray(x) for x in (found.value, found.residual, found.steps, found.converged)]


@pytest.mark.parametrize("method", ["plain", "anderson"])
@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("name", DIVERGENT)
def test_divergence_ends_and_is_reported(name, framework, method):
    p = DIVERGENT[name]()
    z0 = np.ones((BATCH, N), np.float32)
    value, residual, steps, converged = solved(framework, dense, p, z0, method, 200)
    assert np.isfinite(value).all()
    assert (steps <= 200).all()
    assert (residual[converged] <= RTOL["float32"]).all()
    if method == "plain" or name == "no fixed point":
        assert not converged.any()
    # Anderson acceleration may find a fixed point that repels: then it is one.
    y = dense(np, p, value.astype(np.float64))
    assert np.linalg.norm((y - value)[converged]) <= 1e-5 * np.linalg.norm(y[converged])
    if name in ("gain 3", "overflow") and method == "plain":
        assert np.isinf(residual).all()
        assert (steps < 60).all()


@pytest.mark.parametrize("method", ["plain", "anderson"])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_samples_do_not_touch_each_other(framework, method):
    """A NaN, an infinity or a lost sample leaves the others' values as they are without it."""
    f, p = dense_case("goe", "tanh")
    z0 = np.zeros((BATCH, N), np.float32)
    clean = solved(framework, f, p, z0, method, 200)
    for bad in (np.nan, np.inf, 1e38):
        spoilt = p | {"x": p["x"].copy()}
        spoilt["x"][1] = bad
        value, _, steps, converged = solved(framework, f, spoilt, z0, method, 200)
        assert converged.tolist() == [True, False, True]
        assert steps[1] <= 2
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(steps[[0, 2]], clean[2][[0, 2]])
        np.testing.assert_allclose(value[[0, 2]], clean[0][[0, 2]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_lost_sample_changes_no_bit_of_the_others(framework):
    """At gain 2, where acceleration is chaotic: whatever differs would grow."""
    w = deq_init.numpy.random((64, 64), 2.0, seed=7, dtype=np.float64)
    x = np.random.default_rng(3).standard_normal((33, 64))
    p = {"w": w, "x": x, "mix": np.eye(3)[1]}
    z0 = np.zeros((33, 64), np.float32)
    clean = solved(framework, dense, p, z0, "anderson", 300)
    x[4] = np.nan
    spoilt = solved(framework, dense, p, z0, "anderson", 300)
    assert clean[2][4] > 20
    for one, other in zip(clean, spoilt, strict=True):
        np.testing.assert_array_equal(np.delete(one, 4, 0), np.delete(other, 4, 0))


LOOPS = {
    "numpy": (numpy_loops, np, np.asarray),
    "torch": (torch_loops, torch, torch.from_numpy),
    "jax": (jax_loops, jnp, jnp.asarray),
    "tensorflow": (tensorflow_loops, tf, tf.constant),
}


@pytest.mark.parametrize("framework", LOOPS)
def test_a_step_out_of_the_domain_of_f_loses_no_sample(framework):
    """log(1 + a z), to which plain iteration converges from z = 3 and which Anderson's steps leave.

    The first of the fixed points are SciPy's, by bracketing; of the others, 1 in 13 was lost.
    """
    loops, ops, to = LOOPS[framework]
    first = np.array([[1.3360, 0.7263, 2.0441, 1.8436]])
    a = np.concatenate([first, np.random.default_rng(0).uniform(0.6, 2.1, (200, 4))])
    roots = [brentq(lambda z, b=b: np.log(1 + b * z) - z, 0.1, 3) if b > 1 else 0 for b in first[0]]
    log = tf.math.log if ops is tf else ops.log
    with jax.enable_x64(), np.errstate(invalid="ignore"):
        slopes = to(a)
        z0 = to(np.full(a.shape, 3.0))
        found = core.solve(loops, lambda z: log(1 + slopes * z), z0, rtol=1e-5, max_steps=200)
        value, converged = np.asarray(found.value), np.asarray(found.converged)
    assert converged.all()
    np.testing.assert_allclose(value[0], roots, atol=1e-4)
    y = np.log(1 + a * value)
    assert (np.linalg.norm(y - value, axis=1) <= 1.001e-5 * np.linalg.norm(y, axis=1)).all()


def test_a_sample_whose_plain_step_fails_too_is_lost():
    """sqrt(z) - 1 has no fixed point: from any start, iterates become negative."""
    for method in ("plain", "anderson"):
        found = deq_init.torch.fixed_point(
            lambda z: z.sqrt() - 1, torch.tensor([[9.0], [0.5]]), method=method
        )
        assert torch.isinf(found.residual).all()
        assert not found.converged.any()
        assert (found.steps < 20).all()
        assert torch.isfinite(found.value).all()


@pytest.mark.parametrize("method", ["plain", "anderson"])
def test_without_convergence_the_best_iterate_is_returned(method):
    """Of those that f was called with: at gain 4, residuals go up and down."""
    f, p = dense_case("antisymmetric", "tanh", gain=4.0)
    seen = []

    def recorded(z):
        y = f(np, p, z)
        seen.append((z, np.linalg.norm(y - z, axis=1) / np.linalg.norm(y, axis=1)))
        return y

    found = core.solve(
        numpy_loops, recorded, np.zeros((BATCH, N)), method=method, rtol=1e-9, max_steps=40
    )
    iterates, residuals = (np.stack(x) for x in zip(*seen, strict=True))
    assert not found.converged.any()
    best = residuals.argmin(0)
    assert (best < 39).any()
    np.testing.assert_array_equal(found.index, best)
    np.testing.assert_array_equal(found.value, iterates[best, np.arange(BATCH)])
    np.testing.assert_allclose(found.residual, residuals.min(0), rtol=1e-12)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_unrolled_gradient_is_that_of_the_best_iterate(framework):
    """Eight plain steps in float64, against the loop written out to the best of their iterates."""
    f, p = dense_case("antisymmetric", "tanh", gain=2.0)
    p = in_torch(p, "float64")
    z, iterates = torch.zeros(BATCH, N, dtype=torch.float64), []
    w = p["w"].requires_grad_()
    for _ in range(8):
        iterates.append((z, (f(torch, p, z) - z).norm(dim=1) / f(torch, p, z).norm(dim=1)))
        z = f(torch, p, z)
    best = torch.stack([residual for _, residual in iterates]).argmin(0)
    assert (best < 7).any()
    expected = torch.stack([z for z, _ in iterates])[best, torch.arange(BATCH)]
    (slope,) = torch.autograd.grad((expected**2).sum(), w)
    if framework == "torch":
        z0 = torch.zeros_like(p["x"])
        found = deq_init.torch.fixed_point(
            lambda z: f(torch, p, z), z0, method="plain", max_steps=8
        )
        value = deq_init.torch.implicit.unrolled(lambda z: f(torch, p, z), z0, found).value
        (gradient,) = torch.autograd.grad((value**2).sum(), w)
        stated = found.value
    else:
        with jax.enable_x64():
            q = {name: jnp.asarray(x.detach().numpy()) for name, x in p.items()}
            z0 = jnp.zeros_like(q["x"])
            found = deq_init.jax.fixed_point(
                lambda z: f(jnp, q, z), z0, method="plain", max_steps=8
            )

            def loss(w):
                value = deq_init.jax.implicit.unrolled(
                    lambda w, z: f(jnp, q | {"w": w}, z), w, z0, found, max_steps=8
                ).value
                return (value**2).sum(), value

            gradient, value = jax.grad(loss, has_aux=True)(q["w"])
        stated = found.value
    for one in (value, stated):
        np.testing.assert_allclose(np.array(one.tolist()), expected.detach(), atol=1e-12)
    np.testing.assert_allclose(np.array(gradient.tolist()), slope, atol=1e-10)


@pytest.mark.parametrize("method", ["plain", "anderson"])
def test_degenerate_states(method):
    """No sample; a fixed point at the start, of length 0; one number a sample."""
    for api, xp in ((deq_init.torch, torch), (deq_init.jax, jnp)):
        empty = api.fixed_point(lambda z: 0.5 * z, xp.zeros((0, 4)), method=method)
        assert empty.value.shape == (0, 4)
        assert empty.converged.shape == empty.steps.shape == (0,)
        at_zero = api.fixed_point(lambda z: 0.5 * z, xp.zeros((2, 4)), method=method)
        assert at_zero.converged.all()
        assert (at_zero.value == 0).all()
        assert (at_zero.steps == 1).all()
        # |f(z) - z| / |f(z)| is 1 all the way, and yet 0 is the fixed point.
        to_zero = api.fixed_point(lambda z: 0.5 * z, xp.ones((2, 4)), method=method)
        assert to_zero.converged.all()
        assert abs(to_zero.value).max() < 1e-6
        scalar = api.fixed_point(lambda z: 0.5 * z + 1, xp.zeros(3), method=method)
        np.testing.assert_allclose(np.asarray(scalar.value), 2.0, rtol=1e-4)
        assert scalar.residual.shape == (3,)


def test_states_are_trees():
    def f(z):
        return {"a": 0.5 * z["a"] + z["b"][0], "b": (0.25 * z["b"][0] + 1,)}

    for api, xp in ((deq_init.torch, torch), (deq_init.jax, jnp)):
        z0 = {"b": (xp.zeros((2, 3)),), "a": xp.zeros((2, 3))}
        solve = functools.partial(api.fixed_point, f, rtol=1e-6)
        found = (jax.jit(solve) if xp is jnp else solve)(z0)
        assert list(found.value) == (["b", "a"] if xp is torch else ["a", "b"])
        np.testing.assert_allclose(np.asarray(found.value["b"][0]), 4 / 3, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(found.value["a"]), 8 / 3, rtol=1e-5)


def test_acceleration_does_not_follow_the_rounding_of_a_half_precision_leaf():
    """(a, b) -> (tanh(W a) + b / 2, a / 2 + 1), a in bfloat16, for 1000 GOE matrices at once.

    Without the ridge that knows of it, three take over 200 steps, and one of them over 1000.
    """
    w = np.stack([deq_init.numpy.goe((4, 4), 0.4, seed=seed) for seed in range(1000)])

    def f(state):
        a, b = state
        new = torch.tanh(torch.einsum("bij,bj->bi", torch.from_numpy(w), a.float())) + 0.5 * b
        return new.bfloat16(), 0.5 * a.float() + 1

    start = torch.ones(1000, 4, dtype=torch.bfloat16), torch.ones(1000, 4)
    solve = functools.partial(deq_init.torch.fixed_point, f, start, rtol=8e-3, max_steps=200)
    assert solve().converged.all()
    assert (~solve(rounding=0.0).converged).sum() >= 2

    def g(state):
        a, b = state
        new = jnp.tanh(jnp.einsum("bij,bj->bi", w, a.astype("float32"))) + 0.5 * b
        return new.astype("bfloat16"), 0.5 * a.astype("float32") + 1

    begin = jnp.ones((1000, 4), "bfloat16"), jnp.ones((1000, 4))
    solve = functools.partial(deq_init.jax.fixed_point, g, begin, rtol=8e-3, max_steps=200)
    assert solve().converged.all()
    assert (~solve(rounding=0.0).converged).sum() >= 2


def test_small_systems():
    """Every backend's, in float64 against NumPy's LU; an indefinite one changes no other's bits.

    diag(-1e-20, 1, ..., 1) with the least pivot 1e-3 is solved as diag(1e-3, 1, ..., 1), to 1e-3.
    """
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((7, 5, 5))
    a = factors @ factors.mT + 0.1 * np.eye(5)
    b = rng.standard_normal((7, 5))
    expected = np.linalg.solve(a, b[..., None])[..., 0]
    worse = a.copy()
    worse[3] = np.diag([-1e-20, 1, 1, 1, 1])
    raised = b[3] / [1e-3, 1, 1, 1, 1]
    loops = (
        (numpy_loops, np.array),
        (torch_loops, torch.from_numpy),
        (jax_loops, jnp.asarray),
        (tensorflow_loops, tf.constant),
    )
    for xp, array in loops:
        with jax.enable_x64():
            found, changed = (
                np.asarray(xp.solve_positive(array(x), array(b), 1e-3)) for x in (a, worse)
            )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * abs(expected).max())
        np.testing.assert_allclose(changed[3], raised, rtol=1.1e-3)
        np.testing.assert_array_equal(np.delete(changed, 3, 0), np.delete(found, 3, 0))


def test_a_map_that_writes_to_its_argument_is_not_taken_for_a_fixed_point():
    z0 = torch.ones(2, 3)
    found = deq_init.torch.fixed_point(lambda z: z.mul_(0.5).add_(1), z0)
    assert found.converged.all()
    torch.testing.assert_close(found.value, torch.full((2, 3), 2.0), rtol=1e-4, atol=0)
    assert (z0 == 1).all()
    norm = deq_init.torch.jacobian_norm(lambda z: z.mul_(0.5).add_(1), z0)
    torch.testing.assert_close(norm.value, torch.full((2,), 0.5))


@pytest.mark.parametrize(
    "options",
    [{"method": "newton"}, {"rtol": 0.0}, {"max_steps": 0}, {"damping": 1.5}, {"rounding": -1.0}],
)
def test_options_out_of_range(options):
    with pytest.raises(SolverError, match="expected"):
        deq_init.torch.fixed_point(lambda z: z, torch.ones(1, 2), **options)


# --- Peers' solvers instead of ours -------------------------------------------------------------


def norm_at(p, z):
    """The mean over the batch of |J|, dense, in float64, for tanh."""
    h = np.asarray(z, np.float64) @ p["w"].T
    return np.linalg.norm((1 - np.tanh(h) ** 2)[:, :, None] * p["w"], 2, axis=(1, 2)).mean()


def fixed_point_in_numpy(p):
    z = np.zeros_like(p["x"])
    for _ in range(500):
        z = dense(np, p, z)
    return z


def test_torchdeq_solves_for_a_rescaling():
    f, p = dense_case("goe", "tanh", gain=0.2)
    tensors = in_torch(p, "float32")
    weight = torch.nn.Parameter(tensors["w"])
    deq = torchdeq.get_deq(f_solver="anderson", f_max_iter=100, f_tol=1e-5)
    calls = []

    def solver(g, z0):
        calls.append(z0)
        return deq(g, z0)[0][-1]

    def g(z):
        return f(torch, tensors | {"w": weight}, z)

    z0 = torch.zeros_like(tensors["x"])
    result = deq_init.torch.rescale_jacobian_(weight, g, z0, jacobian_norm=0.6, solver=solver)
    assert result.reached
    assert len(calls) == result.solves
    new = p | {"w": weight.detach().double().numpy()}
    assert abs(norm_at(new, fixed_point_in_numpy(new)) / 0.6 - 1) < 0.011


def optimistix_solver(throw):
    def solver(g, z0):
        rule = optimistix.FixedPointIteration(1e-5, 1e-5)
        return optimistix.fixed_point(lambda z, _: g(z), rule, z0, max_steps=100, throw=throw).value

    return solver


def rescaled_by_optimistix(target, *, throw, activation="tanh"):
    f, p = dense_case("goe", activation, gain=0.2)
    arrays = in_jax(p, "float32")
    new, result = deq_init.jax.rescale_jacobian(
        lambda p, z: f(jnp, p, z),
        arrays,
        jnp.zeros_like(arrays["x"]),
        jacobian_norm=target,
        where="w",
        solver=optimistix_solver(throw),
        family="goe",
        activation=activation,
    )
    return p | {"w": np.asarray(new["w"], np.float64)}, result


def test_optimistix_solves_for_a_rescaling():
    new, result = rescaled_by_optimistix(0.6, throw=False)
    assert result.reached
    assert abs(norm_at(new, fixed_point_in_numpy(new)) / 0.6 - 1) < 0.011


def test_a_peer_that_raises_is_told_apart_and_one_that_does_not_is_believed():
    """A linear GOE map of norm 1.5 has no fixed point that plain iteration finds."""
    new, result = rescaled_by_optimistix(1.5, throw=False, activation="linear")
    assert not result.reached
    assert "fixed point was lost" in result.reason
    np.testing.assert_array_equal(new["w"], dense_case("goe", "linear", 0.2)[1]["w"].astype("f4"))
    with pytest.raises(RuntimeError, match="maximum number of steps") as error:
        rescaled_by_optimistix(1.5, throw=True, activation="linear")
    assert any("throw=False" in note for note in error.value.__notes__)


def test_a_solver_that_raises_leaves_the_weights():
    weight = torch.nn.Parameter(0.1 * torch.eye(4))

    def solver(f, z):
        raise RuntimeError("no fixed point")

    def f(z):
        return z @ weight.T + 1

    with pytest.raises(RuntimeError, match="no fixed point") as error:
        deq_init.torch.rescale_jacobian_(
            weight, f, torch.zeros(1, 4), jacobian_norm=0.5, solver=solver
        )
    assert any("as they were" in note for note in error.value.__notes__)
    assert torch.equal(weight.detach(), 0.1 * torch.eye(4))


def test_a_solver_that_returns_more_than_the_state():
    weight = torch.nn.Parameter(0.1 * torch.eye(4))
    with pytest.raises(FunctionError, match="expected solver to return a state"):
        deq_init.torch.rescale_jacobian_(
            weight,
            lambda z: z @ weight.T,
            torch.zeros(1, 4),
            jacobian_norm=0.5,
            solver=lambda f, z: (z, z),
        )
    assert torch.equal(weight.detach(), 0.1 * torch.eye(4))
