"""The protocol in NumPy's and SciPy's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special

from deq_init import draws, families
from deq_init.errors import missing_framework

_CHUNK = 1 << 15


def resolve_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the NumPy dtype, one of the four floating ones.

    Raises
    ------
    DTypeError
        For any other.
    MissingFrameworkError
        For "bfloat16" if ml_dtypes, which gives it to NumPy, is not installed.
    """
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise missing_framework("ml_dtypes", "jax") from None
        return np.dtype(ml_dtypes.bfloat16)
    try:
        resolved = np.dtype(dtype)
    except TypeError:
        families.compute_dtype(dtype)
        raise
    families.compute_dtype(resolved.name)
    return resolved


class Primitives:
    """NumPy arrays; words are ``uint32``."""

    def counters(self, start: int, count: int) -> tuple[Any, Any]:
        """High and low words of start, ..., start + count - 1."""
        c = np.arange(start, start + count, dtype=np.uint64)
        return (c >> np.uint64(32)).astype(np.uint32), c.astype(np.uint32)

    def wrap(self, words: Any) -> Any:
        """Return the words: uint32 wraps by itself."""
        return words

    def rotate_left(self, words: Any, bits: int) -> Any:
        """Words rotated left."""
        return (words << bits) | (words >> (32 - bits))

    def shift_right(self, words: Any, bits: int) -> Any:
        """Words shifted right."""
        return words >> bits

    def to_float64(self, words: Any) -> Any:
        """Words as float64."""
        return words.astype(np.float64)

    def erfinv(self, x: Any) -> Any:
        """Inverse error function."""
        return scipy.special.erfinv(x)

    def cast(self, x: Any, dtype: str) -> Any:
        """The array in another dtype."""
        return x.astype(dtype)

    def transpose(self, x: Any) -> Any:
        """Transpose."""
        return x.T

    def tril(self, x: Any, k: int = 0) -> Any:
        """Lower triangle."""
        return np.tril(x, k)

    def triu(self, x: Any, k: int = 0) -> Any:
        """Upper triangle."""
        return np.triu(x, k)

    def diagonal(self, x: Any) -> Any:
        """Main diagonal."""
        return np.diagonal(x)

    def eye_like(self, x: Any, rows: int, columns: int) -> Any:
        """Ones on the diagonal."""
        return np.eye(rows, columns, dtype=x.dtype)

    def sqrt(self, x: Any) -> Any:
        """Square root."""
        return np.sqrt(x)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Choice by entry."""
        return np.where(condition, x, y)

    def column_sums(self, x: Any) -> Any:
        """Sum over the rows."""
        return np.sum(x, axis=0)

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Arrays joined."""
        return np.concatenate(arrays, axis)

    def solve_upper(self, a: Any, b: Any) -> Any:
        """Triangular solve, in NumPy's BLAS: alternating with SciPy's costs more than it saves."""
        return np.linalg.solve(a, b)

    def spectral_norm(self, w: Any, symmetric: bool) -> Any:
        """Largest singular value, by LAPACK in float64."""
        if symmetric:
            return self.spectral_radius(w, symmetric)
        return scipy.linalg.svdvals(w.astype(np.float64)).max().astype(w.dtype)

    def spectral_radius(self, w: Any, symmetric: bool) -> Any:
        """Largest modulus of an eigenvalue, by LAPACK in float64."""
        solve = scipy.linalg.eigvalsh if symmetric else scipy.linalg.eigvals
        return np.abs(solve(w.astype(np.float64))).max().astype(w.dtype)


xp = Primitives()


def normals(seed: Any, rows: int, columns: int, dtype: str) -> np.ndarray:
    """Return standard normals of shape (rows, columns), see :mod:`deq_init.draws`.

    Parameters
    ----------
    seed : int, None or numpy.random.Generator
        An integer means the same normals in every backend; a generator, its own.
    rows, columns : int
        Shape.
    dtype : {"float32", "float64"}
        Dtype.
    """
    if isinstance(seed, np.random.Generator):
        return seed.standard_normal((rows, columns), dtype=np.dtype(dtype).type)
    key = draws.key_from_seed(seed)
    out = np.empty(rows * columns, dtype)
    for start in range(0, out.size, _CHUNK):
        stop = min(start + _CHUNK, out.size)
        out[start:stop] = draws.normals(xp, key, start, stop - start, dtype)
    return out.reshape(rows, columns)
