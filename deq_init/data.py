"""Data sets of the experiments: scikit-learn's digits, MNIST and WikiText.

The last two are looked for in the folder that the environment variable ``DEQ_INIT_DATA`` names,
then in the user's cache, and are downloaded to that cache last, with their checksums.
"""

from __future__ import annotations

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
_WIKITEXT_URL = "https://s3.amazonaws.com/research.metamind.io/wikitext"
_WIKITEXT_MD5 = {
    "2": "542ccefacc6c27f945fb54453812b3cd",
    "103": "9ddaacaf6af0710eda8c456decff7832",
}


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
        return int(self.y_train.max()) + 1


def digits(train: int = 1400, seed: int = 0) -> Split:
    """Return scikit-learn's handwritten digits, 64 features, 10 classes, shuffled and split.

    Parameters
    ----------
    train : int
        Samples for training; the rest of the 1797 is for testing.
    seed : int
        Of the shuffle.

    Returns
    -------
    Split
        Each feature has mean 0 and variance 1 over the training samples (0 where it is constant).

    Raises
    ------
    MissingFrameworkError
        If scikit-learn is not installed.
    """
    x, y = require("sklearn.datasets", "experiments").load_digits(return_X_y=True)
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
        If the file is damaged, or cannot be found or downloaded: it says where it looked.
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
    return _download("mnist.npz", "it", _MNIST_URL, _MNIST_SHA256, looked)


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
        If the file is no text, or cannot be found or downloaded: it says where it looked.
    MissingFrameworkError
        If it must be looked for in the cache or downloaded, and pooch is not installed.

    Notes
    -----
    In a folder, ``wikitext-2/train.txt`` or ``wikitext-2/wiki.train.tokens``, and so on.

    References
    ----------
    Merity, Xiong, Bradbury & Socher, "Pointer sentinel mixture models" (2016), arXiv 1609.07843.
    """
    if name not in _WIKITEXT_MD5 or split not in ("train", "valid", "test"):
        raise DataError(
            f"expected WikiText '2' or '103' and a split 'train', 'valid' or 'test', received "
            f"{name!r} and {split!r}. Pass e.g. '2' and 'train'."
        )
    looked: list[Path] = []
    for folder in _named_folder():
        looked += [folder / f"wikitext-{name}" / file for file in _wikitext_files(split)]
    for path in looked:
        if path.is_file():
            return _words(path, path.read_bytes())
    file = f"wikitext-{name}-v1.zip"
    url = f"{_WIKITEXT_URL}/{file}"
    wanted = f"wikitext-{name}/{split}.txt"
    archive = _download(file, wanted, url, f"md5:{_WIKITEXT_MD5[name]}", looked)
    try:
        with zipfile.ZipFile(archive) as zipped:
            text = zipped.read(f"wikitext-{name}/wiki.{split}.tokens")
    except (OSError, KeyError, EOFError, *_CORRUPT) as error:
        raise DataError(
            f"expected {archive} to hold wiki.{split}.tokens, and reading it failed: {error}. "
            "Delete the file, so that it is downloaded again."
        ) from error
    return _words(archive, text)


def _wikitext_files(split: str) -> tuple[str, str]:
    return f"{split}.txt", f"wiki.{split}.tokens"


def _words(path: Path, text: bytes) -> list[str]:
    try:
        lines = text.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected {path} to be text in UTF-8, and it is not: {error}. Delete or replace it."
        ) from error
    words = [word for line in lines for word in (*line.split(), "<eos>")]
    if all(word == "<eos>" for word in words):
        raise DataError(f"expected words in {path}, received none. Delete or replace it.")
    return words


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
    return arrays
