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
from typing import Any, Protocol, cast

from deq_init._protocol import Array, MatrixPrimitives, MutablePrimitives
from deq_init.errors import FamilyError

_PANEL = 128  # reflections accumulated at once where arrays can be written to
_TINY = 1e-18  # its square is a float32
_ROWS = 128  # rows of a symmetric matrix drawn at once there


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
        ``transform(xp, g, factor)`` maps normals of shape (m, n) to factor times the matrix of
        this family before scaling. It reads ``g`` by slices of rows and columns, each entry once
        at most: see :class:`Normals`.
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
    """A field of standard normals: an array, or an object that draws what it is asked for.

    Where it is faster to draw half of it at once than by regions, a method ``trapezoid(lower)``
    returns a new array of the field's shape with the normals below its diagonal, or above it, and
    on it; or None. Where arrays cannot be written to and any entry can be drawn by itself, a method
    ``mirrored(diagonal, below)`` returns g[min(i, j), max(i, j)] for each entry, times these
    numbers on and below the diagonal: symmetric matrices then need no transpose.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __getitem__(self, region: tuple[slice, slice]) -> Array:
        """Return the normals of these rows and columns; the caller may write to the result."""


def random(xp: MatrixPrimitives, g: Normals, factor: Any = 1.0) -> Array:
    """Return factor times the normals: entries i.i.d. N(0, 1). Shape (m, n) -> (m, n)."""
    w = g[:, :]
    w *= factor
    return w


def goe(xp: MatrixPrimitives, g: Normals, factor: Any = 1.0) -> Array:
    r"""Return factor times the symmetric matrix of g's upper triangle, its diagonal times sqrt 2.

    Entry (i, j) is ``g[min(i, j), max(i, j)]``: bit-exactly symmetric. Entries below the diagonal
    of ``g`` do not matter. Shape (n, n) -> (n, n).
    """
    return _from_upper(xp, g, 1, math.sqrt(2), factor)


def antisymmetric(xp: MatrixPrimitives, g: Normals, factor: Any = 1.0) -> Array:
    """Return factor times the antisymmetric matrix of the part of g above the diagonal.

    Entry (i, j) is ``g[i, j]`` above the diagonal, ``-g[j, i]`` below it and zero on it. Shape
    (n, n) -> (n, n).
    """
    return _from_upper(xp, g, -1, 0.0, factor)


def _from_upper(
    xp: MatrixPrimitives, g: Normals, symmetry: int, diagonal: float, factor: Any
) -> Array:
    """Return factor · (U + D + symmetry · Uᵀ): U above the diagonal of g, D a multiple of it."""

    def square(block: Array) -> Array:
        above = xp.triu(block, 1)
        return above + xp.transpose(above) * symmetry + xp.triu(xp.tril(block)) * diagonal

    if not xp.mutable:
        mirrored = getattr(g, "mirrored", None)
        return (mirrored(diagonal, symmetry) if mirrored else square(g[:, :])) * factor
    return _from_upper_in_place(cast(MutablePrimitives, xp), g, symmetry, factor)


def _from_upper_in_place(xp: MutablePrimitives, g: Normals, symmetry: int, factor: Any) -> Array:
    """Return what :func:`_from_upper` does, row panel by row panel."""
    n = g.shape[0]
    w = drawn = _drawn(g, lower=False)
    for start in range(0, n, _ROWS):
        stop = min(start + _ROWS, n)
        rows = g[start:stop, start:] if drawn is None else drawn[start:stop, start:]
        rows *= factor
        if w is None:
            w = xp.empty_like(rows, n, n)
        block = xp.triu(rows[:, : stop - start])
        mirrored = xp.transpose(block)
        corner = w[start:stop, start:stop]
        corner[...] = block + mirrored if symmetry == 1 else block - mirrored
        if symmetry == 1:
            xp.scale_diagonal(corner, math.sqrt(0.5))
        if stop < n:
            right = rows[:, stop - start :]
            if drawn is None:
                w[start:stop, stop:] = right
            below = xp.transpose(right)
            w[stop:, start:stop] = below if symmetry == 1 else -below
    return w


def _drawn(g: Normals, lower: bool) -> Array | None:
    """Return a new array with the lower or upper trapezoid of g, if g draws it best at once."""
    draw = getattr(g, "trapezoid", None)
    return None if draw is None else draw(lower)


def orthogonal(
    xp: MatrixPrimitives, g: Normals, factor: Any = 1.0, determinant: int | None = None
) -> Array:
    r"""Return factor times the Haar-distributed (semi-)orthogonal matrix that g stands for.

    For m >= n, column k of ``g`` from the diagonal down is a normal vector :math:`x_k`. With
    :math:`s_k` the sign of its first entry (+1 for zero) and :math:`H_k` the reflection that maps
    :math:`x_k` to a multiple of :math:`e_k`,

    .. math:: Q = H_0 H_1 \cdots H_{n-1}\, \mathrm{diag}(-s_0, \dots, -s_{n-1})\, E,

    so that column k is :math:`H_0 \cdots H_{k-1}` applied to :math:`x_k / |x_k|`. For m < n it is
    the transpose of the map of the transpose. Half the normals of a square ``g`` are used. For
    m = n the determinant is :math:`\prod_k s_k`.

    The product is accumulated backward over panels of reflections in compact WY form,
    :math:`I - V T V^T` with :math:`T^{-1} + T^{-T} = V^T V`, where nearly all work is matrix
    products: about 4/3 n³ flops for a square matrix. Column k of V is :math:`x_k` with
    :math:`d_k = x_{kk} + s_k |x_k|` in place of its first entry :math:`x_{kk}`, and half its
    squared length, the diagonal of :math:`T^{-1}`, is :math:`|x_k| |d_k|`: a product of two
    accurate numbers where the product of matrices would sum small terms onto a large one, which
    in float32 costs an orthogonality error of 2.5e-6 instead of 5e-7 at n = 2048.

    Parameters
    ----------
    xp : MatrixPrimitives
        The backend's linear algebra.
    g : array or Normals, shape (m, n), float32 or float64
        Standard normals; an array that can be written to is used up.
    factor : float or scalar array
        What the matrix is multiplied by.
    determinant : {1, -1}, optional
        For square matrices: the last column takes the sign that gives this determinant, which
        makes the law Haar on that component of O(n).

    Returns
    -------
    array, shape (m, n)
        Orthogonal columns for m >= n, orthogonal rows for m <= n, of length ``factor``.

    References
    ----------
    Stewart (1980), section 3; Mezzadri (2007), section 5; compact WY: Schreiber & Van Loan,
    SIAM J. Sci. Stat. Comput. 10 (1989).
    """
    m, n = g.shape
    if m < n:
        return xp.transpose(orthogonal(xp, Transposed(xp, g), factor))
    if n <= xp.lapack_up_to:
        q, signs = _by_lapack(xp, g)
    elif xp.mutable:
        q, signs = _accumulate_in_place(cast(MutablePrimitives, xp), g)
    else:
        q, signs = _accumulate(xp, g)
    if determinant is not None:
        flip = xp.product(signs) * determinant
        signs = xp.concatenate([signs[:-1], signs[-1:] * flip], 0)
    signs *= -factor
    q *= signs
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

    def trapezoid(self, lower: bool) -> Array | None:
        """Return half of the field, see :class:`Normals`."""
        drawn = _drawn(self.g, not lower)
        return None if drawn is None else self.xp.transpose(drawn)


def _accumulate(xp: MatrixPrimitives, g: Normals) -> tuple[Array, Array]:
    """Return H_0 ... H_{n-1} E and the signs s of its columns, without writing to arrays."""
    m, n = g.shape
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


def _accumulate_in_place(xp: MutablePrimitives, g: Normals) -> tuple[Array, Array]:
    """Return what :func:`_accumulate` does; beside the result, it needs a few panels of memory."""
    m, n = g.shape
    q = drawn = _drawn(g, lower=True)
    signs: list[Array] = []
    for start in reversed(range(0, n, _PANEL)):
        stop = min(start + _PANEL, n)
        width = stop - start
        x = g[start:, start:stop] if drawn is None else xp.copy(drawn[start:, start:stop])
        v, inverse_t, sign = _panel(xp, x)
        signs.insert(0, sign)
        if q is None:
            q = xp.empty_like(v, m, n)
        tv = xp.solve_upper(inverse_t, -xp.eye_like(v, width, width)) @ xp.transpose(v)
        xp.product_into(q[start:, start:stop], v, tv[:, :width])
        xp.add_diagonal(q[start:, start:stop], 1.0)
        if stop < n:
            w = tv[:, width:] @ q[stop:, stop:]
            xp.product_into(q[start:stop, stop:], v[:width], w)
            xp.add_product(q[stop:, stop:], v[width:], w)
    return q, xp.concatenate(signs, 0)


def _by_lapack(xp: MatrixPrimitives, g: Normals) -> tuple[Array, Array]:
    """Return what :func:`_accumulate` does, by LAPACK's product of reflections."""
    x, signed, d = _reflections(xp, g[:, :])
    x /= d
    return xp.householder_product(x, d / signed), xp.sign(signed)


def _panel(xp: MatrixPrimitives, x: Array) -> tuple[Array, Array, Array]:
    """Return the reflections of one panel of normals x, shape (m, b).

    Returns
    -------
    v : array, shape (m, b)
        Column k is zero above row k: H_k = I - 2 v_k v_kᵀ / |v_k|².
    inverse_t : array, shape (b, b)
        Inverse of the upper triangular T with H_0 ... H_{b-1} = I - V T Vᵀ.
    sign : array, shape (b,)
        s_k.
    """
    x, signed, d = _reflections(xp, x)
    v = xp.add_diagonal(x, signed)
    gram = xp.triu(xp.transpose(v) @ v, 1)
    return v, xp.add_diagonal(gram, signed * d), xp.sign(signed)


def _reflections(xp: MatrixPrimitives, x: Array) -> tuple[Array, Array, Array]:
    """Return what both forms of a panel's reflections are made of, columns x of normals.

    Returns
    -------
    x : array, shape (m, b)
        The columns, zero above the diagonal.
    signed, d : arrays, shape (b,)
        s_k |x_k|; and d_k = x_kk + s_k |x_k|, which replaces the first entry of x_k in the vector
        that H_k reflects along, whose squared length is 2 |x_k| |d_k|.
    """
    # No normal drawn is small enough to be changed by this; zeros become a multiple of e_k.
    x = xp.add_diagonal(xp.tril(x), _TINY)
    first = xp.diagonal(x)
    signed = xp.copysign(xp.column_lengths(x), first)
    return x, signed, first + signed


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
