"""Data sets of the experiments: scikit-learn's digits, MNIST and WikiText.

The last two are looked for in the folder that the environment variable ``DEQ_INIT_DATA`` names,
then in the user's cache, and are downloaded to that cache last. Whatever the way, their content is
compared with checksums; only WikiText-103's files in a folder, for which there are none here, are
checked for their length and for rare words that are ``<unk>``.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deq_init.errors import DataError, require

_CORRUPT = (zipfile.BadZipFile, zlib.error, NotImplementedError)
_MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
_MNIST_ARRAYS = {
    "x_train": (60000, 28, 28),
    "y_train": (60000,),
    "x_test": (10000, 28, 28),
    "y_test": (10000,),
}
# Of the arrays as bytes: behind the headers of the original IDX files, whose MD5 checksums,
# published as 6bbc9ace..., a25bea73..., 2646ac64... and 27ae3e4e..., those bytes have.
_MNIST_ARRAYS_SHA256 = {
    "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}
_WIKITEXT_2_URL = (
    "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
)
_WIKITEXT_2_SHA256 = {
    "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}
# This address answers with 403 since 2024; what it served may be in the cache.
_WIKITEXT_103_URL = "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-103-v1.zip"
_WIKITEXT_103_MD5 = "9ddaacaf6af0710eda8c456decff7832"
_WIKITEXT_103_WORDS = {"train": 103227021, "valid": 217646, "test": 245569}  # Merity et al.
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Split:
    """A classification data set.

    Attributes
    ----------
    x_train, x_test : array, shape (samples, features), float32
        Inputs.
    y_train, y_test : array, shape (samples,), int32
        Labels 0, ..., classes - 1.
    """

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int32]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int32]

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1


def digits(train: int = 1400, seed: int = 0) -> Split:
    """Return scikit-learn's handwritten digits, 64 features, 10 classes, shuffled and split.

    Parameters
    ----------
    train : int
        Samples for training, 1 to 1796; the rest of the 1797 is for testing.
    seed : int
        Of the shuffle.

    Returns
    -------
    Split
        Each feature has mean 0 and variance 1 over the training samples (0 where it is constant).

    Raises
    ------
    DataError
        If there are no such numbers of samples.
    MissingFrameworkError
        If scikit-learn is not installed.
    """
    x, y = require("sklearn.datasets", "experiments").load_digits(return_X_y=True)
    whole = isinstance(train, (int, np.integer)) and not isinstance(train, bool)
    if not whole or not 0 < train < len(x):
        raise DataError(
            f"expected 1 to {len(x) - 1} of the {len(x)} samples for training, received {train!r}. "
            "Pass e.g. train=1400."
        )
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    mean, deviation = x[:train].mean(0), x[:train].std(0)
    x = (x - mean) / np.where(deviation > 0, deviation, 1)
    return _split(x[:train], y[:train], x[train:], y[train:])


def mnist() -> Split:
    """Return MNIST: 784 features in [0, 1], 10 classes, 60000 training and 10000 test samples.

    Raises
    ------
    DataError
        If the file is damaged or holds other images, or cannot be found or downloaded: it says
        where it looked.
    MissingFrameworkError
        If it must be downloaded and pooch is not installed.
    """
    arrays = _read_mnist(find_mnist())
    return _split(
        arrays["x_train"].reshape(-1, 784) / np.float32(255),
        arrays["y_train"],
        arrays["x_test"].reshape(-1, 784) / np.float32(255),
        arrays["y_test"],
    )


def _split(
    x_train: NDArray[Any], y_train: NDArray[Any], x_test: NDArray[Any], y_test: NDArray[Any]
) -> Split:
    return Split(
        x_train.astype(np.float32),
        y_train.astype(np.int32),
        x_test.astype(np.float32),
        y_test.astype(np.int32),
    )


def find_mnist() -> Path:
    """Return where MNIST's file is, downloading it if need be.

    Raises
    ------
    DataError, MissingFrameworkError
        As for :func:`mnist`.
    """
    looked = [folder / "mnist.npz" for folder in _named_folder()]
    if looked and looked[0].is_file():
        return looked[0]
    return _download("mnist.npz", "mnist.npz", _MNIST_URL, _MNIST_SHA256, looked)


def wikitext(name: Literal["2", "103"], split: Literal["train", "valid", "test"]) -> list[str]:
    """Return the words of a part of WikiText-2 or WikiText-103, ``<eos>`` after each line.

    Parameters
    ----------
    name : {"2", "103"}
        Which.
    split : {"train", "valid", "test"}
        The part. Rare words are ``<unk>`` in the files themselves.

    Raises
    ------
    DataError
        If the file is no text or another one, or cannot be found or downloaded: it says where it
        looked, and which file to place there.
    MissingFrameworkError
        If it must be looked for in the cache or downloaded, and pooch is not installed.

    Notes
    -----
    In a folder, ``wikitext-2/train.txt`` or ``wikitext-2/wiki.train.tokens``, and so on. Lines end
    at newlines alone.

    References
    ----------
    Merity, Xiong, Bradbury & Socher, "Pointer sentinel mixture models" (2016), arXiv 1609.07843.
    """
    if name not in ("2", "103") or split not in ("train", "valid", "test"):
        raise DataError(
            f"expected WikiText '2' or '103' and a split 'train', 'valid' or 'test', received "
            f"{name!r} and {split!r}. Pass e.g. '2' and 'train'."
        )
    looked: list[Path] = []
    for folder in _named_folder():
        looked += [folder / f"wikitext-{name}" / file for file in _wikitext_files(split)]
    for path in looked:
        if path.is_file():
            return _words(path, path.read_bytes(), name, split)
    if name == "2":
        checksum = _WIKITEXT_2_SHA256[split]
        wanted = f"wikitext-2/{split}.txt (SHA-256 {checksum})"
        url = f"{_WIKITEXT_2_URL}/{split}.txt"
        path = _download(f"wikitext-2-{split}.txt", wanted, url, checksum, looked)
        return _words(path, path.read_bytes(), name, split)
    wanted = (
        f"wikitext-103/{split}.txt, which is wiki.{split}.tokens in wikitext-103-v1.zip (MD5 "
        f"{_WIKITEXT_103_MD5}) and not the raw variant,"
    )
    archive = _download(
        "wikitext-103-v1.zip", wanted, _WIKITEXT_103_URL, f"md5:{_WIKITEXT_103_MD5}", looked
    )
    try:
        with zipfile.ZipFile(archive) as zipped:
            text = zipped.read(f"wikitext-{name}/wiki.{split}.tokens")
    except (OSError, KeyError, EOFError, *_CORRUPT) as error:
        raise DataError(
            f"expected {archive} to hold wiki.{split}.tokens, and reading it failed: {error}. "
            "Delete the file, so that it is downloaded again."
        ) from error
    return _words(archive, text, name, split)


def _wikitext_files(split: str) -> tuple[str, str]:
    return f"{split}.txt", f"wiki.{split}.tokens"


def _words(path: Path, content: bytes, name: str, split: str) -> list[str]:
    content = content.removeprefix(_BOM).replace(b"\r\n", b"\n")
    try:
        # Not splitlines(): that splits at form feeds and at Unicode's separators, too.
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected {path} to be text in UTF-8, and it is not: {error}. Delete or replace it."
        ) from error
    words = [word for line in lines for word in (*line.split(), "<eos>")]
    if all(word == "<eos>" for word in words):
        raise DataError(f"expected words in {path}, received none. Delete or replace it.")
    if name == "2":
        _require_checksum(
            path, f"the {split} text of WikiText-2", content, _WIKITEXT_2_SHA256[split]
        )
    else:
        expected = _WIKITEXT_103_WORDS[split]
        if "<unk>" not in words or not 0.99 < len(words) / expected < 1.01:
            raise DataError(
                f"expected the {split} text of WikiText-103 in {path}, {expected} words with "
                f"<unk> for rare ones, received {len(words)} with {words.count('<unk>')} <unk>. "
                "Replace it; the raw variant has none."
            )
    return words


def _require_checksum(path: Path, what: str, content: bytes, expected: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"expected {what} with the SHA-256 checksum {expected} in {path}, received one with "
            f"{found}. Delete or replace the file."
        )


def _named_folder() -> list[Path]:
    """Return the folder that the user has named, if any."""
    folder = os.environ.get("DEQ_INIT_DATA")
    return [Path(folder)] if folder else []


def _download(file: str, wanted: str, url: str, checksum: str, looked: list[Path]) -> Path:
    """Return the file from the cache, or download it there."""
    pooch = require("pooch", "experiments")
    cache = Path(pooch.os_cache("deq-init"))
    try:
        return Path(pooch.retrieve(url, checksum, file, cache))
    except Exception as error:  # pooch lets through whatever its downloader raises
        places = " and ".join(map(str, [*looked, cache / file]))
        raise DataError(
            f"expected a file at {places}, or a download from {url}; neither worked: {error}. "
            f"Put {wanted} into a folder and set DEQ_INIT_DATA to that folder."
        ) from error


def _read_mnist(path: Path) -> dict[str, NDArray[np.uint8]]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _MNIST_ARRAYS}
    except (OSError, ValueError, TypeError, KeyError, EOFError, *_CORRUPT) as error:
        raise DataError(
            f"expected {path} to be an .npz file with the arrays {', '.join(_MNIST_ARRAYS)}, "
            f"and reading it failed: {error}. Delete or replace it."
        ) from error
    for name, shape in _MNIST_ARRAYS.items():
        got = arrays[name]
        if got.shape != shape or got.dtype.kind not in "iu":
            raise DataError(
                f"expected integers {name} of shape {shape} in {path}, received {got.dtype} of "
                f"shape {got.shape}. Delete or replace the file."
            )
        largest = 255 if name.startswith("x") else 9
        if got.min() < 0 or got.max() > largest:
            raise DataError(
                f"expected integers from 0 to {largest} as {name} in {path}, received some from "
                f"{got.min()} to {got.max()}. Delete or replace the file."
            )
    for name, expected in _MNIST_ARRAYS_SHA256.items():
        content = np.ascontiguousarray(arrays[name], np.uint8).tobytes()
        _require_checksum(path, f"MNIST's {name}", content, expected)
    return arrays
