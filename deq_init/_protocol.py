"""What a backend supplies, in its own words: nothing that the core does not call.

Arrays also need the operators ``+ - * / @``, slicing and ``.shape``, which every framework has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Array = Any
"""A NumPy, PyTorch, JAX or TensorFlow array."""


class WordPrimitives(Protocol):
    """Arithmetic on arrays of 32-bit words, for :mod:`deq_init.draws`.

    Words live in ``uint32`` arrays, or in wider ones that ``wrap`` cuts back to 32 bits.
    """

    def counters(self, rows: range, columns: range, stride: int) -> tuple[Array, Array]:
        """High and low words of the 64-bit integers i · stride + j, shape (rows, columns)."""

    def wrap(self, words: Array) -> Array:
        """Words modulo 2**32."""

    def rotate_left(self, words: Array, bits: int) -> Array:
        """Words rotated left by ``bits``; the argument may be written to."""

    def shift_right(self, words: Array, bits: int) -> Array:
        """Words shifted right by ``bits``, zeros shifted in."""

    def to_float64(self, words: Array) -> Array:
        """Words as float64 values."""

    def normal_quantile(self, u: Array, bits: int) -> Array:
        """√2 erfinv(u) of float64 numbers with so many significant bits; ``u`` is used up."""

    def cast(self, x: Array, dtype: str) -> Array:
        """The array in the dtype of that name."""


class MatrixPrimitives(Protocol):
    """Linear algebra on float32 or float64 arrays, for :mod:`deq_init.families`.

    A backend whose arrays can be written to says so with ``mutable``, and supplies
    :class:`MutablePrimitives`.
    """

    mutable: bool
    lapack_up_to: int
    """Columns up to which LAPACK's product of reflections is faster than the core's."""

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        """The array in another shape, rows first."""

    def transpose(self, x: Array, axes: tuple[int, ...] | None = None) -> Array:
        """Transpose of a matrix, or the array with its axes in this order."""

    def tril(self, x: Array) -> Array:
        """Lower triangle, with the diagonal; ``x`` may be written to."""

    def triu(self, x: Array, k: int = 0) -> Array:
        """Upper triangle, from diagonal ``k`` up; ``x`` may be written to."""

    def diagonal(self, x: Array) -> Array:
        """Main diagonal of a matrix, shape (min(m, n),), which may be a view."""

    def eye_like(self, x: Array, rows: int, columns: int) -> Array:
        """Ones on the main diagonal, zeros elsewhere; dtype and device of ``x``."""

    def add_diagonal(self, x: Array, d: Array | float) -> Array:
        """``x`` with d added to its main diagonal; ``x`` may be written to."""

    def householder_product(self, v: Array, tau: Array) -> Array:
        """Columns of (I - tau_0 v_0 v_0ᵀ) ... (I - tau_b v_b v_bᵀ) E, as LAPACK's orgqr.

        ``v`` has ones on its diagonal and zeros above, which are taken for granted.
        """

    def sign(self, x: Array) -> Array:
        """Sign, entry by entry."""

    def copysign(self, x: Array, y: Array) -> Array:
        """Positive ``x`` with the signs of ``y``, which has no zeros."""

    def column_lengths(self, x: Array) -> Array:
        """Euclidean length of each column, to a few units in the last place; shape (n,)."""

    def product(self, x: Array) -> Array:
        """Product of the entries of a vector."""

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """Arrays joined along an axis."""

    def solve_upper(self, a: Array, b: Array) -> Array:
        """Solution x of a x = b for an upper triangular a."""

    def rounded(self, x: Array, dtype: str) -> Array:
        """The array rounded to a half-precision dtype, in its own."""

    def normalized(self, w: Array) -> tuple[Array, Any]:
        """w / p and p, a power of two near the largest modulus of an entry, or 1.

        Zeros and NaN if not all entries are finite: LAPACK does not return on each such matrix.
        """

    def symmetric_norm(self, w: Array) -> Array:
        """Largest modulus of an eigenvalue of a symmetric matrix, a scalar."""

    def spectral_norm(self, w: Array) -> Array:
        """Largest singular value of a matrix, a scalar."""

    def spectral_radius(self, w: Array) -> Array:
        """Largest modulus of an eigenvalue of a square matrix, a scalar."""


class MutablePrimitives(MatrixPrimitives, Protocol):
    """Linear algebra on arrays that can be written to, for the families' in-place paths."""

    def empty_like(self, x: Array, rows: int, columns: int) -> Array:
        """An array with any entries; dtype and device of ``x``."""

    def copy(self, x: Array) -> Array:
        """A copy, rows first."""

    def is_finite(self, x: Array) -> bool:
        """Whether all entries are finite."""

    def scale_diagonal(self, x: Array, factor: float) -> None:
        """Multiply the main diagonal of x, in place."""

    def product_into(self, c: Array, a: Array, b: Array) -> None:
        """Set c to a @ b, in place."""

    def add_product(self, c: Array, a: Array, b: Array) -> None:
        """Add a @ b to c, in place."""


class LoopPrimitives(Protocol):
    """Loops over batches of vectors, for :mod:`deq_init.fixed_point` and its gradients.

    Indices and conditions are Python's own where the framework is eager, arrays where it traces.
    """

    def while_loop(
        self, cond: Callable[[Any], Any], body: Callable[[Any], Any], state: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        """The state after ``body`` was applied for as long as ``cond`` holds."""

    def fori_loop(
        self, start: Any, stop: Any, body: Callable[[Any, Any], Any], state: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        """The state after ``body(i, state)`` for each i."""

    def integer(self, value: int) -> Any:
        """An index."""

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        """Zeros of the dtype and device of ``like``."""

    def eye(self, size: int, like: Array) -> Array:
        """The identity, of the dtype and device of ``like``."""

    def integers(self, x: Array) -> Array:
        """Booleans as 0 and 1."""

    def transpose(self, x: Array) -> Array:
        """The last two axes swapped."""

    def put(self, x: Array, index: Any, value: Array) -> Array:
        """``x`` with ``x[:, index]`` set, written to if it can be."""

    def take(self, x: Array, index: Any) -> Array:
        """``x[:, index]``."""

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """Arrays joined along an axis."""

    def where(self, condition: Array, x: Array | float, y: Array | float) -> Array:
        """``x`` where the condition holds, ``y`` elsewhere."""

    def select(self, condition: Array, x: Array, y: Array) -> Array:
        """Rows of ``x`` where the condition holds, of ``y`` elsewhere; it may be ``x`` itself."""

    def any(self, x: Array) -> Any:
        """Whether any entry is true."""

    def isfinite(self, x: Array) -> Array:
        """Whether each entry is finite."""

    def lengths(self, x: Array) -> Array:
        """Euclidean lengths along the last axis."""

    def max(self, x: Array, axis: int) -> Array:
        """Largest entry along an axis."""

    def sqrt(self, x: Array) -> Array:
        """Square root."""

    def solve_positive(self, a: Array, b: Array, least: float) -> Array:
        """a⁻¹ b of many small symmetric matrices, for vectors b.

        Their eigenvalues are above ``least``, to which pivots are raised that rounding makes
        negative; others below it may be, too.
        """

    def minimum(self, x: Any, y: Any) -> Any:
        """The smaller of two, entry by entry."""

    def maximum(self, x: Any, y: Any) -> Any:
        """The larger of two, entry by entry."""


class IterationPrimitives(LoopPrimitives, Protocol):
    """What bases of many vectors take besides, for :mod:`deq_init.spectra`."""

    def leading(self, x: Array, count: Any) -> Array:
        """``x[:, :count]``; or all of x, whose entries after it are zero, if count is traced."""

    def at_length(self, count: Any, longest: int, f: Callable[[int], Any]) -> Any:
        """``f(k)`` for k = count, or for the next of a few lengths up to the longest."""

    def put_leading(self, x: Array, part: Array) -> Array:
        """``x`` with ``part`` in place of the entries that ``leading`` gave of it."""

    def sum(self, x: Array, axis: int) -> Array:
        """Sum along an axis."""

    def largest(self, x: Array) -> Array:
        """Largest modulus of an entry, a scalar array."""

    def eigh(self, x: Array) -> tuple[Array, Array]:
        """Eigenvalues, rising, and eigenvectors of symmetric matrices."""

    def eig(self, x: Array) -> tuple[Array, Array]:
        """Moduli of the eigenvalues of matrices, and of the entries of the left eigenvectors.

        These are columns, and each one's product with the right eigenvector of length 1 is 1.
        Where there is no basis of eigenvectors, they are not finite, or huge.
        """
