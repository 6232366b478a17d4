"""What a backend supplies, in its own words: nothing that the core does not call.

Arrays also need the operators ``+ - * / @``, slicing and ``.shape``, which every framework has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Array = Any
"""A NumPy, PyTorch, JAX or TensorFlow array."""


class WordPrimitives(Protocol):
    """Arithmetic on arrays of 32-bit words, for :mod:`deq_init.draws`.

    Words live in ``uint32`` arrays, or in wider ones that ``wrap`` cuts back to 32 bits.
    """

    def counters(self, start: int, count: int) -> tuple[Array, Array]:
        """High and low words of the 64-bit integers start, ..., start + count - 1."""

    def wrap(self, words: Array) -> Array:
        """Words modulo 2**32."""

    def rotate_left(self, words: Array, bits: int) -> Array:
        """Words rotated left by ``bits``; the argument need not be wrapped."""

    def shift_right(self, words: Array, bits: int) -> Array:
        """Words shifted right by ``bits``, zeros shifted in."""

    def to_float64(self, words: Array) -> Array:
        """Words as float64 values."""

    def erfinv(self, x: Array) -> Array:
        """Inverse error function of a float64 array."""

    def cast(self, x: Array, dtype: str) -> Array:
        """The array in the dtype of that name."""


class MatrixPrimitives(Protocol):
    """Linear algebra on float32 or float64 arrays, for :mod:`deq_init.families`."""

    def transpose(self, x: Array) -> Array:
        """Transpose of a matrix."""

    def tril(self, x: Array, k: int = 0) -> Array:
        """Lower triangle, from diagonal ``k`` down."""

    def triu(self, x: Array, k: int = 0) -> Array:
        """Upper triangle, from diagonal ``k`` up."""

    def diagonal(self, x: Array) -> Array:
        """Main diagonal of a matrix, shape (min(m, n),)."""

    def eye_like(self, x: Array, rows: int, columns: int) -> Array:
        """Ones on the main diagonal, zeros elsewhere; dtype and device of ``x``."""

    def sqrt(self, x: Array) -> Array:
        """Square root, entry by entry."""

    def where(self, condition: Array, x: Array | float, y: Array | float) -> Array:
        """``x`` where the condition holds, ``y`` elsewhere."""

    def column_sums(self, x: Array) -> Array:
        """Sum over the rows, shape (n,)."""

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """Arrays joined along an axis."""

    def solve_upper(self, a: Array, b: Array) -> Array:
        """Solution x of a x = b for an upper triangular a."""

    def spectral_norm(self, w: Array, symmetric: bool) -> Array:
        """Largest singular value of a matrix, a scalar."""

    def spectral_radius(self, w: Array, symmetric: bool) -> Array:
        """Largest modulus of an eigenvalue of a square matrix, a scalar."""
