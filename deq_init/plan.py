"""A request for one array, checked before anything is drawn, and how it is met.

**Layouts.** The matrix acts as W z. ``"out_in"`` arrays (PyTorch, NumPy) hold W, with every axis
after the first flattened into columns; ``"in_out"`` arrays (JAX, Keras) hold its transpose, with
every axis before the last flattened into rows. A convolution's matrix is thus
(out) x (receptive field · in) in either. The flattening does not suit kernels with several output
axes (Keras's EinsumDense and MultiHeadAttention), depthwise kernels or PyTorch's transposed
convolutions (in, out, ...): initialize those as the matrices that they are, and reshape.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from deq_init import families
from deq_init import scale as scales
from deq_init._protocol import Array, MatrixPrimitives
from deq_init.errors import DTypeError, ScaleError, ShapeError
from deq_init.families import Family, Normals

Layout = Literal["out_in", "in_out"]

_HALF = ("float16", "bfloat16")
_FLOATS = (*_HALF, "float32", "float64")


@dataclass(frozen=True)
class Plan:
    """A checked request for one array: everything known before anything is drawn.

    Attributes
    ----------
    family : Family
        What to sample.
    shape : tuple of int
        Shape of the framework's array.
    blocks : int or None
        How many independent blocks the array is made of; None for one matrix from the whole field
        of normals, with no key folded in.
    axis : int
        Axis of the array along which blocks lie.
    block_shape : tuple of int
        Shape of one block.
    rows, columns : int
        Shape of one block flattened to a matrix (in the layout's orientation).
    fan_in : int
        Length of the vectors that one block acts on.
    scale : deq_init.scale.Scale
        The one scale of each block.
    determinant : {1, -1} or None
        For square orthogonal blocks.
    rounding : str or None
        Half-precision dtype in which a spectral target shall hold.
    """

    family: Family
    shape: tuple[int, ...]
    blocks: int | None
    axis: int
    block_shape: tuple[int, ...]
    rows: int
    columns: int
    fan_in: int
    scale: scales.Scale
    determinant: int | None
    rounding: str | None = None

    @property
    def entrywise(self) -> bool:
        """Whether each entry is a known multiple of one normal, which can be drawn on its own."""
        return self.scale.kind == "gain" and not self.family.isometric

    @property
    def factor(self) -> Any:
        """What the transformed normals are multiplied by; None if that has to be measured."""
        if self.scale.kind == "gain" or self.family.isometric:
            return self.scale.value * self.family.unit(self.fan_in)
        return None

    def for_dtype(self, dtype: str) -> Plan:
        """Return the plan of an array that will be cast to this dtype."""
        # Much smaller matrices are subnormal in float16, or zero.
        adjusts = self.scale.kind != "gain" and self.scale.value >= 2**-10
        return replace(self, rounding=dtype) if adjusts and dtype in _HALF else self

    def with_value(self, value: Any) -> Plan:
        """Return the same plan with another value of its scale, which may be a scalar array."""
        return replace(self, scale=replace(self.scale, value=value))

    def sample(self, xp: MatrixPrimitives, normals: Callable[[int | None], Normals]) -> Array:
        """Return the array.

        Parameters
        ----------
        xp : MatrixPrimitives
            The backend's linear algebra.
        normals : callable
            ``normals(i)`` returns the field of block i, shape (rows, columns), and
            ``normals(None)`` that of an array without blocks.
        """
        if self.blocks is None:
            w = self.realize(xp, normals(None))
            return w if len(self.shape) == 2 else xp.reshape(w, self.shape)
        parts = [
            xp.reshape(self.realize(xp, normals(block)), self.block_shape)
            for block in range(self.blocks)
        ]
        return xp.concatenate(parts, self.axis)

    def realize(self, xp: MatrixPrimitives, g: Normals) -> Array:
        """Return the scaled matrix of the normals g, both of shape (rows, columns).

        A gain is a factor known in advance. A spectral norm or radius is measured on the
        transformed normals first, so that the result has it exactly, to rounding; and again on
        the matrix as a half-precision dtype will hold it.
        """
        if 0 in (self.rows, self.columns):
            return g[:, :]
        factor = 1.0 if self.factor is None else self.factor
        if self.determinant is not None:
            w = self.family.transform(xp, g, factor, self.determinant)
        else:
            w = self.family.transform(xp, g, factor)
        if self.factor is None:
            w *= self.scale.value / self._measure(xp, w)
        if self.rounding is not None:
            # Rounding moves the target, for an orthogonal matrix by a good part of epsilon.
            w *= self.scale.value / self._measure(xp, xp.rounded(w, self.rounding))
        return w

    def _measure(self, xp: MatrixPrimitives, w: Array) -> Array:
        return scales.measure(xp, w, self.scale.kind, symmetry=self.family.symmetry)


def plan(
    family: str,
    shape: Sequence[int],
    layout: Layout,
    scale: scales.Scale,
    blocks: int | tuple[int, int] | None = None,
    determinant: int | None = None,
) -> Plan:
    """Check a request and return what to do.

    Parameters
    ----------
    family : str
        A name in :data:`deq_init.families.FAMILIES`.
    shape : sequence of int
        Shape of the framework's array, at least two axes.
    layout : {"out_in", "in_out"}
        How the array holds W: see the text of :mod:`deq_init.plan`.
    scale : Scale
        From :func:`deq_init.scale.resolve`; each block has it.
    blocks : int or (int, int), optional
        How many independent blocks the array is made of, or (how many, along which axis of the
        array). The default axis is that of the outputs: fused projections, gates, heads.
    determinant : {1, -1}, optional
        Of square orthogonal blocks.

    Raises
    ------
    FamilyError, ShapeError, ScaleError
        Before anything is drawn.
    """
    full = axes(shape)
    if blocks is None and determinant is None:
        return _common_plan(family, full, layout, scale.kind, scale.value)
    return uncached_plan(family, full, layout, scale, blocks, determinant)


def uncached_plan(
    family: str,
    full: tuple[int, ...],
    layout: Layout,
    scale: scales.Scale,
    blocks: Any,
    determinant: Any,
) -> Plan:
    """Return what :func:`plan` does, for a shape that is a tuple of integers."""
    chosen = families.get(family)
    matrix_shape(full, layout)
    count, axis, block_shape = _blocks(full, layout, blocks)
    rows, columns = matrix_shape(block_shape, layout)
    if chosen.symmetry and rows != columns:
        raise ShapeError(
            f"expected a square matrix for the {chosen.name} family, "
            f"received shape {full}, a matrix of shape {(rows, columns)}. "
            f"{_square_advice(rows, columns, len(block_shape), layout)}"
        )
    scales.require_square(scale.kind, rows, columns)
    if chosen.symmetry == -1 and rows == 1 and scale.kind != "gain":
        raise ScaleError(
            f"expected a gain for an antisymmetric matrix of one entry, which is zero, received "
            f"{scale.kind}={scale.value}. No factor changes it."
        )
    if determinant is not None:
        _require_determinant(chosen, rows, columns, determinant)
    fan_in = columns if layout == "out_in" else rows
    return Plan(chosen, full, count, axis, block_shape, rows, columns, fan_in, scale, determinant)


@functools.lru_cache(maxsize=256)
def _common_plan(
    family: str, full: tuple[int, ...], layout: Layout, kind: scales.Kind, value: float
) -> Plan:
    """Return the plan of a whole array: cached, for small matrices are sampled faster than this."""
    return uncached_plan(family, full, layout, scales.Scale(kind, value), None, None)


def _blocks(
    shape: tuple[int, ...], layout: Layout, blocks: Any
) -> tuple[int | None, int, tuple[int, ...]]:
    """Return the number of blocks, their axis and the shape of one."""
    axis = 0 if layout == "out_in" else len(shape) - 1
    if blocks is None:
        return None, axis, shape
    try:
        count, along = blocks if isinstance(blocks, (tuple, list)) else (blocks, axis)
        count, along = operator.index(count), operator.index(along)
        valid = count >= 1 and -len(shape) <= along < len(shape) and not isinstance(blocks, bool)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ShapeError(
            f"expected blocks as a positive integer, or (integer, axis) with an axis of the shape "
            f"{shape}, received {blocks!r}. Pass e.g. blocks=3 for a fused QKV projection."
        )
    along %= len(shape)
    if shape[along] % count:
        raise ShapeError(
            f"expected axis {along} of shape {shape} to divide into {count} equal blocks, received "
            f"a length of {shape[along]}. Pass the number of blocks that the layer fuses."
        )
    return count, along, (*shape[:along], shape[along] // count, *shape[along + 1 :])


def _square_advice(rows: int, columns: int, rank: int, layout: Layout) -> str:
    """Say which blocks= would make a rectangle of square matrices, if any does."""
    short, long = sorted((rows, columns))
    if rank == 2 and short and long % short == 0:
        axis = 0 if rows == long else 1
        return f"Pass blocks=({long // short}, {axis}) for independent square blocks."
    return "Use a square shape, or the random or orthogonal family."


def _require_determinant(family: Family, rows: int, columns: int, determinant: Any) -> None:
    if determinant not in (1, -1) or not family.isometric or rows != columns:
        raise ShapeError(
            "expected determinant 1 or -1 for square orthogonal matrices, received "
            f"determinant={determinant!r} for a matrix of shape {(rows, columns)} of the "
            f"{family.name} family. Leave it out for the whole group."
        )


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
