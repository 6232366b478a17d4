r"""The families of random matrices, as maps from standard normals g to a matrix W.

============= =========================================================== ===========  ============
family        law of a square n x n matrix at gain s (the paper's         norm edge    radius edge
              :math:`\sqrt V`)
============= =========================================================== ===========  ============
random        entries i.i.d. normal, variance s²/n                        2 s          s
orthogonal    s Q, Q Haar-distributed on O(n)                             s            s
goe           symmetric normal, variance s²/n, on the diagonal 2 s²/n     2 s          2 s
antisymmetric entries above the diagonal normal, variance s²/n, W = -Wᵀ   2 s          2 s
============= =========================================================== ===========  ============

The edges are limits as n grows. The first three are the paper's. The spectrum of an antisymmetric
matrix is imaginary, so that I - W is never singular.

References
----------
Agarwala & Schoenholz, Deep equilibrium networks are sensitive to initialization statistics,
ICML 2022, arXiv:2207.09432. Stewart, The efficient generation of random orthogonal matrices,
SIAM J. Numer. Anal. 17 (1980). Mezzadri, How to generate random matrices from the classical
compact groups, Notices AMS 54 (2007), arXiv:math-ph/0609050.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from deq_init._protocol import Array, MatrixPrimitives
from deq_init.errors import FamilyError

_PANEL = 128  # reflections accumulated at once where arrays can be written to
_ROWS = 256  # rows of a symmetric matrix drawn at once there


@dataclass(frozen=True)
class Family:
    """A family of random matrices.

    Attributes
    ----------
    name : str
        Its name in the paper.
    symmetry : int
        1 if W = Wᵀ, -1 if W = -Wᵀ, 0 if neither. The first two need square matrices, and their
        spectral norm and radius are equal.
    isometric : bool
        Whether its matrices are multiples of (semi-)orthogonal ones.
    radius_edge : float
        Limit, as a square matrix grows, of the spectral radius at gain 1.
    transform : callable
        ``transform(xp, g)`` maps normals of shape (m, n) to the matrix before scaling. It reads
        ``g`` by slices of rows and columns, each entry once at most: see :class:`Normals`.
    """

    name: str
    symmetry: int
    isometric: bool
    radius_edge: float
    transform: Callable[..., Array]

    def unit(self, fan_in: int) -> float:
        """Return the factor that gives the transformed normals gain 1."""
        return 1.0 if self.isometric else fan_in**-0.5


class Normals(Protocol):
    """A field of standard normals: an array, or an object that draws what it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __getitem__(self, region: tuple[slice, slice]) -> Array:
        """Return the normals of these rows and columns; the caller may write to the result."""


@runtime_checkable
class Entrywise(Normals, Protocol):
    """A field that draws any entry by itself: symmetric matrices then need no transpose."""

    def mirrored(self) -> tuple[Array, Array, Array]:
        """Return g[min(i, j), max(i, j)] for each entry of the matrix, and the arrays i and j."""


def random(xp: MatrixPrimitives, g: Normals) -> Array:
    """Return the normals themselves: entries i.i.d. N(0, 1). Shape (m, n) -> (m, n)."""
    return g[:, :]


def goe(xp: MatrixPrimitives, g: Normals) -> Array:
    r"""Return the symmetric matrix of the upper triangle of g, its diagonal times :math:`\sqrt2`.

    Entry (i, j) is ``g[min(i, j), max(i, j)]``: bit-exactly symmetric. Entries below the diagonal
    of ``g`` do not matter. Shape (n, n) -> (n, n).
    """
    return _from_upper(xp, g, 1, math.sqrt(2))


def antisymmetric(xp: MatrixPrimitives, g: Normals) -> Array:
    """Return the antisymmetric matrix of the part of g above the diagonal.

    Entry (i, j) is ``g[i, j]`` above the diagonal, ``-g[j, i]`` below it and zero on it. Shape
    (n, n) -> (n, n).
    """
    return _from_upper(xp, g, -1, 0.0)


def _from_upper(xp: MatrixPrimitives, g: Normals, symmetry: int, diagonal: float) -> Array:
    """Return U + D + symmetry · Uᵀ: U is g above its diagonal, D is ``diagonal`` times that."""

    def square(block: Array) -> Array:
        above = xp.triu(block, 1)
        return above + xp.transpose(above) * symmetry + xp.triu(xp.tril(block)) * diagonal

    if isinstance(g, Entrywise):
        entries, rows, columns = g.mirrored()
        off_diagonal = xp.where(rows < columns, 1.0, float(symmetry))
        return entries * xp.where(rows == columns, diagonal, off_diagonal)
    if not xp.mutable:
        return square(g[:, :])
    n = g.shape[0]
    w = None
    for start in range(0, n, _ROWS):
        stop = min(start + _ROWS, n)
        rows = g[start:stop, start:]
        if w is None:
            w = xp.empty_like(rows, n, n)
        w[start:stop, stop:] = rows[:, stop - start :]
        w[stop:, start:stop] = xp.transpose(rows[:, stop - start :]) * symmetry
        w[start:stop, start:stop] = square(rows[:, : stop - start])
    return w


def orthogonal(xp: MatrixPrimitives, g: Normals, determinant: int | None = None) -> Array:
    r"""Return the Haar-distributed (semi-)orthogonal matrix whose Householder vectors g holds.

    For m >= n, column k of ``g`` from the diagonal down is a normal vector :math:`x_k`. With
    :math:`s_k` the sign of its first entry (+1 for zero) and :math:`H_k` the reflection that maps
    :math:`x_k` to a multiple of :math:`e_k`,

    .. math:: Q = H_0 H_1 \cdots H_{n-1}\, \mathrm{diag}(-s_0, \dots, -s_{n-1})\, E,

    so that column k is :math:`H_0 \cdots H_{k-1}` applied to :math:`x_k / |x_k|`. For m < n it is
    the transpose of the map of the transpose. Half the normals of a square ``g`` are used. For
    m = n the determinant is :math:`\prod_k s_k`.

    The product is accumulated backward over panels of reflections in compact WY form,
    :math:`I - V T V^T` with :math:`T^{-1} + T^{-T} = V^T V`, where nearly all work is matrix
    products: about 4/3 n³ flops for a square matrix. The diagonal of :math:`V^T V` is summed more
    accurately than a matrix product would: it decides the orthogonality error, which in float32
    is below 1e-6 instead of 2.5e-6 at n = 2048 (NumPy, PyTorch).

    Parameters
    ----------
    xp : MatrixPrimitives
        The backend's linear algebra.
    g : array or Normals, shape (m, n), float32 or float64
        Standard normals; an array that can be written to is used up.
    determinant : {1, -1}, optional
        For square matrices: the last column takes the sign that gives this determinant, which
        makes the law Haar on that component of O(n).

    Returns
    -------
    array, shape (m, n)
        Orthonormal columns for m >= n, orthonormal rows for m <= n.

    References
    ----------
    Stewart (1980), section 3; Mezzadri (2007), section 5; compact WY: Schreiber & Van Loan,
    SIAM J. Sci. Stat. Comput. 10 (1989).
    """
    m, n = g.shape
    if m < n:
        return xp.transpose(orthogonal(xp, Transposed(xp, g)))
    accumulate = _accumulate_in_place if xp.mutable else _accumulate
    q, columns_sign = accumulate(xp, g)
    if determinant is not None:
        # (-1)**n times the product of all signs is the determinant of Q as it stands.
        flip = xp.product(columns_sign) * (determinant * (-1) ** n)
        columns_sign = xp.concatenate([columns_sign[:-1], columns_sign[-1:] * flip], 0)
    q *= columns_sign
    return q


@dataclass(frozen=True)
class Transposed:
    """The transpose of a field of normals."""

    xp: MatrixPrimitives
    g: Normals

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return tuple(self.g.shape)[::-1]

    def __getitem__(self, region: tuple[slice, slice]) -> Array:
        """Return the normals of these rows and columns."""
        rows, columns = region
        return self.xp.transpose(self.g[columns, rows])


def _accumulate(xp: MatrixPrimitives, g: Normals) -> tuple[Array, Array]:
    """Return H_0 ... H_{n-1} E and the signs of its columns, without writing to arrays."""
    m, n = g.shape
    if n <= xp.lapack_up_to:
        _, d, length, x, sign = _reflections(xp, g[:, :])
        return xp.householder_product(x / d, -d * sign / length), sign
    panel = max(128, math.ceil(n / 4))
    q: Array = None
    signs: list[Array] = []
    for start in reversed(range(0, n, panel)):
        stop = min(start + panel, n)
        width = stop - start
        v, inverse_t, sign = _panel(xp, g[start:, start:stop])
        signs.insert(0, sign)
        right = xp.transpose(v[:width])
        result = xp.eye_like(v, m - start, width)
        if q is not None:
            right = xp.concatenate([right, xp.transpose(v[width:]) @ q], 1)
            above = xp.eye_like(v, width, q.shape[1]) * 0
            result = xp.concatenate([result, xp.concatenate([above, q], 0)], 1)
        q = result - v @ xp.solve_upper(inverse_t, right)
    return q, xp.concatenate(signs, 0)


def _accumulate_in_place(xp: MatrixPrimitives, g: Normals) -> tuple[Array, Array]:
    """Return what :func:`_accumulate` does; beside the result, it needs a few panels of memory."""
    m, n = g.shape
    if n <= xp.lapack_up_to:
        _, d, length, x, sign = _reflections(xp, g[:, :])
        return xp.householder_product(x / d, -d * sign / length), sign
    q: Array = None
    signs: list[Array] = []
    for start in reversed(range(0, n, _PANEL)):
        stop = min(start + _PANEL, n)
        width = stop - start
        v, inverse_t, sign = _panel(xp, g[start:, start:stop])
        signs.insert(0, sign)
        if q is None:
            q = xp.empty_like(v, m, n)
        tv = xp.solve_upper(inverse_t, -xp.eye_like(v, width, width)) @ xp.transpose(v)
        q[start:, start:stop] = xp.add_diagonal(v @ tv[:, :width], 1.0)
        if stop < n:
            w = tv[:, width:] @ q[stop:, stop:]
            q[start:stop, stop:] = v[:width] @ w
            xp.add_product(q[stop:, stop:], v[width:], w)
    return q, xp.concatenate(signs, 0)


def _panel(xp: MatrixPrimitives, x: Array) -> tuple[Array, Array, Array]:
    """Return the reflections of one panel of normals x, shape (m, b).

    Returns
    -------
    v : array, shape (m, b)
        Column k is zero above row k and has squared length 2: H_k = I - v_k v_kᵀ.
    inverse_t : array, shape (b, b)
        Inverse of the upper triangular T with H_0 ... H_{b-1} = I - V T Vᵀ.
    columns_sign : array, shape (b,)
        -s_k.
    """
    first, d, length, x, columns_sign = _reflections(xp, x)
    v = xp.add_diagonal(x, d - first)
    v /= xp.sqrt(-length * d * columns_sign)
    gram = xp.triu(xp.transpose(v) @ v, 1)
    inverse_t = xp.add_diagonal(gram, xp.column_lengths(v) ** 2 / 2)
    return v, inverse_t, columns_sign


def _reflections(xp: MatrixPrimitives, x: Array) -> tuple[Array, ...]:
    """Return what both forms of a panel's reflections are made of, columns x of normals.

    Returns
    -------
    first, d, length : arrays, shape (b,)
        The first entry of each x_k; d = first + s_k |x_k|, which replaces it in the vector that
        H_k reflects along; and |x_k|. For x_k = 0, values that make it e_k.
    x : array, shape (m, b)
        The columns, zero above the diagonal.
    columns_sign : array, shape (b,)
        -s_k.
    """
    x = xp.tril(x)
    first = xp.diagonal(x)
    length = xp.column_lengths(x)
    columns_sign = xp.where(first < 0, 1.0, first * 0 - 1.0)
    empty = length == 0
    d = xp.where(empty, 1.0, first - columns_sign * length)
    length = xp.where(empty, 0.5, length)
    return first, d, length, x, columns_sign


FAMILIES = {
    family.name: family
    for family in (
        Family("random", 0, False, 1.0, random),
        Family("orthogonal", 0, True, 1.0, orthogonal),
        Family("goe", 1, False, 2.0, goe),
        Family("antisymmetric", -1, False, 2.0, antisymmetric),
    )
}
"""Every family by name."""

PAPER = ("random", "orthogonal", "goe")
"""The families of the paper."""


def get(name: str) -> Family:
    """Return the family of that name.

    Raises
    ------
    FamilyError
        If there is none.

    Examples
    --------
    >>> get("goe").radius_edge
    2.0
    """
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    close = difflib.get_close_matches(str(name).lower(), FAMILIES, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else "Use one of these names."
    raise FamilyError(
        f"expected a family out of {', '.join(map(repr, FAMILIES))}, received {name!r}. {hint}"
    )
