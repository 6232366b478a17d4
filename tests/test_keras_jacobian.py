"""The Jacobian at a fixed point in Keras: against the dense one, and against PyTorch's."""

import contextlib

import keras
import numpy as np
import pytest
import torch
from keras import ops

import deq_init.keras
import deq_init.numpy
import deq_init.torch
from deq_init.errors import (
    DTypeError,
    FunctionError,
    ScaleError,
    SelectionError,
    ShapeError,
    SolverError,
)

from backends import FAMILIES, KERAS_BACKEND

N, BATCH = 16, 3
SLOPES = {
    "linear": np.ones_like,
    "tanh": lambda h: 1 - np.tanh(h) ** 2,
    "relu": lambda h: (h > 0) * 1.0,
}


def array(x):
    return np.asarray(ops.convert_to_numpy(x))


def bits(variable):
    return array(variable).tobytes()


def dense(w, activation="tanh", **options):
    """A layer z -> φ(W z), whose kernel is (in, out)."""
    layer = keras.layers.Dense(len(w), activation=activation, use_bias=False, **options)
    layer.build((None, len(w)))
    layer.kernel.assign(w.T)
    return layer


def problem(family, activation, gain=0.4, **options):
    """f(z) = φ(W z) + x on a batch, its layer, W and x."""
    w = getattr(deq_init.numpy, family)((N, N), gain, seed=7)
    x = np.random.default_rng(3).standard_normal((BATCH, N)).astype(np.float32)
    layer = dense(w, activation, **options)
    shift = ops.convert_to_tensor(x)
    return (lambda z: ops.add(layer(z), shift)), layer, w, x


def jacobians(w, activation, z):
    """diag(φ'(W z)) W for each sample, in float64."""
    w = w.astype(np.float64)
    return SLOPES[activation](np.asarray(z, np.float64) @ w.T)[:, :, None] * w


def norms(matrices):
    return np.linalg.norm(matrices, 2, axis=(1, 2))


def radii(matrices):
    return np.abs(np.linalg.eigvals(matrices)).max(axis=1)


@pytest.mark.parametrize("activation", SLOPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_norm_and_radius_at_the_fixed_point(family, activation):
    f, _, w, x = problem(family, activation)
    solution = deq_init.keras.fixed_point(f, np.zeros_like(x))
    assert array(solution.converged).all()
    z = array(solution.value)
    np.testing.assert_allclose(array(f(solution.value)), z, atol=1e-4)
    norm = deq_init.keras.jacobian_norm(f, solution.value)
    np.testing.assert_allclose(array(norm.value), norms(jacobians(w, activation, z)), rtol=1e-3)
    radius = deq_init.keras.jacobian_spectral_radius(f, solution.value)
    np.testing.assert_allclose(array(radius.value), radii(jacobians(w, activation, z)), rtol=1e-3)
    for estimate in (norm, radius):
        assert array(estimate.converged).all()
        assert ops.is_tensor(estimate.value)
        assert tuple(estimate.error.shape) == (BATCH,)


def test_the_numbers_are_those_of_the_torch_adapter():
    f, _, w, x = problem("random", "tanh")
    w_, x_ = map(torch.from_numpy, (w, x))

    def native(z):
        return torch.tanh(z @ w_.T) + x_

    ours = deq_init.keras.fixed_point(f, np.zeros_like(x), rtol=1e-6)
    theirs = deq_init.torch.fixed_point(native, torch.zeros_like(x_), rtol=1e-6)
    np.testing.assert_allclose(array(ours.value), theirs.value.numpy(), atol=1e-4)
    assert array(ours.steps).tolist() == theirs.steps.tolist()
    for name in ("jacobian_norm", "jacobian_spectral_radius"):
        mine = getattr(deq_init.keras, name)(f, ours.value, rtol=1e-5)
        other = getattr(deq_init.torch, name)(native, theirs.value, rtol=1e-5)
        np.testing.assert_allclose(array(mine.value), other.value.numpy(), rtol=1e-4)


def test_radius_of_a_complex_pair():
    """The norm is 1.8, the eigenvalues are 0.9 i and -0.9 i."""
    layer = dense(np.array([[0.0, -1.8], [0.45, 0.0]], np.float32), "linear")
    radius = deq_init.keras.jacobian_spectral_radius(layer, ops.zeros((2, 2)))
    np.testing.assert_allclose(array(radius.value), 0.9, rtol=1e-5)
    norm = deq_init.keras.jacobian_norm(layer, ops.zeros((2, 2)))
    np.testing.assert_allclose(array(norm.value), 1.8, rtol=1e-5)


@pytest.mark.skipif(KERAS_BACKEND == "jax", reason="JAX has no float64 by default")
def test_float64_is_computed_in_float64():
    w = deq_init.numpy.random((8, 8), 0.4, seed=1, dtype=np.float64)
    kernel = ops.convert_to_tensor(w.T)
    z = deq_init.keras.fixed_point(lambda z: z @ kernel + 1.0, np.ones((1, 8)), rtol=1e-12)
    exact = np.linalg.solve(np.eye(8) - w, np.ones(8))
    np.testing.assert_allclose(array(z.value)[0], exact, rtol=1e-10)
    norm = deq_init.keras.jacobian_norm(lambda z: z @ kernel, z.value, rtol=1e-10)
    np.testing.assert_allclose(array(norm.value), np.linalg.norm(w, 2), rtol=1e-10)


def test_radius_of_a_jordan_block():
    """There is no basis of eigenvectors: the value is right, and no error is raised."""
    layer = dense(np.array([[0.5, 1.0], [0.0, 0.5]], np.float32), "linear")
    radius = deq_init.keras.jacobian_spectral_radius(layer, ops.zeros((1, 2)))
    np.testing.assert_allclose(array(radius.value), 0.5, rtol=1e-2)


@pytest.mark.parametrize("method", ["plain", "anderson"])
def test_divergence_and_nan_are_reported_for_their_samples_alone(method):
    f, _, _, x = problem("random", "tanh")
    bad = np.zeros_like(x)
    bad[1] = np.nan
    solution = deq_init.keras.fixed_point(
        lambda z: f(z) + ops.convert_to_tensor(bad), np.zeros_like(x), method=method
    )
    assert array(solution.converged).tolist() == [True, False, True]
    assert array(solution.residual)[1] == np.inf
    clean = deq_init.keras.fixed_point(f, np.zeros_like(x), method=method)
    rows = [0, 2]
    np.testing.assert_allclose(array(solution.value)[rows], array(clean.value)[rows], atol=1e-5)
    f, *_ = problem("random", "linear", gain=3.0)
    lost = deq_init.keras.fixed_point(f, np.zeros_like(x), method="plain", max_steps=200)
    assert (array(lost.residual) == np.inf).all()
    assert np.isfinite(array(lost.value)).all()


def test_nan_in_one_sample_does_not_touch_the_norms_of_the_others():
    f, _, w, x = problem("random", "tanh")
    z = x.copy()
    z[1] = np.nan
    for name, exact in (("jacobian_norm", norms), ("jacobian_spectral_radius", radii)):
        found = array(getattr(deq_init.keras, name)(f, z).value)
        assert np.isnan(found[1])
        expected = exact(jacobians(w, "tanh", x))
        np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], rtol=1e-3)


def test_states_are_trees_whose_leaves_keep_their_dtypes():
    """(a, b) -> (tanh(W a) / 2 + b, a / 2): float16 beside float32, and a list for a tuple."""
    layer = dense(deq_init.numpy.goe((4, 4), 0.4, seed=0))
    start = {"b": (ops.ones((2, 2, 2)), ops.ones((2, 4), "float16"))}

    def f(state):
        b, a = state["b"]
        new = layer(ops.cast(a, "float32")) + 0.5 * ops.reshape(b, (2, 4))
        return {"b": [ops.reshape(0.5 * ops.cast(a, "float32") + 1.0, (2, 2, 2)), new]}

    solution = deq_init.keras.fixed_point(f, start, rtol=1e-3)
    assert array(solution.converged).all()
    assert isinstance(solution.value["b"], tuple)
    b, a = solution.value["b"]
    assert keras.backend.standardize_dtype(a.dtype) == "float16"
    assert tuple(b.shape) == (2, 2, 2)
    np.testing.assert_allclose(array(b).reshape(2, 4), 0.5 * array(a) + 1, atol=5e-3)
    norm = deq_init.keras.jacobian_norm(f, solution.value)
    w = array(layer.kernel).T
    blocks = jacobians(w, "tanh", array(a))
    eye = np.broadcast_to(0.5 * np.eye(4), (2, 4, 4))
    exact = np.block([[np.zeros_like(eye), eye], [eye, blocks]])
    np.testing.assert_allclose(array(norm.value), norms(exact), rtol=5e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_states_and_mixed_policies(dtype):
    """To the rounding of one layer, 2^-10 and 2^-7 an entry."""
    f, layer, w, x = problem("random", "tanh", dtype=f"mixed_{dtype}")
    z0 = ops.cast(np.zeros_like(x), dtype)
    rtol = {"float16": 2e-3, "bfloat16": 2e-2}[dtype]
    solution = deq_init.keras.fixed_point(lambda z: ops.cast(f(z), dtype), z0, rtol=rtol)
    assert array(solution.converged).all()
    assert keras.backend.standardize_dtype(solution.value.dtype) == dtype
    norm = deq_init.keras.jacobian_norm(f, solution.value)
    assert keras.backend.standardize_dtype(norm.value.dtype) == "float32"
    z = array(ops.cast(solution.value, "float32"))
    np.testing.assert_allclose(array(norm.value), norms(jacobians(w, "tanh", z)), rtol=4 * rtol)
    result = deq_init.keras.rescale_jacobian(layer.kernel, f, x, jacobian_norm=0.6, rtol=0.05)
    assert result.reached
    np.testing.assert_allclose(array(layer.kernel), w.T * result.factor, rtol=1e-5)


@pytest.mark.parametrize("kind", ["jacobian_norm", "spectral_radius"])
@pytest.mark.parametrize(
    ("family", "activation"), [("random", "tanh"), ("orthogonal", "relu"), ("goe", "linear")]
)
def test_rescaling_a_kernel(family, activation, kind):
    f, layer, w, x = problem(family, activation, gain=0.2)
    result = deq_init.keras.rescale_jacobian(layer.kernel, f, np.zeros_like(x), **{kind: 0.6})
    assert result.reached, result
    np.testing.assert_allclose(array(layer.kernel), w.T * result.factor, rtol=1e-6)
    z = array(deq_init.keras.fixed_point(f, np.zeros_like(x)).value)
    measured = norms if kind == "jacobian_norm" else radii
    achieved = measured(jacobians(array(layer.kernel).T, activation, z)).mean()
    assert abs(achieved / 0.6 - 1) < 0.015
    assert abs(result.achieved / achieved - 1) < 0.005


def test_rescaling_several_variables_with_a_solver():
    """The product of a kernel and a vector of slopes: both scaled by s give s² of the norm."""
    _, layer, w, x = problem("random", "linear", gain=0.3)
    slopes = keras.Variable(np.ones(N, np.float32))
    states = []

    def solver(f, z):
        states.append(tuple(z.shape))
        for _ in range(60):
            z = f(z)
        return z

    def g(z):
        return layer(z) * slopes + ops.convert_to_tensor(x)

    result = deq_init.keras.rescale_jacobian(
        (v for v in (layer.kernel, slopes, layer.kernel)), g, np.zeros_like(x),
        jacobian_norm=0.7, solver=solver,
    )  # fmt: skip
    assert result.reached, result
    assert states == [(BATCH, N)] * result.solves
    np.testing.assert_allclose(result.factor, np.sqrt(0.7 / np.linalg.norm(w, 2)), rtol=0.01)
    np.testing.assert_allclose(array(slopes), result.factor, rtol=1e-6)
    np.testing.assert_allclose(array(layer.kernel), w.T * result.factor, rtol=1e-6)


def test_an_unreachable_target_leaves_the_kernel_as_it_was():
    """|J| is 0.5, whatever the kernel: it is multiplied by zero."""
    _, layer, _, x = problem("random", "tanh")
    before = bits(layer.kernel)
    result = deq_init.keras.rescale_jacobian(
        layer.kernel, lambda z: 0.5 * z + 0.0 * layer(z), x, jacobian_norm=0.9
    )
    assert not result.reached
    assert "stayed below 0.9" in result.reason
    np.testing.assert_allclose(result.achieved, 0.5, rtol=1e-3)
    assert bits(layer.kernel) == before


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_an_exception_in_f_leaves_the_kernel_as_it_was(calls):
    _, layer, _, x = problem("random", "tanh")
    before, count = bits(layer.kernel), 0

    def f(z):
        nonlocal count
        count += 1
        if count >= calls:
            raise RuntimeError("stop")
        return layer(z)

    with pytest.raises(RuntimeError, match="stop"):
        deq_init.keras.rescale_jacobian(layer.kernel, f, np.zeros_like(x), jacobian_norm=0.3)
    assert bits(layer.kernel) == before


def test_an_exception_after_the_kernel_was_changed_restores_it():
    f, layer, _, x = problem("random", "tanh")
    before, changed = bits(layer.kernel), []

    def solver(f, z):
        changed.append(bits(layer.kernel) != before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deq_init.keras.rescale_jacobian(layer.kernel, f, x, jacobian_norm=0.3, solver=solver)
    assert changed == [True]
    assert bits(layer.kernel) == before


def test_layers_that_are_not_built_yet_are():
    layer = keras.layers.Dense(4, kernel_initializer=deq_init.keras.GOE(gain=0.3, seed=0))
    assert array(deq_init.keras.fixed_point(layer, ops.ones((2, 4))).converged).all()
    w = array(layer.kernel)
    norm = deq_init.keras.jacobian_norm(layer, ops.ones((2, 4)))
    np.testing.assert_allclose(array(norm.value), np.linalg.norm(w, 2), rtol=1e-3)


def test_variables_that_f_updates_stay_readable():
    """Batch normalization in training mode: JAX's placeholders must not end up in its averages."""
    layer = keras.layers.BatchNormalization()
    deq_init.keras.fixed_point(lambda z: 0.5 * layer(z, training=True), ops.ones((2, 4)))
    assert all(np.isfinite(weight).all() for weight in layer.get_weights())


@pytest.mark.skipif(KERAS_BACKEND != "jax", reason="about jax.jit")
def test_under_jit():
    import jax

    f, layer, w, x = problem("random", "tanh")

    @jax.jit
    def measured(kernel, z0):
        # As a model's training step holds the values of its variables.
        with keras.StatelessScope([(layer.kernel, kernel)]):
            z = deq_init.keras.fixed_point(f, z0).value
            return z, deq_init.keras.jacobian_norm(f, z).value

    z, value = measured(0.5 * layer.kernel.value, np.zeros_like(x))
    expected = norms(jacobians(0.5 * w, "tanh", np.asarray(z)))
    np.testing.assert_allclose(np.asarray(value), expected, rtol=1e-3)


@pytest.mark.skipif(KERAS_BACKEND != "tensorflow", reason="about tf.function")
@pytest.mark.parametrize("name", ["jacobian_norm", "jacobian_spectral_radius"])
def test_a_traced_jacobian_is_an_error(name):
    import tensorflow as tf

    measure = getattr(deq_init.keras, name)
    for z in (tf.ones((1, 2)), None):
        with pytest.raises(DTypeError, match="outside of tf"):
            tf.function(lambda z: measure(lambda z: z / 2, tf.ones((1, 2)) if z is None else z))(z)


@pytest.mark.skipif(KERAS_BACKEND != "tensorflow", reason="about tf.function")
@pytest.mark.parametrize("method", ["plain", "anderson"])
@pytest.mark.parametrize("compiled", [False, True])
def test_traced_fixed_points_are_the_eager_ones(compiled, method):
    import tensorflow as tf

    f, _, _, x = problem("random", "tanh")
    bad = x.copy()
    bad[1, 2] = np.nan
    options = {"method": method, "rtol": 1e-6}

    @tf.function(jit_compile=compiled)
    def traced(x):
        found = deq_init.keras.fixed_point(lambda z: f(z) + x, tf.zeros_like(x), **options)
        return found.value, found.residual, found.steps, found.converged

    eager = deq_init.keras.fixed_point(lambda z: f(z) + bad, np.zeros_like(x), **options)
    value, residual, steps, converged = map(array, traced(bad))
    np.testing.assert_allclose(value, array(eager.value), atol=1e-5)
    assert np.isinf(residual).tolist() == [False, True, False]
    assert abs(steps - array(eager.steps)).max() <= 1
    assert converged.tolist() == array(eager.converged).tolist() == [True, False, True]


@pytest.mark.skipif(KERAS_BACKEND != "tensorflow", reason="about tf.function")
def test_traced_states_of_unknown_batch():
    """(a, b) -> (b, layer(a) / 2 + 1): float16 beside float32, and a layer that is not built."""
    import tensorflow as tf

    layer = keras.layers.Dense(4, kernel_initializer=deq_init.keras.GOE(gain=0.3, seed=0))
    batches = set()

    @tf.function(input_signature=[tf.TensorSpec((None, 2, 2), tf.float16)])
    def traced(a):
        batches.add(a.shape[0])

        def f(state):
            a, b = state
            new = layer(tf.reshape(tf.cast(a, tf.float32), (-1, 4))) / 2 + 1
            return tf.reshape(tf.cast(b, tf.float16), (-1, 2, 2)), new

        found = deq_init.keras.fixed_point(f, (a, tf.zeros((tf.shape(a)[0], 4))), rtol=1e-3)
        return found.value, found.converged

    for batch in (3, 0):
        (a, b), converged = traced(np.ones((batch, 2, 2), np.float16))
        assert array(converged).tolist() == [True] * batch
        np.testing.assert_allclose(array(a).reshape(-1, 4), array(b), atol=5e-3)
        exact = np.linalg.solve(np.eye(4) - array(layer.kernel).T / 2, np.ones(4))
        np.testing.assert_allclose(array(b), np.tile(exact, (batch, 1)), rtol=1e-2)
    assert batches == {None}

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((2, None), tf.float32)])
    def unknown(z):
        return deq_init.keras.fixed_point(lambda z: z / 2, z).value

    with pytest.raises(ShapeError, match="other than the batch"):
        unknown(np.ones((2, 3), np.float32))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda f, z: ("fixed_point", f, z, {"rtol": 0.0}), SolverError, "rtol"),
        (lambda f, z: ("fixed_point", f, z, {"method": "newton"}), SolverError, "'newton'"),
        (lambda f, z: ("jacobian_norm", f, z, {"max_steps": 0}), SolverError, "max_steps"),
        (lambda f, z: ("fixed_point", f, z[0, 0], {}), ShapeError, "batch axis"),
        (lambda f, z: ("fixed_point", f, (z, z[:1]), {}), ShapeError, "same batch"),
        (lambda f, z: ("fixed_point", f, z.astype(int), {}), DTypeError, "received int"),
        (lambda f, z: ("fixed_point", f, [None], {}), DTypeError, "state of tensors"),
        (lambda f, z: ("fixed_point", f, keras.KerasTensor((2, N)), {}), DTypeError, "KerasTensor"),
        (lambda f, z: ("fixed_point", lambda z: z[:, 1:], z, {}), FunctionError, r"\(3, 15\)"),
        (lambda f, z: ("jacobian_norm", lambda z: (z, z), z, {}), FunctionError, "like the one"),
    ],
)
def test_errors_say_what_was_expected(call, error, match):
    f, _, _, x = problem("random", "tanh")
    name, g, z, options = call(f, x)
    with pytest.raises(error, match=match):
        getattr(deq_init.keras, name)(g, z, **options)


@pytest.mark.parametrize(
    ("weights", "options", "error", "match"),
    [
        (lambda layer: layer.kernel, {}, ScaleError, "received neither"),
        (
            lambda layer: layer.kernel,
            {"jacobian_norm": 0.5, "spectral_radius": 0.5},
            ScaleError,
            "expected one of",
        ),
        (lambda layer: layer.kernel, {"jacobian_norm": -1}, ScaleError, "> 0"),
        (lambda layer: layer.kernel, {"jacobian_norm": 0.5, "rtol": 2}, SolverError, "rtol"),
        (lambda layer: [], {"jacobian_norm": 0.5}, SelectionError, "at least one variable"),
        (lambda layer: layer, {"jacobian_norm": 0.5}, DTypeError, "received Dense"),
        (lambda layer: layer.kernel * 1.0, {"jacobian_norm": 0.5}, DTypeError, "layer.kernel"),
        (
            lambda layer: keras.Variable(np.ones(2), dtype="int32", trainable=False),
            {"jacobian_norm": 0.5},
            DTypeError,
            "received int32",
        ),
    ],
)
def test_errors_of_rescaling_leave_the_kernel_as_it_was(weights, options, error, match):
    f, layer, _, x = problem("random", "tanh")
    before = bits(layer.kernel)
    with pytest.raises(error, match=match):
        deq_init.keras.rescale_jacobian(weights(layer), f, x, **options)
    assert bits(layer.kernel) == before


@pytest.mark.parametrize("name", ["jacobian_norm", "jacobian_spectral_radius"])
def test_a_function_that_cannot_be_differentiated(name):
    """JAX takes what does not depend on its argument for a constant; the others cannot tell."""
    constant = ops.ones((2, 4))
    expected = pytest.raises(FunctionError, match="differentiable")
    with contextlib.nullcontext() if KERAS_BACKEND == "jax" else expected:
        found = getattr(deq_init.keras, name)(lambda z: constant, ops.ones((2, 4)))
        assert array(found.value).tolist() == [0.0, 0.0]


def test_an_empty_batch():
    f, *_ = problem("random", "tanh")
    f = dense(deq_init.numpy.goe((4, 4), 0.4, seed=0))
    z = ops.zeros((0, 4))
    assert tuple(deq_init.keras.fixed_point(f, z).value.shape) == (0, 4)
    assert tuple(deq_init.keras.jacobian_norm(f, z).value.shape) == (0,)


def test_rescaling_starts_from_the_mean_field_where_the_law_is_known():
    f, layer, _, x = problem("goe", "tanh", gain=1.0)
    result = deq_init.keras.rescale_jacobian(
        layer.kernel,
        f,
        np.zeros_like(x),
        jacobian_norm=0.6,
        family="goe",
        activation="tanh",
    )
    assert result.reached
    assert result.solves <= 3
    with pytest.raises(ScaleError, match="family and activation together"):
        deq_init.keras.rescale_jacobian(layer.kernel, f, x, jacobian_norm=0.6, family="goe")
