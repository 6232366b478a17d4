"""Loaders: shapes and scaling of the digits, where MNIST is looked for, and damaged files."""

import numpy as np
import pooch
import pytest

from deq_init import data
from deq_init.errors import DataError


def fake_mnist(path, **changes):
    arrays = {name: np.zeros(shape, np.uint8) for name, shape in data._MNIST_ARRAYS.items()}
    arrays["x_test"][:] = 255
    np.savez_compressed(path, **{**arrays, **changes})


def test_digits():
    split = data.digits()
    assert split.x_train.shape == (1400, 64)
    assert split.x_test.shape == (397, 64)
    assert split.x_train.dtype == np.float32
    np.testing.assert_allclose(split.x_train.mean(0), 0, atol=1e-5)
    deviation = split.x_train.std(0)
    assert (np.isclose(deviation, 1, atol=1e-4) | (deviation == 0)).all()
    assert set(split.y_train) == set(range(10))


def test_mnist_from_the_named_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    fake_mnist(tmp_path / "mnist.npz")
    split = data.mnist()
    assert split.x_train.shape == (60000, 784)
    assert (split.x_train == 0).all()
    assert (split.x_test == 1).all()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_damaged_mnist(tmp_path, monkeypatch, content):
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    (tmp_path / "mnist.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"expected .*mnist\.npz to be an \.npz file"):
        data.mnist()


def test_mnist_damaged_in_the_middle(tmp_path, monkeypatch):
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    path = tmp_path / "mnist.npz"
    noise = np.random.default_rng(0).integers(0, 255, (60000, 28, 28), np.uint8)
    fake_mnist(path, x_train=noise)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"expected .*mnist\.npz to be an \.npz file"):
        data.mnist()


def test_mnist_that_is_one_array(tmp_path, monkeypatch):
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    with (tmp_path / "mnist.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"expected .*mnist\.npz to be an \.npz file"):
        data.mnist()


def test_mnist_of_another_shape(tmp_path, monkeypatch):
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    fake_mnist(tmp_path / "mnist.npz", y_test=np.zeros(3, int))
    with pytest.raises(DataError, match=r"expected integers y_test .*received int64"):
        data.mnist()


def test_mnist_of_another_dtype(tmp_path, monkeypatch):
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    fake_mnist(tmp_path / "mnist.npz", y_test=np.full(10000, "7"))
    with pytest.raises(DataError, match=r"expected integers y_test"):
        data.mnist()


def test_mnist_that_is_nowhere(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(DataError, match=r"no route to host.*set DEQ_INIT_DATA") as caught:
        data.mnist()
    assert str(tmp_path / "mnist.npz") in str(caught.value)
    assert str(tmp_path / "cache" / "mnist.npz") in str(caught.value)


def test_mnist_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("DEQ_INIT_DATA", raising=False)
    fake_mnist(tmp_path / "mnist.npz")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)
    monkeypatch.setattr(data, "_MNIST_SHA256", pooch.file_hash(str(tmp_path / "mnist.npz")))
    assert data.mnist().y_test.shape == (10000,)
