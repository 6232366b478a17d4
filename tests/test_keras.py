"""Keras's idiom: strings, configs, files, traced calls; and the suite on its other backends."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import deq_init.keras

from backends import KERAS_BACKEND, KERAS_CLASSES, SQUARE


@pytest.mark.parametrize(("name", "family"), [(f"deq_{f}", f) for f in KERAS_CLASSES])
def test_keras_strings(name, family):
    layer = keras.layers.Dense(6, kernel_initializer=name)
    layer.build((None, 6))
    assert type(layer.kernel_initializer) is KERAS_CLASSES[family]
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    assert np.isfinite(kernel).all()
    if family in SQUARE:
        assert (kernel == kernel.T * (1 if family == "goe" else -1)).all()


def test_keras_builtin_names_are_left_alone():
    assert type(keras.initializers.get("orthogonal")) is keras.initializers.Orthogonal


@pytest.mark.parametrize("family", KERAS_CLASSES)
@pytest.mark.parametrize(
    "scale", [{}, {"gain": 0.3}, {"spectral_norm": 0.9}, {"blocks": (2, 0)}, {"determinant": 1}]
)
def test_keras_config_round_trip(family, scale):
    if family != "orthogonal" and "determinant" in scale:
        pytest.skip("a property of orthogonal matrices")
    if family in SQUARE and "blocks" in scale:
        scale = {"blocks": 1}
    init = KERAS_CLASSES[family](seed=2**40 + 1, **scale)
    config = keras.saving.serialize_keras_object(init)
    assert config["registered_name"] == f"deq_init>{KERAS_CLASSES[family].__name__}"
    again = keras.saving.deserialize_keras_object(config)
    w, copy = (keras.ops.convert_to_numpy(i((4, 4))) for i in (init, again))
    assert (w == copy).all()
    by_name = keras.initializers.get(
        {"class_name": f"deq_init>{KERAS_CLASSES[family].__name__}", "config": init.get_config()}
    )
    assert (keras.ops.convert_to_numpy(by_name((4, 4))) == w).all()


def test_keras_seeds(family):
    make = KERAS_CLASSES[family]
    fixed = make()
    calls = [keras.ops.convert_to_numpy(fixed((5, 5))) for _ in range(2)]
    assert (calls[0] == calls[1]).all()
    assert (keras.ops.convert_to_numpy(fixed.clone()((5, 5))) != calls[0]).any()
    keras.utils.set_random_seed(3)
    first = keras.ops.convert_to_numpy(make()((5, 5)))
    keras.utils.set_random_seed(3)
    assert (keras.ops.convert_to_numpy(make()((5, 5))) == first).all()
    advancing = make(seed=keras.random.SeedGenerator(1))
    calls = [keras.ops.convert_to_numpy(advancing((5, 5))) for _ in range(2)]
    assert (calls[0] != calls[1]).any()


def test_keras_traced_builds(family):
    """A nested layer that is not built: the initializer also runs on symbolic tensors."""

    class Nested(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dense(6, kernel_initializer=KERAS_CLASSES[family](seed=5))

        def call(self, x):
            return self.inner(x)

    inputs = keras.Input((6,))
    layer = Nested()
    model = keras.Model(inputs, layer(inputs))
    assert model(np.ones((2, 6), "float32")).shape == (2, 6)
    expected = keras.ops.convert_to_numpy(KERAS_CLASSES[family](seed=5)((6, 6)))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.inner.kernel), expected, atol=2e-6)


def test_keras_lstm_gates_are_blocks():
    layer = keras.layers.LSTM(
        6, recurrent_initializer=deq_init.keras.Orthogonal(0.5, blocks=4, seed=1)
    )
    layer.build((None, 3, 5))
    kernel = keras.ops.convert_to_numpy(layer.cell.recurrent_kernel)
    for gate in np.split(kernel, 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, 0.25 * np.eye(6), atol=1e-5)


LOAD = """
import sys, numpy as np, keras, deq_init.keras
model = keras.models.load_model(sys.argv[1])
init = model.layers[-1].kernel_initializer
assert type(init) is deq_init.keras.GOE, init
np.save(sys.argv[2], keras.ops.convert_to_numpy(model(np.eye(8, dtype="float32"))))
np.save(sys.argv[3], keras.ops.convert_to_numpy(init((8, 8))))
"""


@pytest.mark.parametrize("into", ["tensorflow", "jax", "torch"])
def test_keras_files_load_in_a_new_process(tmp_path, into):
    init = deq_init.keras.GOE(spectral_norm=0.9, seed=4)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, kernel_initializer=init)])
    path = tmp_path / "model.keras"
    model.save(path)
    files = [tmp_path / "out.npy", tmp_path / "fresh.npy"]
    subprocess.run(
        [sys.executable, "-c", LOAD, str(path), *map(str, files)],
        env={**os.environ, "KERAS_BACKEND": into},
        check=True,
        cwd=tmp_path,
        timeout=300,
    )
    expected = keras.ops.convert_to_numpy(model(np.eye(8, dtype="float32")))
    np.testing.assert_allclose(np.load(files[0]), expected, atol=1e-6)
    np.testing.assert_allclose(
        np.load(files[1]), keras.ops.convert_to_numpy(init((8, 8))), atol=1e-5
    )


@pytest.mark.skipif("DEQ_INIT_INNER" in os.environ, reason="runs once, from the outer suite")
@pytest.mark.parametrize("other", sorted({"tensorflow", "jax", "torch"} - {KERAS_BACKEND}))
def test_keras_on_its_other_backends(other):
    """The same tests, in a process whose Keras runs on another backend."""
    selected = ["test_families.py", "test_scale.py", "test_statistics.py", "test_layers.py"]
    selected += ["test_errors.py", "test_keras.py", "test_keras_reach.py", "test_keras_models.py"]
    selected += ["test_keras_jacobian.py", "test_keras_equilibrium.py"]
    here = os.path.dirname(__file__)
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-k", "keras", "-p", "no:cacheprovider"),
            *(os.path.join(here, name) for name in selected),
        ],
        env={**os.environ, "KERAS_BACKEND": other, "DEQ_INIT_INNER": "1"},
        capture_output=True,
        text=True,
        timeout=840,
        cwd=os.path.dirname(here),
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    passed = int(result.stdout.rsplit(" passed", 1)[0].rsplit(maxsplit=1)[-1])
    assert passed > 100
