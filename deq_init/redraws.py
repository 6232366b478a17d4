"""The weights that a check names: their gain, and what new draws of them are like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deq_init import axes, fixed_point, scale
from deq_init import plan as plans
from deq_init.errors import SelectionError


def require_draws(draws: Any, family: str | None, weights: bool) -> int:
    """Return how many new draws to look at, 0 without a family.

    Raises
    ------
    SolverError, SelectionError
        If it is not a positive integer, or there are no weights to draw.
    """
    fixed_point.require_count("draws", draws)
    if family is None:
        return 0
    if not weights:
        raise SelectionError(
            f"expected the weights to draw from the {family} family, received none. "
            "Name them, or leave out family=."
        )
    return int(draws)


@dataclass(frozen=True)
class Weights:
    """What a check must know of the weights that were named.

    Attributes
    ----------
    shapes : sequence of sequence of int
        Shape of each.
    squares : sequence of float
        Sum of each one's squared entries.
    layout : {"out_in", "in_out"}
        How the framework's arrays hold W, see :mod:`deq_init.plan`.
    family : str or None
        Family to draw them anew from.
    blocks : int or (int, int), optional
        Of the new draws.
    batch_axes : int or sequence of int, optional
        Along which those of three axes and more are stacks, see :mod:`deq_init.axes`.
    """

    shapes: Sequence[Sequence[int]]
    squares: Sequence[float]
    layout: plans.Layout
    family: str | None
    blocks: int | tuple[int, int] | None = None
    batch_axes: axes.Axes | None = None

    @property
    def gain(self) -> float | None:
        """Gain of all of them together; None if there are none.

        With a family, the gain at which it has this sum of squares in the mean.
        """
        if not self.shapes:
            return None
        if self.family is None:
            outputs = sum(map(self._outputs, self.shapes))
        else:
            outputs = sum(map(_mean_square, self._units(self.family)))
        return math.sqrt(sum(self.squares) / max(outputs, 1))

    def stack(self, shape: Sequence[int]) -> axes.Axes | None:
        """Return along which axes an array of this shape is a stack."""
        return self.batch_axes if len(shape) > 2 else None

    def _outputs(self, shape: Sequence[int]) -> int:
        """Return the outputs of all matrices of an array."""
        stack = self.stack(shape)
        if stack is None:
            return shape[0 if self.layout == "out_in" else -1]
        view = axes.view(shape, self.layout, stack)
        return view.count * view.out

    def _units(self, family: str) -> list[plans.Plan]:
        """Return plans to draw each of them from a family at gain 1."""
        for shape in self.shapes:
            if len(shape) == 3 and self.batch_axes is None and self.blocks is None:
                raise SelectionError(
                    f"expected batch_axes= beside family= for a weight of shape {tuple(shape)}, "
                    "which may be a stack of matrices or the kernel of a convolution, received "
                    "none. Pass batch_axes=0 for a stack along the first axis, batch_axes=() for "
                    "one matrix, or leave the weight or family= out."
                )
        one = scale.Scale("gain", 1.0)
        return [
            plans.plan(family, s, self.layout, one, self.blocks, batch_axes=self.stack(s))
            for s in self.shapes
        ]

    def plans(self) -> list[plans.Plan]:
        """Return what to draw for each of them, at its own gain; nothing without a family.

        The gain at which draws of the family have its sum of squares in the mean.

        Raises
        ------
        FamilyError, ShapeError, SelectionError
            For a family that they cannot be, or axes whose meaning is not given.
        """
        if self.family is None:
            return []
        return [
            unit.with_value(math.sqrt(square / max(_mean_square(unit), 1)))
            for unit, square in zip(self._units(self.family), self.squares, strict=True)
        ]


def _mean_square(unit: plans.Plan) -> int:
    """Return the mean sum of squares of what a plan at gain 1 draws."""
    outputs = unit.rows * unit.columns // unit.fan_in
    block = min(unit.rows, unit.columns) if unit.family.isometric else outputs
    return unit.view.count * (unit.blocks or 1) * (block + unit.family.symmetry)
