"""The protocol in NumPy's and SciPy's words."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, eigsh, svds

from deq_init import draws, scale, spectra
from deq_init import plan as plans
from deq_init.errors import missing_framework
from deq_init.numpy import iteration

_PARALLEL = 1 << 18  # normals from which on threads pay
_ROWS = 256


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
        plans.compute_dtype(dtype)
        raise
    plans.compute_dtype(resolved.name)
    return resolved


class Primitives:
    """NumPy arrays; words are ``uint32``."""

    mutable = True
    lapack_up_to = 128  # SciPy's LAPACK and NumPy's products disturb each other's threads

    def counters(self, rows: range, columns: range, stride: int) -> tuple[Any, Any]:
        """High and low words of i · stride + j."""
        i = np.arange(rows.start, rows.stop, dtype=np.uint64)
        j = np.arange(columns.start, columns.stop, dtype=np.uint64)
        c: NDArray[np.uint64] = np.add.outer(i * np.uint64(stride), j)
        return (c >> np.uint64(32)).astype(np.uint32), c.astype(np.uint32)

    def wrap(self, words: Any) -> Any:
        """Return the words: uint32 wraps by itself."""
        return words

    def rotate_left(self, words: Any, bits: int) -> Any:
        """Words rotated left."""
        high = words >> (32 - bits)
        words <<= bits
        words |= high
        return words

    def shift_right(self, words: Any, bits: int) -> Any:
        """Words shifted right."""
        return words >> bits

    def to_float64(self, words: Any) -> Any:
        """Words as float64."""
        return words.astype(np.float64)

    def normal_quantile(self, u: Any, bits: int) -> Any:
        """Standard normals from uniforms on (-1, 1)."""
        if bits > 24:
            scipy.special.erfinv(u, out=u)
            u *= math.sqrt(2)
            return u
        # (u + 1) / 2 is exact then, and this function is twice as fast.
        u += 1
        u *= 0.5
        return scipy.special.ndtri(u, out=u)

    def cast(self, x: Any, dtype: str) -> Any:
        """The array in another dtype."""
        return x.astype(dtype)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """The array in another shape."""
        return x.reshape(shape)

    def transpose(self, x: Any, axes: tuple[int, ...] | None = None) -> Any:
        """Transpose."""
        return x.transpose(axes)

    def tril(self, x: Any) -> Any:
        """Lower triangle: only the rows up to the last column's change."""
        head = x[: x.shape[1]]
        head[...] = np.tril(head)
        return x

    def triu(self, x: Any, k: int = 0) -> Any:
        """Upper triangle."""
        return np.triu(x, k)

    def diagonal(self, x: Any) -> Any:
        """Main diagonal."""
        return np.diagonal(x)

    def eye_like(self, x: Any, rows: int, columns: int) -> Any:
        """Ones on the diagonal."""
        return np.eye(rows, columns, dtype=x.dtype)

    def empty_like(self, x: Any, rows: int, columns: int) -> Any:
        """Any entries."""
        return np.empty((rows, columns), dtype=x.dtype)

    def copy(self, x: Any) -> Any:
        """A copy, rows first."""
        return np.array(x, order="C")

    def scale_diagonal(self, x: Any, factor: float) -> None:
        """Multiply the diagonal, in place."""
        np.einsum("ii->i", x)[...] *= factor

    def product_into(self, c: Any, a: Any, b: Any) -> None:
        """Set to a @ b in place."""
        np.matmul(a, b, out=c)

    def add_product(self, c: Any, a: Any, b: Any) -> None:
        """Add a @ b in place, by rows that fit the cache: NumPy's product cannot add."""
        for start in range(0, len(c), _ROWS):
            c[start : start + _ROWS] += a[start : start + _ROWS] @ b

    def add_diagonal(self, x: Any, d: Any) -> Any:
        """Add to the diagonal, in place."""
        np.einsum("ii->i", x[: x.shape[1], : x.shape[0]])[...] += d
        return x

    def householder_product(self, v: Any, tau: Any) -> Any:
        """Orthonormal columns of a product of reflections, by LAPACK's orgqr."""
        (orgqr,) = scipy.linalg.get_lapack_funcs(("orgqr",), (v,))
        return np.ascontiguousarray(orgqr(np.asfortranarray(v), tau, lwork=_ROWS * len(tau))[0])

    def sign(self, x: Any) -> Any:
        """Sign, entry by entry."""
        return np.sign(x)

    def copysign(self, x: Any, y: Any) -> Any:
        """Lengths with the signs of y."""
        return np.copysign(x, y)

    def column_lengths(self, x: Any) -> Any:
        """Euclidean length of each column, summed in float64."""
        return np.sqrt(np.square(x, dtype=np.float64).sum(axis=0)).astype(x.dtype)

    def product(self, x: Any) -> Any:
        """Product of the entries."""
        return np.prod(x)

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Arrays joined."""
        return np.concatenate(arrays, axis)

    def solve_upper(self, a: Any, b: Any) -> Any:
        """Triangular solve, in NumPy's BLAS: alternating with SciPy's costs more than it saves."""
        return np.linalg.solve(a, b)

    def rounded(self, x: Any, dtype: str) -> Any:
        """Values of a half-precision dtype."""
        with np.errstate(over="ignore"):
            return x.astype(resolve_dtype(dtype)).astype(x.dtype)

    def is_finite(self, x: Any) -> bool:
        """Whether all entries are finite."""
        return bool(np.isfinite(x).all())

    def normalized(self, w: Any) -> tuple[Any, Any]:
        """The matrix over a power of two, and that."""
        unit = scale.power_of_two(float(max(w.max(), -w.min())))
        if math.isnan(unit):
            return np.zeros_like(w), unit
        return (w if unit == 1 else w / unit), unit

    def symmetric_norm(self, w: Any) -> Any:
        """Largest modulus of an eigenvalue of a symmetric matrix, by ARPACK or LAPACK."""
        if len(w) >= spectra.WORTHWHILE:
            with contextlib.suppress(ArpackError):
                return abs(eigsh(w, 1, return_eigenvectors=False, v0=_start(w)))[0]
        return np.abs(scipy.linalg.eigvalsh(w.astype(np.float64))).max().astype(w.dtype)

    def spectral_norm(self, w: Any) -> Any:
        """Largest singular value, by ARPACK or LAPACK."""
        if min(w.shape) >= spectra.WORTHWHILE:
            with contextlib.suppress(ArpackError):
                return svds(w, 1, return_singular_vectors=False, v0=_start(w))[0]
        return scipy.linalg.svdvals(w.astype(np.float64)).max().astype(w.dtype)

    def spectral_radius(self, w: Any) -> Any:
        """Largest modulus of an eigenvalue, by Arnoldi or LAPACK.

        ARPACK's restarted Arnoldi can settle on another eigenvalue, and calls it converged.
        """
        if len(w) >= spectra.RADIUS_WORTHWHILE:
            estimate = spectra.matrix_radius(iteration.xp, w, _start(w)[None])
            if estimate.converged[0]:
                return estimate.value[0]
        return np.abs(scipy.linalg.eigvals(w.astype(np.float64))).max().astype(w.dtype)


xp = Primitives()


def _start(w: Any) -> Any:
    """Return a normal vector: without one, SciPy would draw from a random state of its own."""
    return Portable((0, 0), (1, min(w.shape)), str(w.dtype))[:, :][0]


@dataclass(frozen=True)
class Portable:
    """The normals of a Threefry key, see :mod:`deq_init.draws`, drawn where they are asked for.

    Attributes
    ----------
    key : (int, int)
        Threefry key.
    shape : (int, int)
        Rows and columns.
    dtype : {"float32", "float64"}
        Dtype.
    """

    key: draws.Key
    shape: tuple[int, int]
    dtype: str

    def __getitem__(self, region: tuple[slice, slice]) -> NDArray[Any]:
        """Return the normals of these rows and columns, a new array."""
        rows, columns = (range(n)[part] for n, part in zip(self.shape, region, strict=True))
        out = np.empty((len(rows), len(columns)), self.dtype)
        height = max(1, _chunk(out.size) // max(1, len(columns)))
        parts = [rows[start : start + height] for start in range(0, len(rows), height)]

        def fill(part: range) -> None:
            out[part.start - rows.start : part.stop - rows.start] = self._draw(part, columns)

        _for_each(fill, parts, out.size)
        return out

    def trapezoid(self, lower: bool) -> NDArray[Any]:
        """Return a new array with half of the field's normals: see deq_init.families.Normals."""
        m, n = self.shape
        out = np.zeros(self.shape, self.dtype)
        chunk = _chunk(out.size // 2)
        parts, start = [], 0
        while start < m:
            # A part is as wide as its longest row.
            height = int((start**2 + 4 * chunk) ** 0.5 - start) // 2
            if start + height > n or not lower:
                height = chunk // max(1, n if lower else n - start)
            height = min(max(1, height), m - start)
            parts.append(range(start, start + height))
            start += height

        def fill(part: range) -> None:
            columns = range(min(part.stop, n)) if lower else range(min(part.start, n), n)
            out[part.start : part.stop, columns.start : columns.stop] = self._draw(part, columns)

        _for_each(fill, parts, out.size // 2)
        return out

    def _draw(self, rows: range, columns: range) -> NDArray[Any]:
        return draws.normals(xp, self.key, rows, columns, self.shape[1], self.dtype)


def _chunk(size: int) -> int:
    """Return how many normals to draw at once: few stay in the cache, many keep threads apart."""
    return 1 << 14 if size < _PARALLEL else 1 << 16


def _for_each(fill: Callable[[range], None], parts: Sequence[range], size: int) -> None:
    """Call ``fill`` on each part, from threads if there are ``size`` normals enough to draw."""
    if size < _PARALLEL:
        for part in parts:
            fill(part)
    else:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            list(pool.map(fill, parts))


@dataclass(frozen=True)
class Native:
    """A generator's own normals: each region is drawn when it is asked for."""

    generator: np.random.Generator
    shape: tuple[int, int]
    dtype: str

    def __getitem__(self, region: tuple[slice, slice]) -> NDArray[Any]:
        """Return new normals for these rows and columns."""
        size = [len(range(n)[part]) for n, part in zip(self.shape, region, strict=True)]
        return self.generator.standard_normal(size, dtype=np.dtype(self.dtype).type)


def normals(
    seed: Any, shape: tuple[int, int], dtype: str, index: tuple[int, ...] = ()
) -> Portable | Native:
    """Return standard normals of this shape.

    Parameters
    ----------
    seed : int, (int, int), None or numpy.random.Generator
        An integer (or its key) means the same normals in every backend; a generator, its own.
    shape : (int, int)
        Rows and columns.
    dtype : {"float32", "float64"}
        Dtype.
    index : tuple of int
        Which matrix's normals: its numbers are folded into the key. A generator just goes on.
    """
    if isinstance(seed, np.random.Generator):
        return Native(seed, shape, dtype)
    key = seed if isinstance(seed, tuple) else draws.key_from_seed(seed)
    return Portable(draws.block_key(key, index), shape, dtype)
