"""Which axes of an array are what: the stack, and each matrix's inputs and outputs.

**Layouts.** The matrix acts as W z. ``"out_in"`` arrays (PyTorch, NumPy) hold W, with every axis
after the first flattened into columns; ``"in_out"`` arrays (JAX, Keras) hold its transpose, with
every axis before the last flattened into rows. A convolution's matrix is thus
(out) x (receptive field · in) in either.

Other arrays name their axes. Along ``batch_axes`` each slice is a matrix of its own: experts,
layers that are scanned over, the members of an ensemble. ``in_axes`` and ``out_axes`` are
flattened, in the order given, to the vectors that W acts on and returns: heads and their entries,
or the kernel (in, out) of a layer in PyTorch. If only one of the two is given, the other is the
rest. Slices are numbered row-major over ``batch_axes``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

from deq_init.errors import ShapeError

Layout = Literal["out_in", "in_out"]
Axes = int | Sequence[int]
"""One axis of an array, or several, negative ones counted from the end."""


@dataclass(frozen=True)
class View:
    """An array as a stack of matrices.

    Attributes
    ----------
    shape : tuple of int
        The array's shape.
    batch, inputs, outputs : tuple of int
        Its axes, each in one of the three.
    layout : {"out_in", "in_out"}
        Whether the rows of each matrix, as it lies in the array, are its outputs or its inputs:
        what comes first in the array.
    """

    shape: tuple[int, ...]
    batch: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    layout: Layout

    @property
    def order(self) -> tuple[int, ...]:
        """The array's axes as batch axes, axes of the rows, axes of the columns."""
        if self.layout == "out_in":
            return self.batch + self.outputs + self.inputs
        return self.batch + self.inputs + self.outputs

    @property
    def inverse(self) -> tuple[int, ...]:
        """Where each axis of the array is in ``order``."""
        return tuple(map(self.order.index, range(len(self.shape))))

    @property
    def ordered(self) -> bool:
        """Whether the axes lie in that order, so that nothing has to be transposed."""
        return self.order == tuple(range(len(self.shape)))

    @property
    def stacked(self) -> tuple[int, ...]:
        """Shape of the array with its axes in that order."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def count(self) -> int:
        """How many matrices there are."""
        return self._length(self.batch)

    @property
    def out(self) -> int:
        """Length of the vectors that each matrix returns."""
        return self._length(self.outputs)

    @property
    def fan_in(self) -> int:
        """Length of the vectors that each matrix acts on."""
        return self._length(self.inputs)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of each matrix as it lies in the array."""
        return (self.out, self.fan_in) if self.layout == "out_in" else (self.fan_in, self.out)

    def _length(self, axes: tuple[int, ...]) -> int:
        return math.prod([self.shape[axis] for axis in axes])


def view(
    shape: Any,
    layout: Layout,
    batch_axes: Axes | None = None,
    in_axes: Axes | None = None,
    out_axes: Axes | None = None,
) -> View:
    """Return an array of this shape as a stack of matrices.

    Parameters
    ----------
    shape : sequence of int
        At least two axes.
    layout : {"out_in", "in_out"}
        What the axes other than the batch's are, if none of them is named.
    batch_axes, in_axes, out_axes : int or sequence of int, optional
        See the text of :mod:`deq_init.axes`.

    Raises
    ------
    ShapeError
        For fewer than two axes, and for axes that the array does not have, that are given twice or
        not at all.

    Examples
    --------
    >>> view((8, 3, 5, 5), "out_in").matrix
    (8, 75)
    >>> view((12, 64, 32), "in_out", batch_axes=0).matrix
    (64, 32)
    >>> heads = view((64, 4, 16), "in_out", in_axes=0)
    >>> heads.out, heads.fan_in
    (64, 64)
    """
    shape = lengths(shape)
    if len(shape) < 2:
        raise ShapeError(
            f"expected a shape with at least two axes, received {shape}. "
            "A random matrix needs rows and columns: biases and scales want another initializer."
        )
    batch = _axes(shape, "batch_axes", batch_axes) or ()
    inputs = _axes(shape, "in_axes", in_axes)
    outputs = _axes(shape, "out_axes", out_axes)
    named = [*batch, *(inputs or ()), *(outputs or ())]
    twice = sorted({axis for axis in named if named.count(axis) > 1})
    rest = tuple(axis for axis in range(len(shape)) if axis not in named)
    given = f"batch_axes={batch_axes!r}, in_axes={in_axes!r} and out_axes={out_axes!r}"
    if twice:
        raise ShapeError(
            f"expected each axis of the shape {shape} in one of batch_axes, in_axes and out_axes, "
            f"received {given}, with axis {twice[0]} twice. Name each axis once."
        )
    if inputs is None and outputs is None:
        if len(rest) < 2:
            raise ShapeError(
                f"expected at least two axes beside batch_axes, which make each matrix, received "
                f"{given} for the shape {shape}. Leave out the axes of the matrices."
            )
        if layout == "out_in":
            return View(shape, batch, rest[1:], rest[:1], layout)
        return View(shape, batch, rest[:-1], rest[-1:], layout)
    if inputs is not None and outputs is not None and rest:
        raise ShapeError(
            f"expected every axis of the shape {shape} in one of batch_axes, in_axes and out_axes, "
            f"received {given}, without axis {rest[0]}. Name it, or leave out in_axes or out_axes, "
            "which then are the rest."
        )
    inputs = rest if inputs is None else inputs
    outputs = rest if outputs is None else outputs
    if not inputs + outputs:
        raise ShapeError(
            f"expected an axis beside batch_axes, which makes each matrix, received {given} for "
            f"the shape {shape}. Leave out the axes of the matrices."
        )
    if inputs and outputs:
        layout = "out_in" if min(outputs) < min(inputs) else "in_out"
    return View(shape, batch, inputs, outputs, layout)


def _axes(shape: tuple[int, ...], name: str, given: Any) -> tuple[int, ...] | None:
    """Return axes as a tuple of numbers from 0 on, or None if none are given."""
    if given is None:
        return None
    several = isinstance(given, Sequence) and not isinstance(given, str)
    try:
        numbers = [operator.index(axis) for axis in (given if several else (given,))]
    except TypeError:
        numbers = [len(shape)]
    rank = len(shape)
    if isinstance(given, bool) or not all(-rank <= axis < rank for axis in numbers):
        raise ShapeError(
            f"expected {name} as an axis of the shape {shape} or several, in [-{rank}, {rank}), "
            f"received {given!r}. Pass e.g. {name}=0 or {name}=(0, 1)."
        )
    return tuple(axis % rank for axis in numbers)


def lengths(shape: Any) -> tuple[int, ...]:
    """Return the shape as a tuple of integers.

    Raises
    ------
    ShapeError
        If it is not a sequence of non-negative integers.
    """
    try:
        entries = tuple(shape)
        result = tuple(map(operator.index, entries))
    except TypeError:
        entries, result = (), (-1,)
    unordered = isinstance(shape, (str, bytes, bytearray, Set, Mapping))
    if unordered or min(result, default=0) < 0 or any(isinstance(n, bool) for n in entries):
        raise ShapeError(
            f"expected a shape as a sequence of non-negative integers, received {shape!r}. "
            "Pass e.g. (512, 512)."
        )
    return result
