"""Rescaling weights to a Jacobian's norm or radius: how fast, how right, and when it cannot be."""

import math
import re

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch

import deq_init.jax
import deq_init.keras
import deq_init.numpy
import deq_init.torch
from deq_init import jacobian, theory
from deq_init.errors import DeqInitError, ScaleError, SelectionError, ShapeError
from deq_init.jacobian import Measurement, Target

SLOPES = {"tanh": lambda h: 1 - np.tanh(h) ** 2, "relu": lambda h: (h > 0) * 1.0}


class Deq:
    """z = φ(W z + b) + x in PyTorch, and the dense truth about it in float64."""

    def __init__(self, w, x, activation, bias=0.0):
        self.weight = torch.nn.Parameter(torch.from_numpy(np.array(w)))
        self.before = self.weight.detach().clone()
        self.x, self.activation, self.bias = torch.from_numpy(x.astype(w.dtype)), activation, bias

    def __call__(self, z):
        return getattr(torch, self.activation)(z @ self.weight.T + self.bias) + self.x

    def rescale(self, **options):
        return deq_init.torch.rescale_jacobian_(
            self.weight, self, torch.zeros_like(self.x), **options
        )

    def dense(self, kind):
        """The mean over the batch, at the fixed point found by plain iteration in float64."""
        w, x = self.weight.detach().double().numpy(), self.x.double().numpy()
        z = np.zeros_like(x)
        phi = {"tanh": np.tanh, "relu": lambda h: np.maximum(h, 0)}[self.activation]
        for _ in range(3000):
            before, z = z, phi(z @ w.T + self.bias) + x
            if abs(z - before).max() < 1e-13:
                break
        else:
            pytest.fail("plain iteration does not converge")
        jacobians = SLOPES[self.activation](z @ w.T + self.bias)[:, :, None] * w
        if kind == "jacobian_norm":
            return np.linalg.norm(jacobians, 2, axis=(1, 2)).mean()
        return abs(np.linalg.eigvals(jacobians)).max(axis=1).mean()


def sampled(family, activation, n, batch, gain=1.0, seed=0, dtype=np.float32):
    w = getattr(deq_init.numpy, family)((n, n), gain, seed=seed, dtype=dtype)
    return Deq(w, np.random.default_rng(seed).standard_normal((batch, n)), activation)


# --- How fast and how right ---------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.5, 0.95])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("family", ["random", "orthogonal", "goe"])
def test_few_solves_from_the_mean_field_scale(family, activation, target):
    deq = sampled(family, activation, 512, 8)
    result = deq.rescale(jacobian_norm=target, family=family, activation=activation)
    assert result.reached
    assert result.solves <= 3
    assert torch.equal(deq.weight.detach(), deq.before * result.factor)
    if target == 0.5 and family == "goe":
        assert abs(deq.dense("jacobian_norm") / target - 1) < 0.01


@pytest.mark.parametrize("kind", ["jacobian_norm", "spectral_radius"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("family", ["random", "orthogonal", "goe", "antisymmetric"])
def test_a_tight_tolerance_is_met_by_the_dense_jacobian(family, activation, kind):
    deq = sampled(family, activation, 64, 4, dtype=np.float64)
    result = deq.rescale(rtol=1e-3, family=family, activation=activation, **{kind: 0.8})
    if activation == "tanh":
        assert result.reached
        assert result.solves <= 5
    if result.reached:
        assert abs(deq.dense(kind) / 0.8 - 1) <= 1e-3
        assert abs(result.achieved / 0.8 - 1) <= 1e-3
    else:  # relu's radius jumps, for few samples
        assert "jumps over 0.8" in result.reason
        assert torch.equal(deq.weight.detach(), deq.before)


def test_float32_meets_what_its_rounding_allows():
    deq = sampled("goe", "tanh", 64, 4)
    assert deq.rescale(rtol=1e-5, jacobian_norm=0.8).reached
    assert abs(deq.dense("jacobian_norm") / 0.8 - 1) <= 2e-5


@pytest.mark.parametrize("family", ["random", "orthogonal", "goe", "antisymmetric"])
def test_the_first_factor_undoes_any_scale_of_the_weight(family):
    """The weight's gain is estimated from its entries, in the mean square exactly."""
    wanted = jacobian.target(0.9, None, 0.01)
    factors = []
    for seed in range(8):
        w = getattr(deq_init.numpy, family)((64, 64), 3.0, seed=seed, dtype=np.float64)
        factors.append(
            jacobian.mean_field_factor(
                wanted,
                [(w.shape, np.linalg.norm(w))],
                family=family,
                activation="relu",
                form="in",
                input_variance=2.0,
            )
        )
    gain = theory.gain_for(family, "relu", jacobian_norm=0.9, form="in", input_variance=2.0, n=64)
    # |W|² has the relative deviation 2 / n at most; 8 samples: 5 of their deviations.
    assert abs(np.mean(factors) * 3.0 / gain - 1) < 5 / 64 / math.sqrt(8)


def test_theory_corrects_the_gain_for_finite_n():
    gain = theory.gain_for("goe", "tanh", jacobian_norm=0.8, n=128)
    assert theory.jacobian_norm("goe", gain, "tanh", n=128) == pytest.approx(0.8, rel=1e-9)
    assert gain > theory.gain_for("goe", "tanh", jacobian_norm=0.8)
    assert theory.gain_for("goe", spectral_radius=0.5, n=128) == theory.gain_for(
        "goe", spectral_radius=0.5
    )


def test_a_target_beyond_the_theory_falls_back_to_measuring():
    options = {"family": "goe", "activation": "relu", "form": "out", "input_variance": 1.0}
    size = [((64, 64), 8.0)]
    beyond = jacobian.target(1.3, None, 0.01)
    assert jacobian.mean_field_factor(beyond, size, **options) is None
    wanted = jacobian.target(0.9, None, 0.01)
    assert jacobian.mean_field_factor(wanted, [((64, 64), 0.0)], **options) is None
    assert jacobian.mean_field_factor(wanted, [((64, 64), math.nan)], **options) is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"family": "goe"}, ScaleError, "family and activation together"),
        ({"activation": "tanh"}, ScaleError, "family and activation together"),
        ({"family": "ginibre", "activation": "tanh"}, DeqInitError, "family"),
        ({"family": "goe", "activation": "wiggle"}, DeqInitError, "activation"),
        ({"family": "goe", "activation": "tanh", "form": "both"}, ScaleError, "form"),
        ({"family": "goe", "activation": "tanh", "input_variance": -1}, ScaleError, "input_var"),
    ],
)
def test_what_is_known_of_the_law_is_checked(options, error, message):
    deq = sampled("goe", "tanh", 8, 1)
    with pytest.raises(error, match=message):
        deq.rescale(jacobian_norm=0.5, **options)
    assert torch.equal(deq.weight.detach(), deq.before)


def test_the_mean_field_is_that_of_one_square_weight():
    layers = [torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(6, 4, bias=False)]
    with pytest.raises(SelectionError, match=r"one square weight .*\(6, 4\), \(4, 6\)"):
        deq_init.torch.rescale_jacobian_(
            [layer.weight for layer in layers],
            torch.nn.Sequential(*layers),
            torch.zeros(1, 4),
            jacobian_norm=0.5,
            family="random",
            activation="relu",
        )


def test_jax_starts_from_the_mean_field_scale():
    w = deq_init.numpy.goe((128, 128), 1.0, seed=0)
    x = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    state = {"z": jnp.zeros((8, 8, 16))}  # a tree, and a matrix for each sample

    def f(params, state):
        z = state["z"].reshape(-1, 128)
        z = jnp.tanh(z @ params["layer"]["kernel"]) + params["layer"]["x"]
        return {"z": z.reshape(state["z"].shape)}

    params = {"layer": {"kernel": jnp.asarray(w), "x": jnp.asarray(x)}, "depth": 3}
    new, result = deq_init.jax.rescale_jacobian(
        f, params, state, jacobian_norm=0.8, where="*kernel", family="goe", activation="tanh"
    )
    assert result.reached
    assert result.solves <= 3
    assert new["depth"] == 3
    assert (new["layer"]["x"] == x).all()
    deq = Deq(np.asarray(new["layer"]["kernel"]).T, x, "tanh")
    assert abs(deq.dense("jacobian_norm") / 0.8 - 1) < 0.01

    norm = jax.jit(lambda z: deq_init.jax.jacobian_norm(lambda z: f(new, z), z))
    assert norm(state).value.shape == (8,)


# --- When it cannot be --------------------------------------------------------------------------


def not_monotone():
    """W = 11ᵀ/n + 0.3 random, φ(W z + 0.5): the norm rises, falls and rises again in the scale."""
    n = 256
    w = 1 / n + deq_init.numpy.random((n, n), 0.3, seed=1, dtype=np.float64)
    return Deq(w, np.zeros((1, n)), "tanh", bias=0.5)


def test_a_norm_that_is_not_monotone_in_the_scale():
    deq = not_monotone()
    values = []
    for factor in (0.65, 1.0, 1.4):
        deq.weight.data = deq.before * factor
        values.append(deq.dense("jacobian_norm"))
    assert values[0] > 1.1 * values[1]
    assert values[2] > 1.1 * values[1]
    deq.weight.data = deq.before.clone()
    lost = deq.rescale(jacobian_norm=0.9)
    assert not lost.reached
    assert "stayed below 0.9" in lost.reason
    assert torch.equal(deq.weight.detach(), deq.before)
    # The value reported is that at the factor reported.
    deq.weight.data = deq.before * lost.factor
    z = deq_init.torch.fixed_point(deq, torch.zeros_like(deq.x), rtol=1e-6)
    assert z.converged.all()
    norm = deq_init.torch.jacobian_norm(deq, z.value).value.item()
    assert norm == pytest.approx(lost.achieved, rel=0.01)
    # 0.25 lies on three branches: any will do.
    deq = not_monotone()
    assert deq.rescale(jacobian_norm=0.25).reached
    assert abs(deq.dense("jacobian_norm") / 0.25 - 1) < 0.01


def jumping():
    """z_3 = relu(s² - s): active from the scale s = 1 on, where |J| jumps from 1 to 1.618."""
    w = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 1.0, 0.0]])
    return Deq(w, np.array([[1.0, 0.0, 0.0]]), "relu")


@pytest.mark.parametrize("rtol", [0.01, 1e-3])
def test_a_target_in_a_jump_is_named_as_such(rtol):
    deq = jumping()
    result = deq.rescale(jacobian_norm=1.3, rtol=rtol)
    assert not result.reached
    assert "jumps over 1.3" in result.reason
    assert result.factor == pytest.approx(1, abs=rtol)
    assert min(abs(result.achieved - 1), abs(result.achieved - 1.618)) < 0.01
    assert torch.equal(deq.weight.detach(), deq.before)
    assert jumping().rescale(jacobian_norm=1.7, rtol=rtol).reached


@pytest.mark.parametrize("seed", range(4))
def test_one_relu_sample_is_met_or_its_jump_is_named(seed):
    deq = sampled("goe", "relu", 48, 1, gain=0.3, seed=seed, dtype=np.float64)
    result = deq.rescale(jacobian_norm=1.0, rtol=1e-4)
    if result.reached:
        assert abs(deq.dense("jacobian_norm") - 1) <= 1e-4
    else:
        assert "jumps over 1" in result.reason
        assert torch.equal(deq.weight.detach(), deq.before)


@pytest.mark.parametrize(
    ("family", "kind", "target"),
    [
        ("goe", "jacobian_norm", 1.3),  # 1.207 where the fixed point ends
        ("goe", "spectral_radius", 1.2),
    ],
)
def test_a_lost_fixed_point_is_named(family, kind, target, monkeypatch):
    monkeypatch.setattr(jacobian, "SOLVER_STEPS", 300)
    deq = sampled(family, "relu", 64, 4, gain=0.3, seed=1)
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        return deq(z)

    result = deq_init.torch.rescale_jacobian_(
        deq.weight, f, torch.zeros_like(deq.x), **{kind: target}
    )
    assert not result.reached
    assert f"stayed below {target:g}" in result.reason
    assert "the fixed point was lost at factor" in result.reason
    assert 0.5 < result.achieved < target
    assert result.solves <= 12
    assert calls <= 12 * (jacobian.SOLVER_STEPS + 2)
    assert torch.equal(deq.weight.detach(), deq.before)


# --- The search, on functions of the scale ------------------------------------------------------


def searched(value, wanted, first=1.0, error=0.0, **options):
    """Search where the value at a factor is given; None stands for a lost fixed point."""
    asked = []

    def evaluate(factor):
        asked.append(factor)
        found = value(factor)
        if found is None:
            return Measurement(math.nan, math.inf, False)
        return Measurement(found, error * found, True)

    return jacobian.search(wanted, first, evaluate, **options), asked


def test_search_needs_one_evaluation_where_the_value_is_proportional():
    result, asked = searched(lambda s: 2 * s, Target("jacobian_norm", 0.5, 1e-3), first=2.0)
    assert (result.reached, result.solves, asked) == (True, 1, [0.25])
    result, asked = searched(
        lambda s: 2 * s, Target("jacobian_norm", 0.5, 1e-3), first=9.0, start=0.25
    )
    assert (result.reached, asked) == (True, [0.25])


@pytest.mark.parametrize("first", [1.0, 1e-6, 1e6, 0.0, math.nan, math.inf])
def test_search_comes_back_from_any_first_guess(first):
    """A value that levels off, as tanh's does, and is lost beyond a scale."""

    def value(s):
        return s / (1 + 0.1 * s) if s < 20 else None

    result, _ = searched(value, Target("jacobian_norm", 3.0, 0.01), first=first)
    if 0.1 < first < 10 or not 0 < first < math.inf:
        assert result.reached
    assert result.solves <= 12
    assert result.reached == (abs(result.achieved / 3 - 1) <= 0.01)


def test_search_stops_where_the_measurement_cannot_tell():
    result, asked = searched(lambda s: s, Target("jacobian_norm", 0.5, 0.01), error=0.05)
    assert not result.reached
    assert "may be off by" in result.reason
    assert len(asked) == 1


def test_search_ends_where_the_value_does_not_depend_on_the_scale():
    result, asked = searched(lambda s: 0.5, Target("spectral_radius", 0.9, 0.01), first=0.5)
    assert "spectral radius stayed below 0.9" in result.reason
    assert len(asked) == result.solves == 12
    assert result.achieved == 0.5


# --- Weights of every kind ----------------------------------------------------------------------


def rescaled(weights, f, n=4, **options):
    return deq_init.torch.rescale_jacobian_(
        weights, f, torch.zeros(2, n), jacobian_norm=0.5, **options
    )


def test_views_strides_and_ties_are_scaled_once():
    base = torch.eye(4).repeat(2, 2)
    strided = base.t()[::2, ::2]  # not contiguous, [[I, I], [I, I]] of halves
    before = base.clone()
    result = rescaled([strided, strided, base], lambda z: z @ base[:4, :4] + 1)
    assert result.reached
    assert result.factor == pytest.approx(0.5, rel=0.01)
    torch.testing.assert_close(base, before * result.factor)


def test_half_precision_weights_are_rounded_once():
    weight = torch.nn.Parameter(deq_init.torch.goe_(torch.empty(32, 32), seed=0).bfloat16())
    before = weight.detach().clone()
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    result = rescaled(weight, lambda z: torch.tanh(z @ weight.float().T) + x, n=32)
    assert result.reached
    assert torch.equal(weight.detach(), (before.float() * result.factor).bfloat16())


def test_weights_that_cannot_be_scaled_to_a_target():
    unused, zero = torch.nn.Parameter(torch.eye(4)), torch.nn.Parameter(torch.zeros(4, 4))
    result = rescaled(unused, lambda z: 0.25 * z + 1)
    assert (result.reached, result.achieved) == (False, pytest.approx(0.25))
    result = rescaled(zero, lambda z: z @ zero + 1)
    assert (result.reached, result.achieved) == (False, 0)
    assert not zero.detach().any()
    with pytest.raises(ShapeError, match="at least one sample"):
        deq_init.torch.rescale_jacobian_(
            unused, lambda z: z @ unused, torch.zeros(0, 4), jacobian_norm=0.5
        )
    assert torch.equal(unused.detach(), torch.eye(4))


def test_an_exception_midway_leaves_the_weights():
    weight = torch.nn.Parameter(0.1 * torch.eye(4))

    def f(z):
        if weight[0, 0] > 0.1001:
            raise KeyboardInterrupt
        return z @ weight + 1

    with pytest.raises(KeyboardInterrupt):
        rescaled(weight, f)
    assert torch.equal(weight.detach(), 0.1 * torch.eye(4))


@pytest.mark.parametrize("framework", ["torch", "jax", "keras"])
def test_rounding_is_given_as_the_reason(framework, monkeypatch):
    """Not where the fixed point was lost: f in float32 has the norm 0.7 at a factor near 0.9."""
    monkeypatch.setattr(jacobian, "SOLVER_STEPS", 100)
    w = deq_init.numpy.orthogonal((64, 64), 0.8, seed=0).astype(np.float32)
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    if framework == "torch":
        weight, inputs = torch.tensor(w), torch.tensor(x)

        def f(z):
            with torch.autocast("cpu", torch.bfloat16):
                return torch.tanh(z @ weight.T).float() + inputs

        exact = lambda z: torch.tanh(z @ weight.T) + inputs  # noqa: E731
        z0 = torch.zeros(8, 64)
        rounded, right = (
            deq_init.torch.rescale_jacobian_(weight, g, z0, jacobian_norm=0.7) for g in (f, exact)
        )
    elif framework == "jax":

        def half(w, z):
            return jnp.tanh(z.astype(jnp.bfloat16) @ w.T.astype(jnp.bfloat16)) + x

        exact = lambda w, z: jnp.tanh(z @ w.T) + x  # noqa: E731
        rounded, right = (
            deq_init.jax.rescale_jacobian(g, w, np.zeros_like(x), jacobian_norm=0.7)[1]
            for g in (half, exact)
        )
    else:
        variable = keras.Variable(w)

        def cell(z, dtype):
            product = keras.ops.cast(z, dtype) @ keras.ops.transpose(
                keras.ops.cast(variable, dtype)
            )
            return keras.ops.cast(keras.ops.tanh(product), "float32") + x

        rounded, right = (
            deq_init.keras.rescale_jacobian(
                variable,
                lambda z, dtype=dtype: cell(z, dtype),
                keras.ops.zeros((8, 64)),
                jacobian_norm=0.7,
            )
            for dtype in ("bfloat16", "float32")
        )
    assert not rounded.reached
    assert re.match("f rounds, or is random, by about .*in float32", rounded.reason)
    assert right.reached
    assert 0.8 < right.factor < 1


def test_a_map_that_is_random_has_no_fixed_point(monkeypatch):
    """Dropout in training mode: neither a wrong value nor weights that have moved."""
    monkeypatch.setattr(jacobian, "SOLVER_STEPS", 100)
    layer = torch.nn.Linear(16, 16)
    before = layer.weight.detach().clone()
    dropout = torch.nn.Dropout(0.5)

    def f(z):
        return dropout(torch.tanh(layer(z)) + 1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = rescaled(layer.weight, f, n=16)
        assert not result.reached
        assert "no fixed point was found" in result.reason
        assert torch.equal(layer.weight.detach(), before)
        dropout.eval()
        assert rescaled(layer.weight, f, n=16).reached


def test_compiled_maps_and_views_of_the_state():
    layer = torch.nn.Linear(8, 8)
    compiled = torch.compile(lambda z: torch.tanh(layer(z)), backend="aot_eager")
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    norm = deq_init.torch.jacobian_norm(compiled, z)
    expected = deq_init.torch.jacobian_norm(lambda z: torch.tanh(layer(z)), z)
    torch.testing.assert_close(norm.value, expected.value)
    flipped = deq_init.torch.jacobian_norm(lambda z: z.flip(1).view(2, 4, 2).view(2, 8), z)
    torch.testing.assert_close(flipped.value, torch.ones(2))
    assert layer.weight.grad is None
    itself = deq_init.torch.jacobian_spectral_radius(lambda z: z, z)
    torch.testing.assert_close(itself.value, torch.ones(2))


def test_states_as_trees_in_pytorch():
    """Two leaves of which one halves and the other feeds it: J = [[W, I], [0, 0.5]]."""
    weight = torch.nn.Parameter(torch.diag(torch.tensor([0.3, 0.1])))

    def f(z):  # the keys come in another order than in the state
        return {"b": (0.5 * z["b"][0],), "a": z["a"] @ weight + z["b"][0] + 1}

    z0 = {"a": torch.zeros(1, 2), "b": (torch.zeros(1, 2),)}
    result = deq_init.torch.rescale_jacobian_(weight, f, z0, spectral_radius=0.9)
    assert result.reached
    assert weight[0, 0].item() == pytest.approx(0.9, rel=0.01)
    dense = np.block([[weight.detach().numpy(), np.eye(2)], [np.zeros((2, 2)), 0.5 * np.eye(2)]])
    norm = deq_init.torch.jacobian_norm(f, z0).value.item()
    assert norm == pytest.approx(np.linalg.norm(dense, 2), rel=1e-3)


def test_states_as_trees_in_jax_in_float64():
    """A rotation feeds a leaf that halves: the radius is the modulus of a complex pair."""
    turn = np.array([[0.0, 0.3], [-0.3, 0.0]])

    def f(params, z):
        a, b = z["a"], z["b"]
        return {"a": a @ params["turn"] + 1, "b": (0.5 * b[0] + jnp.tanh(a),)}

    with jax.enable_x64(True):
        params = {"turn": jnp.asarray(turn), "count": jnp.asarray(3)}
        z0 = {"a": jnp.zeros((3, 2)), "b": (jnp.zeros((3, 2)),)}
        new, result = deq_init.jax.rescale_jacobian(
            f, params, z0, spectral_radius=0.9, where="turn", rtol=1e-6
        )
        assert result.reached
        assert new["turn"].dtype == jnp.float64
        assert new["count"] is params["count"]
        radius = abs(np.linalg.eigvals(np.asarray(new["turn"]))).max()
        assert radius == pytest.approx(0.9, rel=1e-6)
        assert result.achieved == pytest.approx(radius, rel=1e-6)


def test_products_that_do_not_fit_change_nothing():
    w = torch.full((4, 4), 100.0, dtype=torch.float16)
    for factor, weight in ((1e4, w), (1e39, torch.ones(4, 4))):
        before = weight.clone()
        with pytest.raises(ScaleError, match="not finite"):
            deq_init.torch.multiply_([torch.eye(4), weight], factor)
        assert torch.equal(weight, before)
    with pytest.raises(ScaleError, match="not finite"):
        deq_init.jax.multiply({"w": np.full((4, 4), 100, np.float16)}, 1e4)
    variable = keras.Variable(np.ones((4, 4), np.float32))
    with pytest.raises(ScaleError, match="not finite"):
        deq_init.keras.multiply(variable, 1e39)
    assert np.array_equal(keras.ops.convert_to_numpy(variable), np.ones((4, 4)))
