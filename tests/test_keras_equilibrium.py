"""Gradients of fixed points and the reference models in Keras: unrolled autodiff, JAX, PyTorch."""

import contextlib
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from keras import ops

import deq_init.keras
import deq_init.keras.implicit
from deq_init import errors
from deq_init.jax import models as jax_models
from deq_init.keras import models
from deq_init.torch import models as torch_models

import keras_parity
from backends import FAMILIES, KERAS_BACKEND

BATCH, SEED = 4, 11
RTOL = {"float32": 4e-6, "float64": 1e-13}
ATOL = {"float32": 1e-4, "float64": 1e-9}
FCN = {"inputs": 5, "width": 12, "classes": 3}
TRANSFORMER = {"vocabulary": 7, "width": 8, "heads": 2}
QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
# JAX compiles for seconds where it is called eagerly: a test of its own is enough.
TRACED = {"tensorflow": [False, True], "jax": [True], "torch": [False]}[KERAS_BACKEND]


def array(x):
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(x)))


def x64(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def options(dtype, **given):
    return {"method": "plain", "rtol": RTOL[dtype], "max_steps": 400, "seed": SEED} | given


def fcn(dtype="float64", **given):
    law = {"gain": 0.6, "input_gain": 1.0, "bias": True}
    return keras_parity.build("DEQFCN", FCN | law | options(dtype, **given), dtype)


def transformer(dtype="float64", **given):
    given = {"gain": 0.5, "family": "random"} | given
    return keras_parity.build("DEQTransformer", TRANSFORMER | options(dtype, **given), dtype)


def inputs(model, batch=BATCH):
    name = type(model).__name__
    arguments = FCN if name == "DEQFCN" else TRANSFORMER
    x = keras_parity.samples(name, arguments, model.compute_dtype, batch)
    return x, keras_parity.labels(name, arguments, batch)


def run(model, traced=TRACED[0], x=None):
    x, classes = inputs(model) if x is None else (x, inputs(model, len(x))[1])
    return keras_parity.measure(model, x, classes, traced)


def agree(found, expected, atol, least=1e-3):
    for name in ("z", "loss"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=atol, err_msg=name)
    assert found["gradients"].keys() == expected["gradients"].keys()
    for name, value in expected["gradients"].items():
        assert abs(value).max() > least, name
        found_value = found["gradients"][name]
        np.testing.assert_allclose(found_value, value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("traced", TRACED)
@pytest.mark.parametrize(
    ("form", "activation", "method"), [("out", "tanh", "anderson"), ("in", "gelu", "plain")]
)
def test_implicit_gradients_equal_unrolled_ones(form, activation, method, traced):
    with x64("float64"):
        cell = {"form": form, "activation": activation, "max_steps": 120}
        found = run(fcn(**cell, method=method), traced)
        assert found["converged"].all()
        unrolled = run(fcn(**cell, gradient="unrolled"), traced)
        agree(found, unrolled, 1e-8)
        # What is compared would show another gradient.
        other = run(fcn(**cell, method=method, gradient="one_step"), traced)
    gap = other["gradients"]["W"] - unrolled["gradients"]["W"]
    assert abs(gap).max() > 1e-3


def test_the_transformers_implicit_gradients_equal_unrolled_ones():
    with x64("float64"):
        given = {"norm": "none", "causal": False, "gain": 0.3, "max_steps": 100}
        found, unrolled = (
            run(transformer(**given, gradient=gradient)) for gradient in ("implicit", "unrolled")
        )
    assert found["converged"].all()
    agree(found, unrolled, 1e-8, least=1e-5)


def reference_in_jax(model, dtype, given):
    """The same from deq_init.jax, whose parameters come from the same seed."""
    name = type(model).__name__
    x, classes = inputs(model)
    made = {k: v for k, v in given.items() if k not in ("seed", "family", "gain", "bias")}
    if name == "DEQFCN":
        native = jax_models.DEQFCN(**FCN, input_gain=1.0, bias=True, **made)
        law = getattr(deq_init.jax, given["family"])(given["gain"])
        params = native.init(jax.random.key(SEED), law, jnp.dtype(dtype))
    else:
        native = jax_models.DEQTransformer(**TRANSFORMER, **made)
        key = jax.random.key(SEED)
        params = native.init(key, given["family"], given["gain"], dtype=jnp.dtype(dtype))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def compiled(params, x):
        def loss(params):
            logits, solution = native.apply(params, x)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), classes[..., None], -1)
            return -picked.mean(), solution.value

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, z), gradients = compiled(params, jnp.asarray(x))
    weights = native.to_arrays(params)
    gradients = {name: np.asarray(gradients[name]) for name in weights}
    return weights, {"z": np.asarray(z), "loss": float(loss), "gradients": gradients}


@pytest.mark.parametrize(
    ("make", "dtype", "given"),
    [
        (fcn, "float32", {"family": "orthogonal", "gain": 0.6, "activation": "tanh"}),
        (fcn, "float64", {"family": "goe", "gain": 0.35, "form": "in", "activation": "gelu"}),
        (transformer, "float32", {"family": "goe", "gain": 0.25, "norm": "pre", "expansion": 3}),
        (transformer, "float64", {"family": "random", "gain": 0.5, "activation": "gelu"}),
    ],
)
def test_one_seed_one_model_in_keras_and_jax(make, dtype, given):
    with x64(dtype):
        model = make(dtype, **given)
        weights, expected = reference_in_jax(model, dtype, options(dtype) | given)
        arrays = model.to_arrays()
        assert arrays.keys() == weights.keys()
        for name, value in weights.items():
            assert arrays[name].dtype == value.dtype == dtype
            atol = {"float32": 1e-5, "float64": 1e-12}[dtype]
            np.testing.assert_allclose(arrays[name], value, rtol=0, atol=atol, err_msg=name)
        found = run(model)
    assert found["converged"].all()
    agree(found, expected, ATOL[dtype], least=1e-5)


def test_one_seed_one_model_in_keras_and_pytorch():
    dtype = "float64"
    given = options(dtype, method="anderson")
    law = {"family": "orthogonal", "gain": 0.6, "input_gain": 1.0, "bias": True}
    native = torch_models.DEQFCN(**FCN, **law, **given, dtype=getattr(torch, dtype))
    with x64(dtype):
        model = fcn(dtype, method="anderson")
        x, classes = inputs(model)
        found = run(model)
        logits, solution = native(torch.from_numpy(x))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(classes))
        loss.backward()
        gradients = {name: p.grad.numpy().T for name, p in native.named_parameters()}
        gradients = {name: gradients[name] for name in model.kernels}
        expected = {"z": solution.value.detach(), "loss": loss.item(), "gradients": gradients}
        agree(found, expected, ATOL[dtype])
        for name, value in native.to_arrays().items():
            atol = {"float32": 1e-5, "float64": 1e-12}[dtype]
            np.testing.assert_allclose(model.to_arrays()[name], value, rtol=0, atol=atol)
        other = fcn(dtype, seed=SEED + 1).from_arrays(native.to_arrays())
        np.testing.assert_allclose(array(other.W), native.W.detach().numpy().T, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_law_of_w(family):
    model = models.DEQFCN(4, 64, 3, family=family, spectral_norm=0.9, seed=2**40 + 1)
    assert abs(np.linalg.norm(array(model.W), 2) - 0.9) < 1e-5
    own = deq_init.draws.fold_in(deq_init.draws.key_from_seed(2**40 + 1), 0)
    init = {"random": "Random", "orthogonal": "Orthogonal", "goe": "GOE"}
    init = getattr(deq_init.keras, init.get(family, "Antisymmetric"))
    expected = array(init(spectral_norm=0.9, seed=own[0] << 32 | own[1])((64, 64)))
    np.testing.assert_array_equal(array(model.W), expected)


def test_without_a_seed_keras_random_seed_makes_it_reproducible():
    drawn = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        drawn.append(array(models.DEQFCN(4, 8, 3).W))
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


def trained(model, loss, **compiled):
    x, classes = inputs(model, 16)
    model.compile(keras.optimizers.Adam(0.02), loss, **compiled)
    history = model.fit(x, classes, batch_size=16, epochs=10, shuffle=False, verbose=0)
    assert np.isfinite(model.predict(x, batch_size=16, verbose=0)).all()
    return history.history["loss"]


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (fcn, {"jit_compile": True}),
        (transformer, {"max_steps": 30}),
    ],
)
def test_fit(make, given):
    compiled = {}
    if given.get("jit_compile"):
        if KERAS_BACKEND != "tensorflow":
            pytest.skip("JAX compiles anyway; torch.compile leaves the solvers alone")
        compiled["jit_compile"] = True
        given = {}
    model = make("float32", **given)
    before = model.to_arrays()
    losses = trained(
        model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **compiled
    )
    assert losses[-1] < 0.95 * losses[0]
    after = model.to_arrays()
    assert all((before[name] != after[name]).any() for name in before)
    logits, _ = model.solve(inputs(model)[0])
    np.testing.assert_allclose(array(model(inputs(model)[0])), array(logits), atol=1e-6)


@keras.saving.register_keras_serializable(package="deq_init_tests")
def softsign(h):
    return h / (1 + ops.abs(h))


LOAD = """
import sys, numpy as np, keras, deq_init.keras.models
x = np.load(sys.argv[2])
for name in ("fcn", "transformer"):
    model = keras.models.load_model(f"{sys.argv[1]}/{name}.keras")
    y = keras.ops.convert_to_numpy(keras.ops.stop_gradient(model(x[name])))
    np.save(f"{sys.argv[1]}/{name}.npy", y)
"""


@pytest.mark.skipif("DEQ_INIT_INNER" in os.environ, reason="runs once, from the outer suite")
@pytest.mark.parametrize("into", ["jax", "torch", "tensorflow"])
def test_files_load_in_a_new_process(tmp_path, into):
    built = {"fcn": fcn("float32"), "transformer": transformer("float32")}
    x = {name: inputs(model)[0] for name, model in built.items()}
    np.savez(tmp_path / "x.npz", **x)
    for name, model in built.items():
        model.save(tmp_path / f"{name}.keras")
    subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), str(tmp_path / "x.npz")],
        env={**os.environ, "KERAS_BACKEND": into},
        check=True,
        cwd=tmp_path,
        timeout=300,
    )
    for name, model in built.items():
        found = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(found, array(model(x[name])), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (fcn, {"activation": softsign, "form": "in", "gradient": "one_step", "seed": None}),
        (transformer, {"where": {"down": {"family": "goe", "gain": 0.1}}, "skip": 0.5}),
    ],
)
def test_configs_and_files(make, given, tmp_path):
    model = make("float32", **given)
    again = type(model).from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert keras.saving.serialize_keras_object(model)["registered_name"].startswith("deq_init>")
    if model.seed is not None:
        for name, value in model.to_arrays().items():
            np.testing.assert_array_equal(again.to_arrays()[name], value)
    x, _ = inputs(model)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again.load_weights(tmp_path / "model.weights.h5")
    for other in (loaded, again):
        np.testing.assert_allclose(array(other(x)), array(model(x)), atol=1e-6)


def test_a_layer_as_the_activation_is_trained_and_saved_with_the_rest(tmp_path):
    model = fcn("float32", activation=keras.layers.PReLU())
    losses = trained(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert losses[-1] < losses[0]
    assert abs(array(model.activation.alpha)).max() > 0
    assert model.to_arrays().keys() == set("WURbc")
    model.save(tmp_path / "model.keras")
    x, _ = inputs(model)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(array(loaded(x)), array(model(x)), atol=1e-6)


def test_models_in_functional_models():
    x = keras.Input((FCN["inputs"],))
    outer = keras.Model(x, keras.layers.Dense(2)(fcn("float32")(x)))
    assert outer.output_shape == (None, 2)
    assert outer(np.ones((3, FCN["inputs"]), np.float32)).shape == (3, 2)
    tokens = keras.Input((None,), dtype="int32")
    assert transformer("float32")(tokens).shape == (None, None, TRANSFORMER["vocabulary"])
    with pytest.raises(errors.ShapeError, match="expected samples"):
        fcn("float32")(keras.Input((FCN["inputs"] + 1,)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_half_precision(policy):
    """To the rounding of a few operations on numbers near 1."""
    given = FCN | {"gain": 0.6, "seed": SEED, "rtol": 2e-2}
    half, wide = (keras_parity.build("DEQFCN", given, dtype) for dtype in (policy, "float32"))
    x, _ = inputs(wide)
    found, solution = half.solve(x)
    assert array(solution.converged).all()
    for logits in (found, half(x)):
        assert keras.backend.standardize_dtype(logits.dtype) == policy.removeprefix("mixed_")
        difference = array(ops.cast(logits, "float32")) - array(wide(x))
        assert abs(difference).max() < 0.05
    assert all(value.dtype != "bfloat16" for value in half.to_arrays().values())


@pytest.mark.parametrize("traced", TRACED)
@pytest.mark.parametrize("method", ["plain", "anderson"])
def test_a_bad_sample_has_a_status_and_touches_no_other(method, traced):
    def loss(y, weights):
        return ops.sum(y * ops.cast(weights, y.dtype)[:, None])

    def measured(x, weights):
        return keras_parity.measure(model, x, np.array(weights), traced, loss)

    model = fcn("float32", method=method, rtol=1e-5)
    x, _ = inputs(model)
    kept = [0, 2, 3]
    without = measured(x, [1, 0, 1, 1])
    x[1, 2] = np.nan
    found = measured(x, [1, 1, 1, 1])
    assert found["converged"].tolist() == [True, False, True, True]
    assert np.isinf(found["residual"]).tolist() == [False, True, False, False]
    np.testing.assert_allclose(found["z"][kept], without["z"][kept], atol=1e-5)
    assert np.isfinite(found["z"]).all()
    for name, value in found["gradients"].items():
        assert np.isfinite(value).all()
        assert abs(value).max() > 0
        if name in "WUc":
            expected = without["gradients"][name]
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("traced", TRACED)
def test_a_token_outside_of_the_vocabulary(traced):
    """An error where tokens are known; where they are not, its sequence is lost, and no other."""
    model = transformer("float32", rtol=1e-5)
    x, classes = inputs(model)
    clean = run(model, traced)
    x[1, 2] = TRANSFORMER["vocabulary"]
    if not traced:
        with pytest.raises(errors.ShapeError, match=r"expected tokens in \[0, 7\)"):
            model.solve(x)
        return
    found = keras_parity.measure(model, x, classes, traced)
    assert found["converged"].tolist() == [True, False, True, True]
    kept = [0, 2, 3]
    np.testing.assert_allclose(found["z"][kept], clean["z"][kept], atol=1e-4)
    assert all(np.isfinite(found["gradients"][name]).all() for name in ("qkv", "inject", "up"))


@pytest.mark.parametrize("gradient", ["implicit", "unrolled", "one_step"])
def test_no_samples(gradient):
    model = fcn("float32", gradient=gradient, max_steps=20)
    x, classes = inputs(model, 0)
    found = keras_parity.measure(model, x, classes, TRACED[-1], lambda y, _: ops.sum(y))
    assert found["z"].shape == (0, FCN["width"])
    assert found["converged"].shape == (0,)
    assert all((value == 0).all() for value in found["gradients"].values())


@pytest.mark.parametrize("traced", TRACED)
@pytest.mark.parametrize("gradient", ["implicit", "unrolled", "one_step"])
def test_no_fixed_point_is_a_status_and_the_gradients_are_finite(gradient, traced):
    given = {"family": "antisymmetric", "gain": 3.0, "method": "plain", "max_steps": 50}
    given |= {"input_gain": 1.0, "seed": 0, "gradient": gradient}
    found = run(keras_parity.build("DEQFCN", FCN | given, "float32"), traced)
    assert not found["converged"].any()
    assert (found["steps"] == 50).all()
    assert all(np.isfinite(value).all() for value in found["gradients"].values())


def test_a_start():
    model = fcn("float32", rtol=1e-5)
    x, _ = inputs(model)
    _, cold = model.solve(x)
    _, warm = model.solve(x, cold.value)
    assert (array(warm.steps) == 1).all()
    assert (array(cold.steps) > 5).all()
    with pytest.raises(errors.ShapeError, match="expected a start z0"):
        model.solve(x, np.zeros((BATCH, 3), np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["zeros", "input", "normal", "mixed"])
def test_one_seed_is_one_start_in_keras_and_jax(kind, dtype):
    like = np.ones((16, 3, 5), dtype)
    atol = {"float32": 1e-5, "float64": 1e-12}[dtype]
    with x64("float64"):
        key = jax.random.key(SEED)
        expected = deq_init.jax.initial_state(kind, jnp.asarray(like), key, deviation=0.4)
        found = deq_init.keras.initial_state(kind, like, seed=SEED, deviation=0.4)
        assert keras.backend.standardize_dtype(found.dtype) == dtype
        np.testing.assert_allclose(array(found), expected, rtol=0, atol=atol)


def test_starts_of_keras_random_numbers():
    def start(seed=None, kind="normal"):
        return array(deq_init.keras.initial_state(kind, np.zeros((4, 3), np.float32), seed=seed))

    keras.utils.set_random_seed(1)
    first = start()
    keras.utils.set_random_seed(1)
    assert (start() == first).all()
    generator = keras.random.SeedGenerator(1)
    assert (start(generator) != start(generator)).any()
    with pytest.raises(errors.SeedError, match="expected seed"):
        start(-1)
    with pytest.raises(errors.ModelError, match="expected a start out of 'zeros'"):
        start(kind="ones")


@pytest.mark.parametrize("traced", TRACED)
def test_gradients_of_any_layers_and_trees(traced):
    """Attention with a mask of integers and a state of two tensors, against its iteration."""
    block = keras.layers.MultiHeadAttention(2, 4, name="attend")
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype("float32")
    block.build(x.shape, x.shape)
    shift = ops.convert_to_tensor(x)
    for variable in block.weights:
        variable.assign(0.2 * np.random.default_rng(1).standard_normal(variable.shape))

    class Tree:
        def __init__(self, gradient):
            self.gradient = gradient
            self.kernels = {variable.path: variable for variable in block.weights}

        def solve(self, lengths):
            mask = ops.arange(3)[None, None, :] < lengths[:, None, None]

            def f(state):
                mixed = block(state["a"], state["a"], attention_mask=mask)
                return {"a": 0.5 * ops.tanh(mixed + state["b"]) + shift, "b": 0.3 * state["a"]}

            z = {"a": ops.zeros(x.shape), "b": ops.zeros(x.shape)}
            solution = deq_init.keras.fixed_point(f, z, rtol=1e-6, method="plain", max_steps=40)
            implicit = deq_init.keras.implicit
            if self.gradient == "unrolled":
                z = implicit.unrolled(f, z, solution, max_steps=40).value
            else:
                z = implicit.with_gradient(f, solution, rtol=1e-6, method="plain").value
            value = ops.concatenate([z["a"], z["b"]], -1)
            return value, deq_init.fixed_point.Solution(
                value, solution.residual, solution.steps, solution.converged
            )

    lengths = np.array([3, 2], "int32")
    found, expected = (
        keras_parity.measure(
            Tree(gradient), lengths, np.zeros(2), traced, lambda y, _: ops.sum(y * y * y)
        )
        for gradient in ("implicit", "unrolled")
    )
    assert found["converged"].all()
    for name, value in expected["gradients"].items():
        np.testing.assert_allclose(found["gradients"][name], value, rtol=1e-3, atol=1e-4)
    assert max(abs(value).max() for value in expected["gradients"].values()) > 0.1


@pytest.mark.skipif(KERAS_BACKEND != "jax", reason="about jax.jit")
def test_jax_differentiates_what_is_compiled():
    """The gradient of a compiled function, not the compiled gradient: no tracer may be left in."""
    model = fcn("float32")
    x, _ = inputs(model)
    values = [variable.value for variable in model.variables]

    def loss(values, x):
        y, _ = model.stateless_call(values, [], x)
        return ops.sum(y * y)

    expected = jax.jit(jax.grad(loss), compiler_options=QUICK)(values, x)
    for a, b in zip(jax.grad(jax.jit(loss))(values, x), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def kept_by_a_loss(gradient, steps):
    """How much is kept for the gradient of a model whose solver takes all its steps."""
    size = {"inputs": 4, "width": 256, "classes": 3}
    # A slow contraction, whose best iterate is its last.
    given = {"family": "goe", "spectral_norm": 0.998, "rtol": 1e-7, "seed": 0}
    given["activation"] = lambda h: h
    model = models.DEQFCN(
        **size, **given, method="plain", max_steps=steps, gradient=gradient
    )  # fmt: skip
    x = np.ones((1024, 4), np.float32)
    if KERAS_BACKEND == "torch":
        saved = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append(t.nbytes) or t, lambda t: t
        )
        with hooks:
            _, solution = model.solve(x)
        kept = sum(saved)
    elif KERAS_BACKEND == "jax":
        values = [variable.value for variable in model.variables]

        def loss(values):
            return ops.sum(model.stateless_call(values, [], x)[0])

        compiled = jax.jit(jax.grad(loss)).lower(values).compile()
        return compiled.memory_analysis().temp_size_in_bytes
    else:
        import tensorflow as tf

        before = resident()
        with tf.GradientTape() as tape:
            logits, solution = model.solve(x)
        kept = resident() - before
        assert tape.gradient(logits, model.W.value) is not None
    assert (array(solution.steps) == steps).all()
    return kept


def resident():
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(
    KERAS_BACKEND == "tensorflow" and not os.path.exists("/proc/self/statm"), reason="reads /proc"
)
def test_memory_does_not_grow_with_the_steps():
    """A step's states are of 1 MiB and more: 100 steps hold over 60 MB if they are kept."""
    bound = 30e6
    for gradient in ("implicit", "one_step"):
        assert kept_by_a_loss(gradient, 100) - kept_by_a_loss(gradient, 10) < bound
    assert kept_by_a_loss("unrolled", 100) > 2 * bound


@pytest.mark.skipif(KERAS_BACKEND != "tensorflow", reason="about tf.function")
def test_memory_does_not_grow_with_the_steps_in_a_graph():
    """TensorFlow keeps the intermediates of a loop that it differentiates in lists of tensors."""
    import tensorflow as tf

    def lists_in_the_gradient(gradient):
        model = fcn("float32", gradient=gradient, max_steps=50)

        @tf.function(autograph=False)
        def differentiated(x):
            with tf.GradientTape() as tape:
                loss = ops.sum(model(x))
            return tape.gradient(loss, model.W.value)

        concrete = differentiated.get_concrete_function(tf.TensorSpec((None, 5)))
        graph = concrete.graph.as_graph_def()
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        return sum(node.op == "TensorListPushBack" for node in nodes)

    assert lists_in_the_gradient("implicit") == lists_in_the_gradient("one_step") == 0
    assert lists_in_the_gradient("unrolled") > 0


def test_tiny_gradients_are_not_lost():
    model = fcn("float32")
    x, classes = inputs(model)
    results = [
        keras_parity.measure(model, x, classes, TRACED[0], lambda y, _, s=s: ops.sum(y) * s)
        for s in (1.0, 1e-25)
    ]
    ones, tiny = (result["gradients"]["W"] for result in results)
    np.testing.assert_allclose(tiny.astype(float) / 1e-25, ones, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (errors.ShapeError, "expected width as a positive integer, received 0", {"width": 0}),
        (errors.ModelError, "expected form 'out'", {"form": "both"}),
        (errors.ActivationError, "expected an activation out of", {"activation": "swosh"}),
        (errors.SolverError, "expected gradient 'implicit'", {"gradient": "phantom"}),
        (errors.SolverError, "expected plain iteration", {"gradient": "unrolled"}),
        (errors.SolverError, "expected rtol", {"rtol": 0.0}),
        (errors.SolverError, "expected max_steps", {"max_steps": 0}),
        (errors.ScaleError, "expected at most one", {"gain": 0.5, "spectral_norm": 0.9}),
        (errors.FamilyError, "expected", {"family": "wigner"}),
        (errors.SeedError, "expected seed", {"seed": -1}),
    ],
)
def test_bad_requests(error, message, given):
    with pytest.raises(error, match=message):
        models.DEQFCN(**(FCN | given))


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (errors.ShapeError, "expected heads that divide the width", {"heads": 3}),
        (errors.ModelError, "expected norm", {"norm": "layer"}),
        (errors.ModelError, "expected skip", {"skip": float("nan")}),
        (errors.SelectionError, "expected matrices out of", {"where": {"inject": {}}}),
    ],
)
def test_bad_requests_of_the_transformer(error, message, given):
    with pytest.raises(error, match=message):
        models.DEQTransformer(**(TRANSFORMER | given))


def test_bad_input():
    model = fcn("float32")
    for shape in ((5,), (2, 6), (2, 3, 5)):
        for call in (model, model.solve):
            with pytest.raises(errors.ShapeError, match=r"expected samples of shape \(batch, 5\)"):
                call(np.zeros(shape, np.float32))
    block = transformer("float32")
    with pytest.raises(errors.ShapeError, match="expected tokens of shape"):
        block.solve(np.zeros(3, int))
    with pytest.raises(errors.DTypeError, match="expected tokens as integers"):
        block.solve(np.zeros((2, 3), np.float32))
    before = model.to_arrays()
    with pytest.raises(errors.ModelError, match="expected a checkpoint of kernels"):
        model.from_arrays({"W": np.zeros((3, 3))})
    assert all((value == before[name]).all() for name, value in model.to_arrays().items())
    solution = deq_init.keras.fixed_point(lambda z: z / 2, np.ones((1, 2), np.float32))
    with pytest.raises(errors.SolverError, match="expected gradient 'implicit' or 'one_step'"):
        deq_init.keras.implicit.with_gradient(lambda z: z / 2, solution, gradient="unrolled")


def test_the_script_writes_what_is_measured(tmp_path):
    arguments = FCN | {"gain": 0.6, "seed": SEED}
    request = {"model": "DEQFCN", "arguments": arguments, "dtype": "float32", "batch": BATCH}
    keras_parity.main(keras_parity.json.dumps(request), tmp_path / "out.npz")
    written = np.load(tmp_path / "out.npz")
    model = keras_parity.build("DEQFCN", arguments, "float32")
    found = run(model)
    np.testing.assert_allclose(written["z"], found["z"], atol=1e-6)
    np.testing.assert_allclose(written["gradients/W"], found["gradients"]["W"], atol=1e-6)
    np.testing.assert_array_equal(written["weights/U"], model.to_arrays()["U"])


def test_second_derivatives():
    """Of z = tanh(a z) + 1, for a loss z a: -3.4398 and 1.2072 by central differences of z."""
    f = deq_init.keras.implicit.with_gradient

    def loss(a):
        def g(z):
            return ops.tanh(a * z) + 1

        z = deq_init.keras.fixed_point(g, np.zeros((1, 1), "float32"), rtol=1e-6, method="plain")
        return ops.sum(f(g, z, rtol=1e-6, method="plain").value * a)

    expected = 0.5 * -3.4398 + 2 * 1.2072
    if KERAS_BACKEND == "jax":
        found = jax.jit(jax.hessian(loss), compiler_options=QUICK)(0.5)
        assert float(found) == pytest.approx(expected, abs=1e-3)
    elif KERAS_BACKEND == "torch":
        found = torch.autograd.functional.hessian(loss, torch.tensor(0.5))
        assert found.item() == pytest.approx(expected, abs=1e-3)
    else:
        import tensorflow as tf

        a = tf.Variable(0.5)

        def twice():
            with tf.GradientTape() as outer:
                with tf.GradientTape() as inner:
                    value = loss(a)
                first = inner.gradient(value, a)
            return outer.gradient(first, a)

        for call in (twice, tf.function(twice, autograph=False)):
            with pytest.raises(errors.SolverError, match="received a request for a second one"):
                call()


def test_the_backward_solve_has_a_status():
    """z = 2 z + x: the adjoint equation diverges, and u = g is its best iterate."""
    reports = []

    def run_backward(factor, x):
        def f(z):
            return factor * z + x

        at = -x / (factor - 1)
        exact = deq_init.fixed_point.Solution(at, ops.zeros(2), ops.ones(2), ops.ones(2, "bool"))
        found = deq_init.keras.implicit.with_gradient(
            f, exact, method="plain", max_steps=30, report=reports.append
        )
        return ops.sum(found.value)

    for factor, expected in ((2.0, 1.0), (0.5, 2.0)):
        x = ops.ones((2, 3))
        reports.clear()
        if KERAS_BACKEND == "jax":
            gradient = jax.jit(jax.grad(functools.partial(run_backward, factor)))(x)
            jax.effects_barrier()
        elif KERAS_BACKEND == "torch":
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(run_backward(factor, x), x)
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                tape.watch(x)
                value = run_backward(factor, x)
            gradient = tape.gradient(value, x)
        np.testing.assert_allclose(array(gradient), expected, rtol=1e-4)
        (status,) = reports
        assert array(status.converged).tolist() == [factor < 1] * 2
        assert (array(status.index) == 0).all() == (factor > 1)
        if factor > 1:
            np.testing.assert_allclose(array(status.residual), 2.0, rtol=1e-5)
