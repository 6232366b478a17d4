"""Loaders: shapes and scaling of the digits, where MNIST is looked for, and damaged files."""

import zipfile

import numpy as np
import pooch
import pytest

from deq_init import data, vocabulary
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


LINES = " \n = Title = \n \n A <unk> word , and é . \n"
WORDS = ["<eos>", "=", "Title", "=", "<eos>", "<eos>"]
WORDS += ["A", "<unk>", "word", ",", "and", "é", ".", "<eos>"]


@pytest.mark.parametrize("file", ["valid.txt", "wiki.valid.tokens"])
def test_wikitext_from_the_named_folder(tmp_path, monkeypatch, file):
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "wikitext-2" / file).write_text(LINES, encoding="utf-8")
    assert data.wikitext("2", "valid") == WORDS


def test_wikitext_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("DEQ_INIT_DATA", raising=False)
    archive = tmp_path / "wikitext-103-v1.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("wikitext-103/wiki.test.tokens", LINES)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)
    monkeypatch.setitem(data._WIKITEXT_MD5, "103", pooch.file_hash(str(archive), "md5"))
    assert data.wikitext("103", "test") == WORDS
    with pytest.raises(DataError, match=r"expected .*zip to hold wiki\.train\.tokens"):
        data.wikitext("103", "train")


def test_wikitext_that_is_nowhere(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr(pooch, "retrieve", refuse)
    match = r"no route to host. Put wikitext-2/train\.txt into a folder and set DEQ_INIT_DATA"
    with pytest.raises(DataError, match=match) as caught:
        data.wikitext("2", "train")
    for place in ("wikitext-2/train.txt", "wikitext-2/wiki.train.tokens"):
        assert str(tmp_path / place) in str(caught.value)
    assert str(tmp_path / "cache" / "wikitext-2-v1.zip") in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"\n \n"])
def test_damaged_wikitext(tmp_path, monkeypatch, content):
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "wikitext-2" / "test.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"expected .*test\.txt.*Delete or replace it"):
        data.wikitext("2", "test")


def test_wikitext_of_another_name():
    with pytest.raises(DataError, match=r"expected WikiText '2' or '103' .* received '3'"):
        data.wikitext("3", "test")


def test_vocabularies():
    text = ["b", "a", "b", "<unk>", "c", "c", "b", "d"]
    assert vocabulary.build(text).words == ("<unk>", "b", "c", "a", "d")
    assert vocabulary.build(text, min_count=2).words == ("<unk>", "b", "c")
    known = vocabulary.build(text, size=3)
    assert known.words == ("<unk>", "b", "c")
    assert len(known) == 3
    indices = known.encode(["c", "x", "<unk>", "b"])
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, [2, 0, 0, 1])
    assert known.decode(indices) == ["c", "<unk>", "<unk>", "b"]
    with pytest.raises(DataError, match="expected room for one word"):
        vocabulary.build(text, size=0)
    with pytest.raises(DataError, match="expected different words"):
        vocabulary.Vocabulary(("<unk>", "a", "a"))
