"""A request for one array, checked before anything is drawn, and how it is met.

Which axes of the array are what is said by :mod:`deq_init.axes`.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from deq_init import axes, families
from deq_init import scale as scales
from deq_init._protocol import Array, MatrixPrimitives, MutablePrimitives
from deq_init.axes import Axes as Axes
from deq_init.axes import Layout as Layout
from deq_init.errors import DTypeError, ScaleError, ShapeError
from deq_init.families import Family, Normals

Index = tuple[int, ...]
"""Which matrix of an array: (), or the number of its slice, of its block, or both; row-major."""


@dataclass(frozen=True)
class Plan:
    """A checked request for one array: everything known before anything is drawn.

    Attributes
    ----------
    family : Family
        What to sample.
    view : View
        The array's shape, and which of its axes are what.
    blocks : int or None
        How many independent blocks each slice of the array is made of; None for one matrix from
        the whole field of normals, with no key folded in.
    axis : int
        Axis of the array along which blocks lie.
    block_shape : tuple of int
        Shape of one block, its axes in the order of the view.
    rows, columns : int
        Shape of one block flattened to a matrix (in the layout's orientation).
    fan_in : int
        Length of the vectors that one block acts on.
    scale : deq_init.scale.Scale
        The one scale of each block.
    determinant : {1, -1} or None
        For square orthogonal blocks.
    dtype : str or None
        Dtype of the array, if it is known: see :meth:`for_dtype`.
    rounding : str or None
        Half-precision dtype in which a spectral target shall hold.
    """

    family: Family
    view: axes.View
    blocks: int | None
    axis: int
    block_shape: tuple[int, ...]
    rows: int
    columns: int
    fan_in: int
    scale: scales.Scale
    determinant: int | None
    dtype: str | None = None
    rounding: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the framework's array."""
        return self.view.shape

    @property
    def along(self) -> int:
        """Axis of one slice along which blocks lie."""
        return self.view.inverse[self.axis] - len(self.view.batch)

    @property
    def slice(self) -> Plan:
        """The plan of one slice, its axes in the order of the view."""
        view = self.view
        lengths = view.stacked[len(view.batch) :]
        first = len(view.outputs if view.layout == "out_in" else view.inputs)
        axes_ = tuple(range(len(lengths)))
        rows, columns = axes_[:first], axes_[first:]
        inputs, outputs = (columns, rows) if view.layout == "out_in" else (rows, columns)
        own = axes.View(lengths, (), inputs, outputs, view.layout)
        return replace(self, view=own, axis=self.along)

    @property
    def indices(self) -> list[Index]:
        """The index of each matrix, in the order in which they are drawn."""
        slices = [(i,) for i in range(self.view.count)] if self.view.batch else [()]
        blocks = [()] if self.blocks is None else [(i,) for i in range(self.blocks)]
        return [one + other for one in slices for other in blocks]

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
        """Return the plan of an array that will be cast to this dtype.

        Raises
        ------
        ScaleError
            If the scale is beyond what the dtype holds: a norm or radius, or an entry at a gain,
            above its largest number, or entries that lose their digits.
        """
        # float32 normals end at 5.5, float64 ones at 8.5; GOE has √2 of them on its diagonal.
        largest, typical = 1.0, max(self.rows, self.columns, 1) ** -0.5
        if self.scale.kind == "gain" and not self.family.isometric:
            typical = self.family.unit(max(self.fan_in, 1))
            largest = (12.0 if dtype == "float64" else 8.0) * typical
        scales.require_representable(self.scale, dtype, largest, typical)
        rounding = dtype if scales.is_corrected(self.scale, dtype) else None
        return replace(self, dtype=dtype, rounding=rounding)

    @property
    def may_overflow(self) -> bool:
        """Whether an entry may be beyond the dtype although the scale is not.

        Only matrices that are measured: entries may be larger than a radius, and the factor, by
        which small normals are multiplied, than the target.
        """
        if 0 in self.shape or self.factor is not None or self.dtype is None:
            return False
        entries = self.scale.kind == "spectral_radius" and self.family.symmetry == 0
        dtype = self.dtype if entries else compute_dtype(self.dtype)
        return self.scale.value > scales.LARGEST[dtype] * 2.0**-27

    def with_value(self, value: Any) -> Plan:
        """Return the same plan with another value of its scale, which may be a scalar array."""
        return replace(self, scale=replace(self.scale, value=value))

    def sample(self, xp: MatrixPrimitives, normals: Callable[[Index], Normals]) -> Array:
        """Return the array.

        Parameters
        ----------
        xp : MatrixPrimitives
            The backend's linear algebra.
        normals : callable
            ``normals(index)`` returns the field of one matrix, shape (rows, columns).
        """
        view = self.view
        if view.batch or not view.ordered:
            if 0 in self.shape:
                return xp.reshape(normals((0,))[0:0, 0 : self.columns], self.shape)
            slices = [self._slice(xp, normals, i) for i in range(view.count)]
            return self.arrange(xp, xp.concatenate(slices, 0))
        if self.blocks is None:
            w = self.realize(xp, normals(()))
            return w if len(self.shape) == 2 else xp.reshape(w, self.shape)
        parts = [
            xp.reshape(self.realize(xp, normals((block,))), self.block_shape)
            for block in range(self.blocks)
        ]
        return xp.concatenate(parts, self.axis)

    def _slice(self, xp: MatrixPrimitives, normals: Callable[[Index], Normals], i: int) -> Array:
        own = (i,) if self.view.batch else ()
        w = self.slice.sample(xp, lambda index: normals(own + index))
        return xp.reshape(w, (1, *self.slice.shape))

    def arrange(self, xp: MatrixPrimitives, slices: Array) -> Array:
        """Return the array of its slices, stacked along a first axis."""
        view = self.view
        stacked = xp.reshape(slices, view.stacked)
        return stacked if view.ordered else xp.transpose(stacked, view.inverse)

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
        symmetry = self.family.symmetry
        if self.factor is None:
            w *= self.scale.value / scales.measure(xp, w, self.scale.kind, symmetry=symmetry)
        if self.rounding is not None:
            w *= scales.correction(xp, w, self.scale, self.rounding, symmetry=symmetry)
        if xp.mutable and self.dtype is not None and self.may_overflow:
            held = xp.rounded(w, self.dtype) if self.dtype in scales.HALF else w
            finite = cast(MutablePrimitives, xp).is_finite(held)
            scales.require_finite(self.scale, self.dtype, finite)
        return w


def plan(
    family: str,
    shape: Sequence[int],
    layout: Layout,
    scale: scales.Scale,
    blocks: int | tuple[int, int] | None = None,
    determinant: int | None = None,
    batch_axes: Axes | None = None,
    in_axes: Axes | None = None,
    out_axes: Axes | None = None,
) -> Plan:
    """Check a request and return what to do.

    Parameters
    ----------
    family : str
        A name in :data:`deq_init.families.FAMILIES`.
    shape : sequence of int
        Shape of the framework's array, at least two axes.
    layout : {"out_in", "in_out"}
        How the array holds W: see the text of :mod:`deq_init.axes`.
    scale : Scale
        From :func:`deq_init.scale.resolve`; each block has it.
    blocks : int or (int, int), optional
        How many independent blocks the array, or each slice of it, is made of, or (how many, along
        which axis of the array). The default axis is the first of the outputs: fused projections,
        gates, heads.
    determinant : {1, -1}, optional
        Of square orthogonal blocks.
    batch_axes, in_axes, out_axes : int or sequence of int, optional
        Which axes are what, see :mod:`deq_init.axes`.

    Raises
    ------
    FamilyError, ShapeError, ScaleError
        Before anything is drawn.
    """
    full = axes.lengths(shape)
    if math.prod(n for n in full if n) >= 2**60:
        raise ShapeError(
            f"expected a shape of less than 2**60 entries, received {shape!r}. No array holds more."
        )
    named = (blocks, determinant, batch_axes, in_axes, out_axes)
    if all(option is None for option in named):  # an array compares to an array
        return _common_plan(family, full, layout, scale.kind, scale.value)
    return uncached_plan(
        family, full, layout, scale, blocks, determinant, batch_axes, in_axes, out_axes
    )


def uncached_plan(
    family: str,
    full: tuple[int, ...],
    layout: Layout,
    scale: scales.Scale,
    blocks: Any = None,
    determinant: Any = None,
    batch_axes: Any = None,
    in_axes: Any = None,
    out_axes: Any = None,
) -> Plan:
    """Return what :func:`plan` does, for a shape that is a tuple of integers."""
    chosen = families.get(family)
    view = axes.view(full, layout, batch_axes, in_axes, out_axes)
    count, axis = _blocks(view, blocks)
    if (batch_axes, in_axes, out_axes) == (None,) * 3 and count is not None and view.batch == ():
        _require_no_stack(view, count, axis, blocks)
    part = list(full)
    part[axis] //= count or 1
    block = replace(view, shape=tuple(part))
    rows, columns = block.matrix
    if chosen.symmetry and rows != columns:
        raise ShapeError(
            f"expected a square matrix for the {chosen.name} family, "
            f"received shape {full}, a matrix of shape {(rows, columns)}. "
            f"{_square_advice(block)}"
        )
    scales.require_square(scale.kind, rows, columns)
    if chosen.symmetry == -1 and rows == 1 and scale.kind != "gain":
        raise ScaleError(
            f"expected a gain for an antisymmetric matrix of one entry, which is zero, received "
            f"{scale.kind}={scale.value}. No factor changes it."
        )
    if determinant is not None:
        _require_determinant(chosen, rows, columns, determinant)
    if 0 in full:
        count = None  # no need to go through empty blocks
    block_shape = block.stacked[len(view.batch) :]
    return Plan(
        chosen, view, count, axis, block_shape, rows, columns, block.fan_in, scale, determinant
    )


@functools.lru_cache(maxsize=256)
def _common_plan(
    family: str, full: tuple[int, ...], layout: Layout, kind: scales.Kind, value: float
) -> Plan:
    """Return the plan of a whole array: cached, for small matrices are sampled faster than this."""
    return uncached_plan(family, full, layout, scales.Scale(kind, value))


def _blocks(view: axes.View, blocks: Any) -> tuple[int | None, int]:
    """Return the number of blocks, None if none are asked for, and their axis."""
    shape, axis = view.shape, (view.outputs or view.inputs)[0]
    if blocks is None:
        return None, axis
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
    if along in view.batch:
        raise ShapeError(
            f"expected blocks along an axis of the matrices, received blocks={blocks!r} along axis "
            f"{along} of shape {shape}, one of batch_axes, whose slices are matrices of their own "
            "anyway. Leave out blocks, or name another axis."
        )
    if shape[along] % count:
        raise ShapeError(
            f"expected axis {along} of shape {shape} to divide into {count} equal blocks, received "
            f"a length of {shape[along]}. Pass the number of blocks that the layer fuses."
        )
    return count, along


def _require_no_stack(view: axes.View, count: int, axis: int, blocks: Any) -> None:
    """Raise ShapeError for blocks of one output each in an array of more than two axes.

    They are the slices of a stack, flattened to vectors. Those of a depthwise kernel, which has one
    input channel, are meant to be.
    """
    shape = view.shape
    channels = shape[1] if view.layout == "out_in" else shape[-2]
    if len(shape) > 2 and axis in view.outputs and 1 < count == shape[axis] and channels > 1:
        others = tuple(a for a in range(len(shape)) if a != axis)
        raise ShapeError(
            f"expected blocks that are matrices, received blocks={blocks!r} for shape {shape}: "
            f"{count} blocks of one output each. Pass batch_axes={axis} for a stack of {count} "
            f"matrices, or batch_axes={axis} and in_axes={others} for matrices of one output."
        )


def _square_advice(block: axes.View) -> str:
    """Say which options would make a rectangle of square matrices, if any does."""
    rows, columns = block.matrix
    short, long = sorted((rows, columns))
    if len(block.shape) == 2 and short and long % short == 0:
        axis = block.order[0 if rows == long else 1]
        return f"Pass blocks=({long // short}, {axis}) for independent square blocks."
    if len(block.shape) == 3 and not block.batch and block.shape[1] == block.shape[2]:
        return "Pass batch_axes=0 for a stack of square matrices."
    return "Use a square shape, or the random or orthogonal family."


def _require_determinant(family: Family, rows: int, columns: int, determinant: Any) -> None:
    try:
        sign = 0 if isinstance(determinant, bool) else operator.index(determinant)
    except TypeError:
        sign = 0
    if sign not in (1, -1) or not family.isometric or rows != columns:
        raise ShapeError(
            "expected determinant 1 or -1 for square orthogonal matrices, received "
            f"determinant={determinant!r} for a matrix of shape {(rows, columns)} of the "
            f"{family.name} family. Leave it out for the whole group."
        )


def matrix_shape(shape: Sequence[int], layout: Layout) -> tuple[int, int]:
    """Return rows and columns of the one matrix that an array of this shape flattens to.

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
    return axes.view(shape, layout).matrix


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
    if dtype not in scales.LARGEST:
        raise DTypeError(
            f"expected a real floating dtype out of {', '.join(scales.LARGEST)}, received {dtype}. "
            "Pass such a dtype, and cast the result yourself if you need another."
        )
    return "float64" if dtype == "float64" else "float32"
