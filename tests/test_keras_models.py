"""deq_init.keras.initialize: which variables of a model are set, with what, and what is checked."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import deq_init.keras
import deq_init.numpy
from deq_init import errors, selection
from deq_init.keras import sampling
from deq_init.keras.activations import ACTIVATIONS
from deq_init.theory import activations as theory

import reference


def array(variable):
    return np.array(ops.convert_to_numpy(ops.cast(variable, "float32")))


def arrays(model):
    return {variable.path: array(variable) for variable in model.weights}


def cell(name="cell", **options):
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(8, name="state", **options),
            layers.LayerNormalization(name="scale"),
            layers.Dense(3, name="read", **options),
        ],
        name=name,
    )


def test_keras_initialize_sets_kernels_and_leaves_the_rest(capsys):
    model = cell()
    before = arrays(model)
    summary = deq_init.keras.initialize(model, "orthogonal", 0.9, seed=3)
    after = arrays(model)
    changed = [name for name in before if (before[name] != after[name]).any()]
    assert changed == list(summary.names) == ["cell/state/kernel", "cell/read/kernel"]
    for name in changed:
        own = selection.seed_of(3, name)
        expected = array(deq_init.keras.Orthogonal(0.9, seed=own)(before[name].shape))
        np.testing.assert_allclose(after[name], expected, atol=1e-6)
        if expected.shape == (8, 8):
            portable = deq_init.numpy.orthogonal((8, 8), 0.9, seed=own)
            np.testing.assert_allclose(after[name], portable, atol=1e-5)
    assert capsys.readouterr().out == f"{summary}\n"
    deq_init.keras.initialize(model, "random", verbose=False)
    assert capsys.readouterr().out == ""
    assert (array(model.weights[0]) != after["cell/state/kernel"]).any()


def test_keras_activations_are_those_of_theory():
    """float32, between -30 and 30, to a few units in the last place of |h|."""
    h = np.linspace(-30, 30, 1201).astype("float32")
    assert set(ACTIVATIONS) == set(theory.ACTIVATIONS)
    for name, phi in theory.ACTIVATIONS.items():
        values = ops.convert_to_numpy(ACTIVATIONS[name](ops.convert_to_tensor(h)))
        expected = phi.function(h.astype("float64"))
        assert values.dtype == "float32"
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6, err_msg=name)


def test_keras_initialize_patterns_mappings_and_predicates():
    model = cell()
    initialize = deq_init.keras.initialize
    assert initialize(model, "goe", where="*/state/*el", verbose=False).names == (
        "cell/state/kernel",
    )
    where = {"*/state/kernel": {"family": "goe", "spectral_radius": 0.7}, "*/kernel": {}}
    assert len(initialize(model, "random", 0.5, where=where, verbose=False).names) == 2
    w = array(model.get_layer("state").kernel)
    assert (w == w.T).all()
    assert reference.spectral_radius(w) == pytest.approx(0.7, rel=1e-5)
    kernel = model.get_layer("read").kernel
    summary = initialize(model, "random", where=lambda path, v: v is kernel, verbose=False)
    assert summary.names == ("cell/read/kernel",)


class Everything(keras.Model):
    def __init__(self):
        super().__init__(name="everything")
        self.embed = layers.Embedding(11, 8, name="embed")
        self.shared = layers.Dense(8, name="shared")
        self.frozen = layers.Dense(8, name="frozen", trainable=False)
        self.attend = layers.MultiHeadAttention(2, 4, name="attend")
        self.gru = layers.GRU(8, return_sequences=True, name="gru")
        self.depthwise = layers.SeparableConv1D(8, 3, name="depthwise")
        self.up = layers.Conv1DTranspose(8, 3, name="up")
        self.twins = [layers.Dense(8, name="twin") for _ in range(2)]
        self.unused = layers.Activation("tanh", name="unused")

    def call(self, x):
        z = self.embed(x)
        z = self.frozen(self.shared(self.shared(z)))
        z = self.attend(z, z)
        z = self.up(self.depthwise(self.gru(z)))
        return self.twins[1](self.twins[0](z))


def test_keras_initialize_by_default_sets_only_what_is_a_matrix():
    model = Everything()
    model(np.zeros((1, 5), "int32"))
    before = arrays(model)
    summary = deq_init.keras.initialize(model, "random", seed=0, verbose=False)
    prefix = "everything/"
    assert [name.removeprefix(prefix) for name in summary.names] == [
        "shared/kernel",
        "attend/query/kernel",
        "attend/key/kernel",
        "attend/value/kernel",
        "attend/attention_output/kernel",
        "gru/gru_cell/kernel",
        "gru/gru_cell/recurrent_kernel",
        "depthwise/depthwise_kernel",
        "depthwise/pointwise_kernel",
        "up/kernel",
        "twin/kernel",
        "twin/kernel_2",
    ]
    notes = {entry.name.removeprefix(prefix): entry.note for entry in summary.entries}
    assert notes["embed/embeddings"] == "embedding"
    assert notes["frozen/kernel"] == "not trainable"
    assert notes["attend/query/kernel"] == "random, gain 1, 8 x 8"
    assert notes["attend/query/bias"] == notes["gru/gru_cell/bias"] == "bias"
    assert notes["depthwise/depthwise_kernel"] == "random, gain 1, 8 of 1 x 3"
    assert notes["up/kernel"] == "random, gain 1, 8 x 24"
    for name in before:
        if name.endswith("bias"):
            assert (before[name] == 0).all()
    first, second = (array(twin.kernel) for twin in model.twins)
    assert (first != second).any()


def test_keras_initialize_sets_special_variables_that_are_named():
    model = Everything()
    model(np.zeros((1, 5), "int32"))
    where = ["*/embed/*", "*/frozen/kernel"]
    summary = deq_init.keras.initialize(model, "orthogonal", where=where, verbose=False)
    assert [name.split("/")[1] for name in summary.names] == ["embed", "frozen"]
    w = array(model.embed.embeddings)
    np.testing.assert_allclose(w.T @ w, np.eye(8), atol=1e-5)


def test_keras_initialize_one_layer_and_half_precision():
    layer = layers.Dense(8, dtype="bfloat16", name="state")
    layer.build((None, 8))
    summary = deq_init.keras.initialize(layer, "goe", spectral_norm=0.9, verbose=False)
    assert summary.entries[0].dtype == "bfloat16"
    assert keras.backend.standardize_dtype(layer.kernel.dtype) == "bfloat16"
    assert reference.spectral_norm(array(layer.kernel)) == pytest.approx(0.9, rel=3e-2)


def test_keras_initialize_survives_files(tmp_path):
    model = cell()
    deq_init.keras.initialize(model, "orthogonal", 0.9, seed=3, verbose=False)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for saved, loaded in zip(model.weights, again.weights, strict=True):
        assert (array(saved) == array(loaded)).all()
    x = np.ones((2, 8), "float32")
    np.testing.assert_allclose(array(again(x)), array(model(x)), atol=1e-6)
    # Keras may leave the model's name out of a loaded model's paths.
    deq_init.keras.initialize(again, "random", where="*state/kernel", verbose=False)
    assert (array(again.weights[0]) != array(model.weights[0])).any()
    assert (array(again.weights[4]) == array(model.weights[4])).all()


def test_keras_initialize_uses_keras_seed_by_default():
    models = []
    for seed in (5, 5, 6):
        keras.utils.set_random_seed(seed)
        models.append(cell())
        deq_init.keras.initialize(models[-1], "random", verbose=False)
    first, same, other = (array(model.weights[0]) for model in models)
    assert (first == same).all()
    assert (first != other).any()


def unbuilt():
    return keras.Sequential([layers.Dense(8)], name="bare")


class HalfBuilt(keras.Model):
    def __init__(self):
        super().__init__(name="outer")
        self.inner = layers.Dense(8, name="inner")
        self.other = layers.Dense(8, name="other")

    def build(self, shape):
        self.inner.build(shape)


def half_built():
    model = HalfBuilt()
    model.build((None, 8))
    return model


@pytest.mark.parametrize(
    ("make", "options", "error", "words"),
    [
        (unbuilt, {}, errors.SelectionError, "'bare'"),
        (half_built, {}, errors.SelectionError, "'other' is not"),
        (
            lambda: "model",
            {},
            errors.SelectionError,
            "expected a keras.Model or keras.layers.Layer",
        ),
        (cell, {"where": "*/sate/*"}, errors.SelectionError, "cell/state"),
        (cell, {"where": "*/kernel"}, errors.ShapeError, "cell/read/kernel: expected a square"),
        (cell, {"seed": -1}, errors.SeedError, "-1"),
        (cell, {"gain": 1.0, "spectral_norm": 1.0}, errors.ScaleError, "at most one"),
        (cell, {"family": "geo"}, errors.FamilyError, "Did you mean 'goe'"),
    ],
)
def test_keras_initialize_checks_before_it_changes(make, options, error, words):
    model = make()
    before = arrays(model) if hasattr(model, "weights") else {}
    with pytest.raises(error) as caught:
        deq_init.keras.initialize(model, **{"family": "goe", "verbose": False, **options})
    assert words in str(caught.value)
    for name, value in before.items():
        assert (value == arrays(model)[name]).all()


def test_keras_initialize_leaves_a_variable_whose_sampling_fails(monkeypatch):
    model = cell()
    before = arrays(model)
    monkeypatch.setattr(sampling, "sample", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        deq_init.keras.initialize(model, "random", verbose=False)
    after = arrays(model)
    assert all((before[name] == after[name]).all() for name in before)
