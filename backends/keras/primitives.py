"""The protocol in the words of ``keras.ops``: for TensorFlow and JAX, traced or on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class Primitives:
    """Tensors of the Keras backend in use, traced ones included."""

    mutable = False
    lapack_up_to = 0

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """Another shape."""
        return ops.reshape(x, shape)

    def transpose(self, x: Any, axes: tuple[int, ...] | None = None) -> Any:
        """Transpose."""
        return ops.transpose(x, axes)

    def tril(self, x: Any) -> Any:
        """Lower triangle."""
        return ops.tril(x)

    def triu(self, x: Any, k: int = 0) -> Any:
        """Upper triangle."""
        return ops.triu(x, k)

    def diagonal(self, x: Any) -> Any:
        """Main diagonal."""
        return ops.diagonal(x)

    def eye_like(self, x: Any, rows: int, columns: int) -> Any:
        """Ones on the diagonal."""
        return ops.eye(rows, columns, dtype=x.dtype)

    def add_diagonal(self, x: Any, d: Any) -> Any:
        """A new array with d added to the diagonal."""
        return x + self.eye_like(x, x.shape[0], x.shape[1]) * d

    def householder_product(self, v: Any, tau: Any) -> Any:
        """Not called: arrays cannot be written to."""
        raise NotImplementedError

    def sign(self, x: Any) -> Any:
        """Sign, entry by entry."""
        return ops.sign(x)

    def copysign(self, x: Any, y: Any) -> Any:
        """Lengths with the signs of y."""
        return ops.where(y < 0, -x, x)

    def column_lengths(self, x: Any) -> Any:
        """Euclidean length of each column."""
        return _column_lengths(x)

    def product(self, x: Any) -> Any:
        """Product of the entries."""
        return ops.prod(x)

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Tensors joined."""
        return ops.concatenate(arrays, axis)

    def solve_upper(self, a: Any, b: Any) -> Any:
        """Triangular solve."""
        return ops.solve_triangular(a, b)

    def rounded(self, x: Any, dtype: str) -> Any:
        """Values of a half-precision dtype."""
        return ops.cast(ops.cast(x, dtype), x.dtype)

    def normalized(self, w: Any) -> tuple[Any, Any]:
        """The matrix over a power of two, and that."""
        largest = ops.max(ops.abs(w))
        unit = 2.0 ** ops.floor(ops.log2(largest))
        unit = ops.where(unit > 0, unit, ops.ones_like(unit))
        finite = ops.isfinite(largest)
        w = ops.where(finite, w / unit, ops.zeros_like(w))
        return w, ops.where(finite, unit, ops.full_like(unit, float("nan")))

    def symmetric_norm(self, w: Any) -> Any:
        """Largest modulus of an eigenvalue of a symmetric matrix, in the widest dtype."""
        return ops.cast(ops.max(ops.abs(ops.eigh(_widest(w))[0])), w.dtype)

    def spectral_norm(self, w: Any) -> Any:
        """Largest singular value, by the full decomposition in the widest dtype."""
        return ops.cast(ops.max(ops.svd(_widest(w), compute_uv=False)), w.dtype)

    def spectral_radius(self, w: Any) -> Any:
        """Largest modulus of an eigenvalue, by the full decomposition in the widest dtype."""
        return ops.cast(ops.max(ops.abs(ops.eig(_widest(w))[0])), w.dtype)


def _column_lengths(x: Any) -> Any:
    """Return column lengths, summed in float64, or by eights where that may not be there."""
    if keras.backend.backend() != "jax":
        return ops.cast(ops.sqrt(ops.sum(ops.square(_widest(x)), axis=0)), x.dtype)
    squares = x * x
    while squares.shape[0] > 1:
        padded = ops.pad(squares, ((0, -squares.shape[0] % 8), (0, 0)))
        squares = ops.sum(ops.reshape(padded, (-1, 8, x.shape[1])), axis=1)
    return ops.sqrt(squares[0])


def _widest(w: Any) -> Any:
    """Return the matrix in float64, except on JAX, which may not have it."""
    return w if keras.backend.backend() == "jax" else ops.cast(w, "float64")


xp = Primitives()
