"""Checkpoints that every backend reads: a flat dictionary of NumPy arrays in a safetensors file.

``save(path, model.to_arrays())`` writes one, ``model.from_arrays(load(path))`` reads it, in the
same framework or another.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deq_init.errors import ModelError, OutputError, require

# By safetensors's names; bfloat16 is none of NumPy's.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def save(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[np.floating]]) -> None:
    """Write a checkpoint; a file that is there is replaced, and kept if writing fails.

    Parameters
    ----------
    path : path
        The file, by convention ``*.safetensors``. Of a symbolic link, what it points to.
    arrays : mapping of str to array
        What a model's ``to_arrays`` returns: real numbers, in NumPy's dtypes of up to 64 bits or
        in ml_dtypes's bfloat16.

    Raises
    ------
    ModelError
        If they are not a mapping of names to such arrays.
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
    if not isinstance(arrays, Mapping):
        raise ModelError(
            f"expected a mapping of names to arrays, received {type(arrays).__name__}. Pass "
            "model.to_arrays()."
        )
    data = numpy_files.save({_name(name): _array(name, value) for name, value in arrays.items()})
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        if target.exists() and not target.is_file():
            raise OSError("it is no regular file")
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(partial.open("xb"))  # never one that is there, or a link
            stack.callback(partial.unlink, missing_ok=True)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, partial)
            file.close()
            partial.replace(target)
    except OSError as error:
        raise OutputError(
            f"expected to write a checkpoint to {target}: {error}. Choose another path."
        ) from error


def load(path: str | os.PathLike[str]) -> dict[str, NDArray[np.floating]]:
    """Return the arrays of a checkpoint, by their names.

    bfloat16 comes in ml_dtypes's dtype where that package is installed, as with JAX and TensorFlow,
    and as float32 elsewhere, which holds it exactly.

    Raises
    ------
    ModelError
        If the file cannot be read, is no safetensors file, or has numbers of which NumPy has no
        dtype, such as float8.
    MissingFrameworkError
        If safetensors is not installed.
    """
    deserialize = require("safetensors", "checkpoints").deserialize
    try:
        found = deserialize(Path(path).read_bytes())
    except Exception as error:  # safetensors raises an exception of its own, that it does not name
        raise ModelError(
            f"expected a checkpoint in {path}, and reading it failed: {error}. Write one with "
            "deq_init.checkpoint.save(path, model.to_arrays())."
        ) from error
    return {name: _loaded(path, name, **value) for name, value in found}


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise ModelError(
            f"expected the names of arrays as strings, received {name!r}. Pass e.g. {{'W': array}}."
        )
    return name


def _array(name: str, value: Any) -> NDArray[Any]:
    """Return an array to write, in C order and with its shape, which may be ()."""
    try:
        array = np.asarray(value, order="C")
    except Exception as error:  # frameworks raise their own, for a tensor with a gradient say
        raise ModelError(
            f"expected an array as {name!r}, and converting {type(value).__name__} to NumPy "
            f"failed: {error}. Pass NumPy arrays."
        ) from error
    if array.dtype.name != "bfloat16" and array.dtype.newbyteorder("=").str[1:] not in {
        "f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1",
    }:  # fmt: skip
        raise ModelError(
            f"expected an array of real numbers of up to 64 bits as {name!r}, received "
            f"{array.dtype} of shape {array.shape}. Convert it, e.g. to float32."
        )
    return array


def _loaded(
    path: Any, name: str, dtype: str, shape: list[int], data: bytes | bytearray
) -> NDArray[Any]:
    if dtype in _DTYPES:
        flat = np.frombuffer(data, _DTYPES[dtype])
        flat = flat.astype(flat.dtype.newbyteorder("="))
    elif dtype == "BF16":
        bits = np.frombuffer(data, "<u2").astype(np.uint16)
        try:
            flat = bits.view(importlib.import_module("ml_dtypes").bfloat16)
        except ModuleNotFoundError:
            flat = (bits.astype(np.uint32) << 16).view(np.float32)
    else:
        raise ModelError(
            f"expected numbers of a dtype of NumPy's or bfloat16 in {path}, received {dtype} as "
            f"{name!r}. Convert it to float32 in the framework that wrote it."
        )
    return flat.reshape(shape)
