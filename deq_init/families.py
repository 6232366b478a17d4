r"""The three families of random matrices, as maps from standard normals g to a matrix W.

============  ==========================================================  ===========  ============
family        law of a square n x n matrix at gain s (the paper's         norm edge    radius edge
              :math:`\sqrt V`)
============  ==========================================================  ===========  ============
random        entries i.i.d. normal, variance s²/n                        2 s          s
orthogonal    s Q, Q Haar-distributed on O(n)                             s            s
goe           symmetric normal, variance s²/n, on the diagonal 2 s²/n     2 s          2 s
============  ==========================================================  ===========  ============

The edges are limits as n grows. Families are named as in the paper.

**Layouts.** The matrix acts as W z. ``"out_in"`` arrays (PyTorch, NumPy) hold W, with every axis
after the first flattened into columns; ``"in_out"`` arrays (JAX, Keras) hold its transpose, with
every axis before the last flattened into rows. A convolution's matrix is thus
(out) x (receptive field · in) in either.

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
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from deq_init import scale as scales
from deq_init._protocol import Array, MatrixPrimitives
from deq_init.errors import DTypeError, FamilyError, ShapeError

Layout = Literal["out_in", "in_out"]

_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Family:
    """A family of random matrices.

    Attributes
    ----------
    name : str
        Its name in the paper.
    symmetric : bool
        Whether its matrices are symmetric, and so square.
    isometric : bool
        Whether its matrices are multiples of (semi-)orthogonal ones.
    norm_edge, radius_edge : float
        Limits, as a square matrix grows, of spectral norm and radius at gain 1.
    transform : callable
        ``transform(xp, g)`` maps normals of shape (m, n) to the matrix before scaling.
    """

    name: str
    symmetric: bool
    isometric: bool
    norm_edge: float
    radius_edge: float
    transform: Callable[[MatrixPrimitives, Array], Array]

    def unit(self, fan_in: int) -> float:
        """Return the factor that gives the transformed normals gain 1."""
        return 1.0 if self.isometric else fan_in**-0.5


def random(xp: MatrixPrimitives, g: Array) -> Array:
    """Return the normals themselves: entries i.i.d. N(0, 1). Shape (m, n) -> (m, n)."""
    return g


def goe(xp: MatrixPrimitives, g: Array) -> Array:
    r"""Return the symmetric matrix of the upper triangle of g, its diagonal times :math:`\sqrt2`.

    Entry (i, j) is ``g[min(i, j), max(i, j)]``: bit-exactly symmetric. Entries below the diagonal
    of ``g`` are not used. Shape (n, n) -> (n, n).
    """
    above = xp.triu(g, 1)
    diagonal = xp.triu(xp.tril(g))
    return above + xp.transpose(above) + diagonal * math.sqrt(2)


def orthogonal(xp: MatrixPrimitives, g: Array) -> Array:
    r"""Return the Haar-distributed (semi-)orthogonal matrix whose Householder vectors g holds.

    For m >= n, column k of ``g`` from the diagonal down is a normal vector :math:`x_k`. With
    :math:`s_k` the sign of its first entry (+1 for zero) and :math:`H_k` the reflection that maps
    :math:`x_k` to a multiple of :math:`e_k`,

    .. math:: Q = H_0 H_1 \cdots H_{n-1}\, \mathrm{diag}(-s_0, \dots, -s_{n-1})\, E,

    so that column k is :math:`H_0 \cdots H_{k-1}` applied to :math:`x_k / |x_k|`. For m < n it is
    the transpose of the map of the transpose. Half the normals of a square ``g`` are used.

    The product is accumulated backward over panels of reflections in compact WY form, where
    nearly all work is matrix products: about 4/3 n³ flops for a square matrix.

    Parameters
    ----------
    xp : MatrixPrimitives
        The backend's linear algebra.
    g : array, shape (m, n), float32 or float64
        Standard normals.

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
        return xp.transpose(orthogonal(xp, xp.transpose(g)))
    v, columns_sign = householder_vectors(xp, g)
    panel = max(32, math.ceil(n / 8))
    q = None
    for start in reversed(range(0, n, panel)):
        stop = min(start + panel, n)
        width = stop - start
        block = v[start:, start:stop]
        gram = xp.transpose(block) @ block
        inverse_t = xp.triu(gram, 1) + xp.triu(xp.tril(gram)) / 2
        right = xp.transpose(block[:width])
        result = xp.eye_like(v, m - start, width)
        if q is not None:
            right = xp.concatenate([right, xp.transpose(block[width:]) @ q], 1)
            above = xp.eye_like(v, width, q.shape[1]) * 0.0
            result = xp.concatenate([result, xp.concatenate([above, q], 0)], 1)
        q = result - block @ xp.solve_upper(inverse_t, right)
    return q * columns_sign


def householder_vectors(xp: MatrixPrimitives, g: Array) -> tuple[Array, Array]:
    """Return the reflections of :func:`orthogonal`, and the sign each column of Q takes.

    Returns
    -------
    v : array, shape (m, n)
        Column k is zero above row k and has squared length 2: H_k = I - v_k v_kᵀ.
    columns_sign : array, shape (n,)
        -s_k.
    """
    m, n = g.shape
    x = xp.tril(g)
    first = xp.diagonal(x)
    length = xp.sqrt(xp.column_sums(x * x))
    sign = xp.where(first < 0, -1.0, first * 0 + 1.0)
    empty = length == 0
    unit = xp.eye_like(g, m, n)
    squared = xp.where(empty, 1.0, length * (length + first * sign))
    shift = xp.where(empty, math.sqrt(2), sign * length)
    return (x + unit * shift) / xp.sqrt(squared), -sign


FAMILIES = {
    family.name: family
    for family in (
        Family("random", False, False, 2.0, 1.0, random),
        Family("orthogonal", False, True, 1.0, 1.0, orthogonal),
        Family("goe", True, False, 2.0, 2.0, goe),
    )
}
"""Every family by name."""


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


@dataclass(frozen=True)
class Plan:
    """A checked request for one matrix: everything known before anything is drawn.

    Attributes
    ----------
    family : Family
        What to sample.
    rows, columns : int
        Shape of the array once flattened to a matrix (in the layout's orientation).
    fan_in : int
        Length of the vectors that the matrix acts on.
    scale : deq_init.scale.Scale
        Its one scale.
    """

    family: Family
    rows: int
    columns: int
    fan_in: int
    scale: scales.Scale

    def with_value(self, value: Any) -> Plan:
        """Return the same plan with another value of its scale, which may be a scalar array."""
        return replace(self, scale=replace(self.scale, value=value))

    def realize(self, xp: MatrixPrimitives, g: Array) -> Array:
        """Return the scaled matrix of the normals g, both of shape (rows, columns).

        A gain is a factor known in advance. A spectral norm or radius is measured on the
        transformed normals first, so that the result has it exactly, to rounding.
        """
        if 0 in g.shape:
            return g
        w = self.family.transform(xp, g)
        kind, value = self.scale.kind, self.scale.value
        if kind == "gain" or self.family.isometric:
            return w * (value * self.family.unit(self.fan_in))
        return w * (value / scales.measure(xp, w, kind, symmetric=self.family.symmetric))


def plan(family: str, shape: Sequence[int], layout: Layout, scale: scales.Scale) -> Plan:
    """Check a request and return what to do.

    Parameters
    ----------
    family : str
        A name in :data:`FAMILIES`.
    shape : sequence of int
        Shape of the framework's array, at least two axes.
    layout : {"out_in", "in_out"}
        How the array holds W: see the module's text.
    scale : Scale
        From :func:`deq_init.scale.resolve`.

    Raises
    ------
    FamilyError, ShapeError
        Before anything is drawn.
    """
    chosen = get(family)
    rows, columns = matrix_shape(shape, layout)
    if chosen.symmetric and rows != columns:
        raise ShapeError(
            f"expected a square matrix for the {chosen.name} family, which is symmetric, "
            f"received shape {axes(shape)}, a matrix of shape {(rows, columns)}. "
            "Use a square shape, or the random or orthogonal family."
        )
    scales.require_square(scale.kind, rows, columns)
    return Plan(chosen, rows, columns, columns if layout == "out_in" else rows, scale)


def matrix_shape(shape: Sequence[int], layout: Layout) -> tuple[int, int]:
    """Return rows and columns of the matrix that an array of this shape flattens to.

    Raises
    ------
    ShapeError
        If there are fewer than two axes.

    Examples
    --------
    >>> matrix_shape((8, 3, 5, 5), "out_in")
    (8, 75)
    >>> matrix_shape((5, 5, 3, 8), "in_out")
    (75, 8)
    """
    shape = axes(shape)
    if len(shape) < 2:
        raise ShapeError(
            f"expected a shape with at least two axes, received {shape}. "
            "A random matrix needs rows and columns: biases and scales want another initializer."
        )
    if layout == "out_in":
        return shape[0], math.prod(shape[1:])
    return math.prod(shape[:-1]), shape[-1]


def axes(shape: Any) -> tuple[int, ...]:
    """Return the shape as a tuple of integers.

    Raises
    ------
    ShapeError
        If it is not a sequence of non-negative integers.
    """
    try:
        result = tuple(map(operator.index, shape))
    except TypeError:
        result = (-1,)
    if min(result, default=0) < 0:
        raise ShapeError(
            f"expected a shape as a sequence of non-negative integers, received {shape!r}. "
            "Pass e.g. (512, 512)."
        )
    return result


def compute_dtype(dtype: Any) -> str:
    """Return the dtype that a matrix is sampled and factored in before the cast to ``dtype``.

    Parameters
    ----------
    dtype : str
        Name of the dtype asked for.

    Returns
    -------
    str
        "float64" for float64, else "float32".

    Raises
    ------
    DTypeError
        For anything but float16, bfloat16, float32 and float64.

    Examples
    --------
    >>> compute_dtype("bfloat16")
    'float32'
    """
    if dtype not in _FLOATS:
        raise DTypeError(
            f"expected a real floating dtype out of {', '.join(_FLOATS)}, received {dtype}. "
            "Pass such a dtype, and cast the result yourself if you need another."
        )
    return "float64" if dtype == "float64" else "float32"
