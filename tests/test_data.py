"""Loaders: shapes and scaling of the digits, where MNIST is looked for, and damaged files."""

import zipfile

import numpy as np
import pooch
import pytest
import sklearn.datasets

from deq_init import data, vocabulary
from deq_init.errors import DataError

REQUIRE_CHECKSUM = data._require_checksum


@pytest.fixture(autouse=True)
def any_content(monkeypatch):
    """The files here are no real ones."""
    monkeypatch.setattr(data, "_require_checksum", lambda *given: None)


@pytest.fixture
def checksums(monkeypatch, any_content):
    monkeypatch.setattr(data, "_require_checksum", REQUIRE_CHECKSUM)


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


def test_the_split_of_the_digits_is_that_of_seed_0():
    """Samples are those at the places of NumPy's PCG64 permutation of this seed."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(0)))
    order = generator.permutation(1797)
    split = data.digits()
    np.testing.assert_array_equal(np.r_[split.y_train, split.y_test], labels[order])
    train = images[order[:1400]]
    expected = (images[order] - train.mean(0)) / np.maximum(train.std(0), 1e-9)
    np.testing.assert_allclose(np.r_[split.x_train, split.x_test], expected, atol=1e-4)


@pytest.mark.parametrize("train", [0, -3, 1797, 5000, 1.5, True, None])
def test_splits_that_do_not_exist(train):
    with pytest.raises(DataError, match=f"expected 1 to 1796 of the 1797 .* received {train!r}"):
        data.digits(train)


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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("y_train", 10**9, "expected integers from 0 to 9 as y_train"),
        ("y_test", -5, "expected integers from 0 to 9 as y_test"),
        ("x_train", 1000, "expected integers from 0 to 255 as x_train"),
    ],
)
def test_mnist_out_of_range(tmp_path, monkeypatch, name, value, message):
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    wrong = np.zeros(data._MNIST_ARRAYS[name], np.int64)
    wrong[7] = value
    fake_mnist(tmp_path / "mnist.npz", **{name: wrong})
    with pytest.raises(DataError, match=message):
        data.mnist()


@pytest.mark.usefixtures("checksums")
def test_other_images_in_the_format_of_mnist(tmp_path, monkeypatch):
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    fake_mnist(tmp_path / "mnist.npz")
    with pytest.raises(
        DataError, match="expected MNIST's x_train with the SHA-256 checksum 741c9888"
    ):
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
    monkeypatch.setattr(data, "_WIKITEXT_103_WORDS", {"test": len(WORDS)})
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("wikitext-103/wiki.test.tokens", LINES)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)
    monkeypatch.setattr(data, "_WIKITEXT_103_MD5", pooch.file_hash(str(archive), "md5"))
    assert data.wikitext("103", "test") == WORDS
    with pytest.raises(DataError, match=r"expected .*zip to hold wiki\.train\.tokens"):
        data.wikitext("103", "train")


def test_wikitext_that_is_nowhere(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr(pooch, "retrieve", refuse)
    checksum = r"\(SHA-256 9e9fa1ad[0-9a-f]{56}\)"
    match = rf"no route to host. Put wikitext-2/train\.txt {checksum} into a folder and set DEQ_"
    with pytest.raises(DataError, match=match) as caught:
        data.wikitext("2", "train")
    for place in ("wikitext-2/train.txt", "wikitext-2/wiki.train.tokens"):
        assert str(tmp_path / place) in str(caught.value)
    assert str(tmp_path / "cache" / "wikitext-2-train.txt") in str(caught.value)
    with pytest.raises(DataError, match=r"Put wikitext-103/valid\.txt, which is .*MD5 9ddaacaf"):
        data.wikitext("103", "valid")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"\n \n"])
def test_damaged_wikitext(tmp_path, monkeypatch, content):
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "wikitext-2" / "test.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"expected .*test\.txt.*Delete or replace it"):
        data.wikitext("2", "test")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_end_at_newlines_alone(tmp_path, monkeypatch, mark):
    """As Python's files have them: words are those of each line of the file, and its end."""
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    (tmp_path / "wikitext-2").mkdir()
    path = tmp_path / "wikitext-2" / "test.txt"
    text = " a b\u2028c d\x85e f\x1cg h\x0bi \r\n = T = \n\n"
    path.write_bytes(mark + text.encode())
    expected = []
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            expected += [*line.split(), "<eos>"]
    assert data.wikitext("2", "test") == expected
    assert len(expected) == 15


@pytest.mark.usefixtures("checksums")
def test_another_text_than_wikitext(tmp_path, monkeypatch):
    """A file of another content, and the raw variant, which has no <unk>."""
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    for name in ("2", "103"):
        (tmp_path / f"wikitext-{name}").mkdir()
        (tmp_path / f"wikitext-{name}" / "test.txt").write_text(LINES, encoding="utf-8")
    with pytest.raises(DataError, match="expected the test text of WikiText-2 with the SHA-256"):
        data.wikitext("2", "test")
    with pytest.raises(DataError, match=r"245569 words with <unk>.* received 14 with 1 <unk>"):
        data.wikitext("103", "test")
    monkeypatch.setattr(data, "_WIKITEXT_103_WORDS", {"test": 14})
    assert data.wikitext("103", "test") == WORDS
    raw = LINES.replace("<unk>", "rare")
    (tmp_path / "wikitext-103" / "test.txt").write_text(raw, encoding="utf-8")
    with pytest.raises(DataError, match="the raw variant has none"):
        data.wikitext("103", "test")


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
    for wrong in (-1, 3, 1.7, True, "b", None):
        with pytest.raises(DataError, match="expected indices as integers from 0 to 2"):
            known.decode([0, wrong])
    with pytest.raises(DataError, match="expected room for one word"):
        vocabulary.build(text, size=0)
    with pytest.raises(DataError, match="expected different words"):
        vocabulary.Vocabulary(("<unk>", "a", "a"))
