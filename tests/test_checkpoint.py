"""Checkpoint files against safetensors's own, and what models refuse to be set to."""

import os
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

import deq_init.jax
import deq_init.keras.models
import deq_init.torch.models
from deq_init import checkpoint
from deq_init.errors import ModelError, OutputError
from deq_init.jax import models as jax_models

ARRAYS = {
    "scalar": np.float32(1.5),
    "bfloat16": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">f4"),
    "reversed": np.arange(5, dtype=np.float16)[::-1],
    "broadcast": np.broadcast_to(np.int16(3), (2, 2)),
    "empty": np.zeros((0, 3)),
}


def test_arrays_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, ARRAYS)
    peer = safetensors.torch.load_file(path)
    for name, value in checkpoint.load(path).items():
        expected = np.asarray(ARRAYS[name])
        assert value.dtype == expected.dtype.newbyteorder("=")
        assert value.shape == expected.shape == tuple(peer[name].shape)
        np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(value.astype(float), peer[name].double().numpy())


@pytest.mark.parametrize("has_ml_dtypes", [True, False])
def test_bfloat16_of_pytorch(tmp_path, monkeypatch, has_ml_dtypes):
    values = torch.tensor([[1.0, -0.15625], [3e38, 1e-40]]).bfloat16()
    safetensors.torch.save_file({"w": values, "s": values[0, 0].clone()}, tmp_path / "a")
    if not has_ml_dtypes:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    found = checkpoint.load(tmp_path / "a")
    assert found["w"].dtype == (ml_dtypes.bfloat16 if has_ml_dtypes else np.float32)
    np.testing.assert_array_equal(found["w"].astype(np.float32), values.float().numpy())
    assert found["s"].shape == ()


def test_float8_of_pytorch(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "a")
    with pytest.raises(ModelError, match=r"received F8_E4M3 as 'w'\. Convert it to float32"):
        checkpoint.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "expected a mapping of names to arrays, received NoneType"),
        ({1: np.eye(2)}, "expected the names of arrays as strings, received 1"),
        ({"a": np.array([1j])}, "as 'a', received complex128 of shape"),
        ({"a": np.array([None])}, "as 'a', received object"),
        ({"a": np.array("x")}, "as 'a', received <U1"),
        ({"a": np.longdouble(1)}, "as 'a', received float128"),
        ({"a": np.ones(2, ml_dtypes.float8_e4m3fn)}, "as 'a', received float8_e4m3fn"),
        ({"a": torch.ones(2, requires_grad=True)}, "converting Tensor to NumPy failed"),
    ],
)
def test_what_no_checkpoint_can_hold(tmp_path, arrays, message):
    if "float128" in message and np.longdouble is np.float64:
        pytest.skip("long double is float64 here")
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(ModelError, match=message):
        checkpoint.save(path, arrays)
    assert path.read_bytes() == b"before"


def test_a_symbolic_link_stays_one(tmp_path):
    link, real = tmp_path / "latest.safetensors", tmp_path / "real.safetensors"
    link.symlink_to("real.safetensors")
    for value in (1.0, 2.0):
        checkpoint.save(link, {"a": np.full(2, value)})
        assert link.is_symlink()
        assert checkpoint.load(real)["a"][0] == value
    real.chmod(0o640)
    checkpoint.save(link, {"a": np.eye(2)})
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["latest.safetensors", "real.safetensors"]


def test_no_file_that_is_there_is_written_through(tmp_path, monkeypatch):
    """Not even where the temporary name could be guessed."""
    monkeypatch.setattr("secrets.token_hex", lambda count: "guessed")
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / ".guessed.partial").symlink_to(victim)
    with pytest.raises(OutputError, match="File exists"):
        checkpoint.save(tmp_path / "a", {"a": np.eye(2)})
    assert victim.read_bytes() == b"mine"
    with pytest.raises(OutputError, match="it is no regular file"):
        checkpoint.save(tmp_path, {"a": np.eye(2)})


def test_bytes_are_on_the_disk_before_the_file_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    seen = []

    def fsync(descriptor):
        seen.append((os.fstat(descriptor).st_size, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoint.save(path, {"a": np.eye(2)})
    assert seen == [(path.stat().st_size, b"before")]

    def fail(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    kept = path.read_bytes()
    with pytest.raises(OutputError, match="no space left"):
        checkpoint.save(path, {"a": np.eye(3)})
    assert path.read_bytes() == kept
    assert os.listdir(tmp_path) == ["a"]


SIZES = (3, 6, 2)
BAD = {
    "nan": (lambda w: w * np.nan, "expected finite numbers of at most"),
    "inf": (lambda w: w + np.inf, "expected finite numbers of at most"),
    "too large": (lambda w: w.astype(np.float64) + 1e300, "the largest in float32, as W"),
    "bool": (lambda w: w > 0, "received bool of shape"),
    "integers": (lambda w: w.astype(np.int32), "received int32 of shape"),
    "complex": (lambda w: w + 1j, "received complex64 of shape"),
    "strings": (lambda w: w.astype(str), "received <U"),
    "ragged": (lambda w: [[1.0], [1.0, 2.0]], "converting list to NumPy failed"),
    "none": (lambda w: None, "received object of shape"),
    "shape": (lambda w: w[1:], "expected a checkpoint of kernels"),
}


def in_torch():
    model = deq_init.torch.models.DEQFCN(*SIZES, seed=0)
    return model.from_arrays, model.to_arrays


def in_keras():
    model = deq_init.keras.models.DEQFCN(*SIZES, seed=0)
    return model.from_arrays, model.to_arrays


def in_jax():
    model = jax_models.DEQFCN(*SIZES)
    held = model.init(jax.random.key(0), deq_init.jax.goe(0.5))

    def load(arrays):
        held.update(model.from_arrays(arrays))

    return load, lambda: model.to_arrays(held)


@pytest.mark.parametrize("framework", [in_torch, in_jax, in_keras])
def test_what_no_model_is_set_to(framework):
    load, held = framework()
    before = {name: value.copy() for name, value in held().items()}
    for change, message in BAD.values():
        with pytest.raises(ModelError, match=message):
            load({**before, "W": change(before["W"])})
    for given in (None, list(before.values())):
        with pytest.raises(ModelError, match="as a mapping of names to arrays"):
            load(given)
    for name, value in held().items():
        np.testing.assert_array_equal(value, before[name])
    for dtype in (jnp.bfloat16, np.float16, ">f8", ">f4"):
        given = {name: value.astype(dtype) for name, value in before.items()}
        load(given)
        for name, value in held().items():
            np.testing.assert_array_equal(value.astype(float), given[name].astype(float))


def test_the_transformers_of_all_frameworks_check_too():
    sizes = {"vocabulary": 7, "width": 8, "heads": 2}
    models = (
        deq_init.torch.models.DEQTransformer(**sizes, seed=0),
        deq_init.keras.models.DEQTransformer(**sizes, seed=0),
    )
    arrays = models[0].to_arrays()
    name = next(iter(arrays))
    bad = {**arrays, name: np.full_like(arrays[name], np.nan)}
    for model in (*models, jax_models.DEQTransformer(**sizes)):
        model.from_arrays(arrays)
        with pytest.raises(
            ModelError, match=f"expected finite numbers .*, as {name}, received nan"
        ):
            model.from_arrays(bad)
