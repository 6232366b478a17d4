"""Checkpoints that every backend reads: a flat dictionary of NumPy arrays in a safetensors file.

``save(path, model.to_arrays())`` writes one, ``model.from_arrays(load(path))`` reads it, in the
same framework or another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deq_init.errors import ModelError, OutputError, require


def save(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[np.floating]]) -> None:
    """Write a checkpoint; a file that is there is replaced, and kept if writing fails.

    Parameters
    ----------
    path : path
        The file, by convention ``*.safetensors``.
    arrays : mapping of str to array
        What a model's ``to_arrays`` returns.

    Raises
    ------
    OutputError
        If the file cannot be written.
    MissingFrameworkError
        If safetensors is not installed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/w.safetensors", {"W": np.eye(2)})
    ...     load(f"{folder}/w.safetensors")["W"].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    numpy_files = require("safetensors.numpy", "checkpoints")
    data = numpy_files.save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(
            f"expected to write a checkpoint to {target}: {error}. Choose another path."
        ) from error


def load(path: str | os.PathLike[str]) -> dict[str, NDArray[np.floating]]:
    """Return the arrays of a checkpoint, by their names.

    Raises
    ------
    ModelError
        If the file cannot be read, or is no safetensors file.
    MissingFrameworkError
        If safetensors is not installed.
    """
    numpy_files = require("safetensors.numpy", "checkpoints")
    try:
        return dict(numpy_files.load(Path(path).read_bytes()))
    except Exception as error:  # safetensors raises an exception of its own, that it does not name
        raise ModelError(
            f"expected a checkpoint in {path}, and reading it failed: {error}. Write one with "
            "deq_init.checkpoint.save(path, model.to_arrays())."
        ) from error
