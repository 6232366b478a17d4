"""One interface to every adapter: sample, rescale, and what is known of the layout."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch  # noqa: I001  before tensorflow, which keras may import
import jax
import keras
import ml_dtypes
import numpy as np

import deq_init.jax
import deq_init.keras
import deq_init.numpy
import deq_init.torch

KERAS_BACKEND = keras.backend.backend()
FAMILIES = ("random", "orthogonal", "goe", "antisymmetric")
SQUARE = ("goe", "antisymmetric")
HALF = ("float16", "bfloat16")
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


@dataclass(frozen=True)
class Backend:
    """sample(family, shape, seed, dtype, **scale) and rescale(array, **target), as NumPy arrays."""

    name: str
    layout: str
    sample: Callable
    rescale: Callable | None

    def map(self, array):
        """The matrix that acts as W z."""
        if self.layout == "out_in":
            return array.reshape(array.shape[0], -1)
        return array.reshape(-1, array.shape[-1]).T

    def shape(self, out, fan_in):
        return (out, fan_in) if self.layout == "out_in" else (fan_in, out)


def _numpy_dtype(dtype):
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


def _numpy_sample(family, shape, seed=0, dtype="float32", **scale):
    return getattr(deq_init.numpy, family)(shape, seed=seed, dtype=_numpy_dtype(dtype), **scale)


def _torch_array(tensor):
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


def _torch_sample(family, shape, seed=0, dtype="float32", **scale):
    w = torch.full(tuple(shape), torch.nan).to(getattr(torch, dtype))
    out = getattr(deq_init.torch, family + "_")(w, seed=seed, **scale)
    assert out is w
    return _torch_array(w)


def _torch_rescale(array, **target):
    return _torch_array(deq_init.torch.rescale_(torch.from_numpy(array.copy()), **target))


def _x64(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def _jax_sample(family, shape, seed=0, dtype="float32", **scale):
    init = getattr(deq_init.jax, family)(**scale)
    with _x64(dtype):
        return np.asarray(init(jax.random.key(seed), tuple(shape), jax.numpy.dtype(dtype)))


def _jax_rescale(array, **target):
    with _x64(array.dtype.name):
        return np.asarray(deq_init.jax.rescale(jax.numpy.asarray(array), **target))


KERAS_CLASSES = {
    "random": deq_init.keras.Random,
    "orthogonal": deq_init.keras.Orthogonal,
    "goe": deq_init.keras.GOE,
    "antisymmetric": deq_init.keras.Antisymmetric,
}


def _keras_sample(family, shape, seed=0, dtype="float32", **scale):
    init = KERAS_CLASSES[family](seed=seed, **scale)
    with _x64(dtype) if KERAS_BACKEND == "jax" else contextlib.nullcontext():
        out = init(tuple(shape), dtype=dtype)
        assert keras.backend.standardize_dtype(out.dtype) == dtype
        return np.asarray(keras.ops.convert_to_numpy(out)).astype(_numpy_dtype(dtype))


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("numpy", "out_in", _numpy_sample, deq_init.numpy.rescale),
        Backend("torch", "out_in", _torch_sample, _torch_rescale),
        Backend("jax", "in_out", _jax_sample, _jax_rescale),
        Backend(f"keras-{KERAS_BACKEND}", "in_out", _keras_sample, None),
    )
}
