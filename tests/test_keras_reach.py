"""Where Keras's models live: traces, dtypes, seeds, layers, devices; each path gives one matrix."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

import deq_init.keras
import deq_init.numpy
from deq_init import errors, scale
from deq_init import plan as plans
from deq_init.keras import primitives, sampling
from deq_init.numpy import primitives as numpy_primitives

import reference
from backends import EPSILON, FAMILIES, HALF, KERAS_BACKEND, KERAS_CLASSES, SQUARE

on = {
    name: pytest.mark.skipif(name != KERAS_BACKEND, reason=f"about {name}")
    for name in ("tensorflow", "jax", "torch")
}


def array(tensor):
    return np.asarray(ops.convert_to_numpy(ops.cast(tensor, "float32")))


def make_plan(family, shape, dtype="float32", gain=0.7, blocks=None, determinant=None, **target):
    chosen = scale.resolve(None if target else gain, **target)
    return plans.plan(family, shape, "in_out", chosen, blocks, determinant)


def traced(plan, seed, dtype):
    """The path of traced calls and accelerators, run for real on the CPU."""
    if KERAS_BACKEND == "torch":
        return sampling._on_device(plan, seed, dtype, ops.zeros(()).device)
    return sampling._in_ops(plan, seed, dtype)


def require_paths_agree(plan, seed, dtype):
    """Entries agree to 1e-5 (float32) or 1e-11 (float64) of the largest."""
    fast = sampling._in_numpy(plan, seed, dtype)
    slow = ops.convert_to_numpy(traced(plan, seed, dtype))
    assert fast.dtype == slow.dtype == dtype
    assert fast.shape == slow.shape == plan.shape
    assert fast.flags["C_CONTIGUOUS"]
    bound = (1e-5 if dtype == "float32" else 1e-11) * np.abs(slow).max(initial=1e-30)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=bound)


CASES = [
    {"shape": (40, 40)},
    {"shape": (300, 300)},
    {"shape": (9, 9), "spectral_norm": 0.9},
    {"shape": (9, 9), "spectral_radius": 0.9},
    {"shape": (9, 27), "blocks": 3},
    {"shape": (27, 9), "blocks": (3, 0), "spectral_norm": 0.5},
    {"shape": (0, 0)},
]
RECTANGULAR = [
    {"shape": (7, 30)},
    {"shape": (300, 150)},
    {"shape": (3, 5, 4, 20)},
    {"shape": (3, 2, 4, 8), "blocks": (2, 3)},
]
DETERMINANTS = [{"shape": (8, 8), "determinant": sign} for sign in (1, -1)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keras_paths_agree(family, dtype):
    if dtype == "float64" and KERAS_BACKEND == "jax":
        pytest.skip("JAX has float64 only with jax_enable_x64")
    cases = CASES + RECTANGULAR * (family not in SQUARE) + DETERMINANTS * (family == "orthogonal")
    for seed, case in enumerate(cases):
        require_paths_agree(make_plan(family, **case), seed, dtype)


@pytest.mark.parametrize("mistake", ["transposed normals", "normals of another block", "order"])
def test_keras_the_comparison_of_paths_sees_mistakes(monkeypatch, mistake):
    right = numpy_primitives.normals

    def wrong(seed, shape, dtype, index=()):
        if mistake == "transposed normals":
            return right(seed, shape, dtype, index)[:, :].T.copy()
        return right(seed, shape, dtype)

    if mistake == "order":
        monkeypatch.setattr(np, "ascontiguousarray", np.asfortranarray)
    else:
        # Only the fast path asks for normals while the comparison runs it.
        fast = sampling._in_numpy

        def planted(plan, seed, dtype):
            with monkeypatch.context() as patch:
                patch.setattr(numpy_primitives, "normals", wrong)
                return fast(plan, seed, dtype)

        monkeypatch.setattr(sampling, "_in_numpy", planted)
    for family in FAMILIES:
        with pytest.raises(AssertionError):
            require_paths_agree(make_plan(family, (8, 8), blocks=1), 0, "float32")


def test_keras_integer_seeds_are_portable(family):
    for n in (5, 160):
        w = array(KERAS_CLASSES[family](0.7, seed=n)((n, n)))
        expected = getattr(deq_init.numpy, family)((n, n), 0.7, seed=n)
        np.testing.assert_allclose(w, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_keras_fast_path_is_the_one_that_runs(monkeypatch):
    def refuse(*_):
        raise KeyError("keras.ops path")

    monkeypatch.setattr(primitives.Primitives, "tril", refuse)
    assert deq_init.keras.Orthogonal(seed=0)((11, 13)).shape == (11, 13)


@on["tensorflow"]
def test_keras_tensorflow_without_layers(family):
    import tensorflow as tf

    init = KERAS_CLASSES[family](seed=3, spectral_norm=0.8)
    expected = array(init((12, 12)))
    shape = tf.TensorShape([12, 12])

    class Module(tf.Module):
        def __init__(self):
            self.w = tf.Variable(lambda: init(shape, tf.float32))

    in_function = tf.function(lambda: init(shape, tf.float32))
    for value in (tf.Variable(init(shape, tf.float32)), Module().w, in_function()):
        np.testing.assert_allclose(value.numpy(), expected, atol=1e-5)


@on["tensorflow"]
def test_keras_tensorflow_compiled_by_xla():
    import tensorflow as tf

    for make in KERAS_CLASSES.values():
        init = make(0.7, seed=3)
        compiled = tf.function(lambda init=init: init((12, 12)), jit_compile=True)
        np.testing.assert_allclose(compiled().numpy(), array(init((12, 12))), atol=1e-5)


@on["tensorflow"]
def test_keras_tensorflow_builds_inside_a_function():
    import tensorflow as tf

    layer = keras.layers.Dense(6, kernel_initializer=deq_init.keras.Orthogonal(seed=5))
    tf.function(layer)(tf.ones((2, 6)))
    np.testing.assert_allclose(
        array(layer.kernel), array(deq_init.keras.Orthogonal(seed=5)((6, 6))), atol=1e-6
    )


@on["torch"]
def test_keras_torch_meta_compile_and_memory():
    import torch

    init = deq_init.keras.Orthogonal(0.5, seed=5, determinant=1)
    with keras.device("meta"):
        assert init((6, 6), dtype="bfloat16").device.type == "meta"
    w = init((6, 6))
    assert w.is_contiguous()
    assert deq_init.keras.Orthogonal(seed=5)((6, 9)).is_contiguous()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(init((6, 6)), w)
    compiled = torch.compile(lambda: init((6, 6)), backend="eager")
    torch.testing.assert_close(compiled(), w, atol=1e-6, rtol=0)


@on["jax"]
def test_keras_jax_transformations(family):
    import jax

    init = KERAS_CLASSES[family](0.7, seed=2**40 + 1)
    expected = array(init((12, 12)))
    np.testing.assert_allclose(jax.jit(lambda: init((12, 12)))(), expected, atol=1e-5)
    shape = jax.eval_shape(lambda: init((12, 12), dtype="bfloat16"))
    assert (shape.shape, shape.dtype.name) == ((12, 12), "bfloat16")


DISTRIBUTED = """
import jax, keras, numpy as np, deq_init.keras
from keras.distribution import DataParallel, DeviceMesh, LayoutMap, ModelParallel, set_distribution
assert len(jax.devices()) == 8
make = deq_init.keras.Orthogonal
def build():
    layer = keras.layers.Dense(16, kernel_initializer=make(0.7, seed=3), name="dense")
    model = keras.Sequential([keras.Input((8,)), layer], name="model")
    return model, layer.kernel.value
expected = np.asarray(build()[1])
mesh = DeviceMesh((2, 4), ("batch", "model"))
layouts = LayoutMap(mesh)
layouts[".*dense.*kernel"] = (None, "model")
set_distribution(ModelParallel(layout_map=layouts, batch_dim_name="batch"))
model, kernel = build()
assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "model"), kernel.sharding
assert kernel.addressable_shards[0].data.shape == (8, 4)
np.testing.assert_allclose(kernel, expected, atol=1e-6)
deq_init.keras.initialize(model, "random", seed=0)
again = model.layers[-1].kernel.value
assert again.sharding == kernel.sharding and (np.asarray(again) != expected).any()
# What Keras does from 250 MiB on.
for seed in (3, 2**40 + 3):
    init = make(0.7, seed=seed)
    static = ["shape", "dtype"]
    jitted = jax.jit(init.__call__, out_shardings=kernel.sharding, static_argnames=static)
    value = jitted(shape=(8, 16), dtype="float32")
    assert value.sharding == kernel.sharding
    np.testing.assert_allclose(value, init((8, 16)), atol=1e-6)
set_distribution(DataParallel())
kernel = build()[1]
assert kernel.sharding.is_fully_replicated and len(kernel.sharding.device_set) == 8
np.testing.assert_allclose(kernel, expected, atol=1e-6)
"""


@on["jax"]
def test_keras_jax_distribution(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", DISTRIBUTED],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]


class BuiltForShapes(keras.Model):
    """Its layer is built where Keras only asks for shapes."""

    def __init__(self, init):
        super().__init__()
        self.dense = keras.layers.Dense(6, kernel_initializer=init)

    def build(self, shape):
        pass

    def compute_output_spec(self, x):
        self.dense.build(x.shape)
        return keras.KerasTensor((*x.shape[:-1], 6))

    def call(self, x):
        return self.dense(x)


def test_keras_layers_built_in_compute_output_spec(family):
    model = BuiltForShapes(KERAS_CLASSES[family](seed=5))
    assert model(keras.Input((6,))).shape == (None, 6)
    expected = array(KERAS_CLASSES[family](seed=5)((6, 6)))
    np.testing.assert_allclose(array(model.dense.kernel), expected, atol=2e-6)
    assert model(np.ones((2, 6), "float32")).shape == (2, 6)


def test_keras_models_built_in_a_stateless_scope(family):
    layer = keras.layers.Dense(6, kernel_initializer=KERAS_CLASSES[family](seed=5))
    with keras.StatelessScope():
        keras.Sequential([keras.Input((6,)), layer])
    expected = array(KERAS_CLASSES[family](seed=5)((6, 6)))
    np.testing.assert_allclose(array(layer.kernel), expected, atol=2e-6)


POLICIES = {
    "mixed_bfloat16": "float32",
    "mixed_float16": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float64": "float64",
}


@pytest.mark.parametrize(("policy", "expected"), POLICIES.items())
def test_keras_dtype_policies(family, policy, expected):
    if policy == "float64" and KERAS_BACKEND == "jax":
        pytest.skip("JAX has float64 only with jax_enable_x64")
    init = KERAS_CLASSES[family](spectral_norm=0.9, seed=1)
    layer = keras.layers.Dense(8, kernel_initializer=init, dtype=keras.DTypePolicy(policy))
    layer.build((None, 8))
    assert keras.backend.standardize_dtype(layer.kernel.dtype) == expected
    wide = "float32" if expected in HALF else expected
    w = ops.convert_to_numpy(ops.cast(layer.kernel, wide))
    assert reference.spectral_norm(w) == pytest.approx(0.9, rel=8 * EPSILON[expected])
    if expected in HALF:
        whole = ops.convert_to_numpy(init((8, 8), dtype="float32"))
        np.testing.assert_allclose(w, whole, rtol=EPSILON[expected], atol=1e-7)


@pytest.mark.parametrize("floatx", ["float32", "float16"])
def test_keras_default_dtype(floatx):
    before = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        w = deq_init.keras.GOE(seed=1)((4, 4))
    finally:
        keras.config.set_floatx(before)
    assert keras.backend.standardize_dtype(w.dtype) == floatx


def test_keras_seed_generators(family):
    generator = keras.random.SeedGenerator(7)
    init = KERAS_CLASSES[family](seed=generator)
    first, second = array(init((6, 6))), array(init((6, 6)))
    assert (first != second).any()
    assert (array(KERAS_CLASSES[family](seed=keras.random.SeedGenerator(7))((6, 6))) == first).all()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(init))
    assert type(again.seed) is keras.random.SeedGenerator
    assert np.isfinite(array(again((6, 6)))).all()
    assert np.isfinite(array(init.clone()((6, 6)))).all()
    blocks = array(KERAS_CLASSES[family](seed=keras.random.SeedGenerator(7), blocks=2)((6, 12)))
    assert (blocks[:, :6] != blocks[:, 6:]).any()


def test_keras_seed_generators_when_traced():
    """A stateless call gives the matrix, and the generator's next state."""
    generator = keras.random.SeedGenerator(7)
    init = deq_init.keras.Orthogonal(seed=generator)
    expected = array(deq_init.keras.Orthogonal(seed=keras.random.SeedGenerator(7))((6, 6)))
    if KERAS_BACKEND == "tensorflow":
        import tensorflow as tf

        function = tf.function(lambda: init((6, 6)))
        calls = [array(function()), array(function())]
    elif KERAS_BACKEND == "jax":
        import jax

        @jax.jit
        def function(state):
            with keras.StatelessScope([(generator.state, state)]) as scope:
                w = init((6, 6))
            return w, scope.get_current_value(generator.state)

        w, state = function(generator.state.value)
        calls = [array(w), array(function(state)[0])]
    else:
        calls = [array(init((6, 6))), array(init((6, 6)))]
    np.testing.assert_allclose(calls[0], expected, atol=1e-5)
    assert (calls[0] != calls[1]).any()


def test_keras_cloned_models_and_configs():
    init = deq_init.keras.GOE(spectral_radius=0.9, seed=4)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, kernel_initializer=init)])
    for copy in (keras.models.clone_model(model), type(model).from_config(model.get_config())):
        assert type(copy.layers[-1].kernel_initializer) is deq_init.keras.GOE
        assert (array(copy.layers[-1].kernel) == array(model.layers[-1].kernel)).all()


def test_keras_gru_gates_are_blocks():
    init = deq_init.keras.Orthogonal(0.5, blocks=3, seed=1)
    layer = keras.layers.GRU(6, recurrent_initializer=init)
    layer.build((None, 3, 5))
    for gate in np.split(array(layer.cell.recurrent_kernel), 3, axis=1):
        np.testing.assert_allclose(gate @ gate.T, 0.25 * np.eye(6), atol=1e-5)


def test_keras_grouped_convolutions_are_blocks():
    """One position, 1 x 1: each group is an orthogonal map of its own, and scales lengths."""
    init = deq_init.keras.Orthogonal(0.5, blocks=3, seed=1)
    layer = keras.layers.Conv2D(
        12, 1, groups=3, use_bias=False, kernel_initializer=init, data_format="channels_last"
    )
    x = np.random.default_rng(0).standard_normal((2, 1, 1, 12)).astype("float32")
    y = array(layer(x))
    lengths = [np.linalg.norm(z.reshape(2, 3, 4), axis=2) for z in (x, y)]
    np.testing.assert_allclose(lengths[1], 0.5 * lengths[0], rtol=1e-5)


def test_keras_flattening_is_keras_own():
    """(..., in, out) to (prod, out), as keras.initializers.Orthogonal: columns are orthonormal."""
    for shape in [(3, 3, 4, 8), (5, 4, 8), (2, 3, 4, 1)]:
        for make in (deq_init.keras.Orthogonal, keras.initializers.Orthogonal):
            flat = array(make(seed=1)(shape)).reshape(-1, shape[-1])
            np.testing.assert_allclose(flat.T @ flat, np.eye(shape[-1]), atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        lambda init: keras.layers.MultiHeadAttention(2, 4, kernel_initializer=init),
        lambda init: keras.layers.EinsumDense("abc,cd->abd", (None, 8), kernel_initializer=init),
        lambda init: keras.layers.DepthwiseConv1D(3, depthwise_initializer=init),
        lambda init: keras.layers.SeparableConv1D(
            8, 3, depthwise_initializer=init, pointwise_initializer=init
        ),
    ],
)
def test_keras_layers_of_other_kernels_build_and_run(layer):
    layer = layer(deq_init.keras.Random(seed=1))
    x = np.ones((2, 5, 8), "float32")
    y = layer(x, x) if isinstance(layer, keras.layers.MultiHeadAttention) else layer(x)
    assert np.isfinite(array(y)).all()


def test_keras_devices():
    with keras.device("cpu:0" if KERAS_BACKEND != "torch" else "cpu"):
        w = deq_init.keras.Orthogonal(0.5, seed=1)((6, 6))
    np.testing.assert_allclose(array(w) @ array(w).T, 0.25 * np.eye(6), atol=1e-6)


def test_keras_a_failure_leaves_the_initializer_usable(monkeypatch):
    init = deq_init.keras.Orthogonal(0.5, seed=1)
    expected = array(init((6, 6)))
    with pytest.raises(errors.ShapeError):
        init((6,))
    with monkeypatch.context() as patch:
        patch.setattr(plans.Plan, "sample", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            init((6, 7))
    assert (array(init((6, 6))) == expected).all()
