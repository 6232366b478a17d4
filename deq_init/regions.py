"""A part of an array, sampled on its own: what one device of a sharded array holds.

At a gain, every entry of a random, GOE or antisymmetric matrix is a multiple of one normal, so a
part costs only its own normals. An orthogonal matrix, and one with a spectral norm or radius, has
to be known in full: the part is cut out of it. Either way the part equals that of the full array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from deq_init._protocol import Array, MatrixPrimitives
from deq_init.families import Normals
from deq_init.plan import Index, Plan

Runs = Sequence[range]
"""Indices along one axis, in ascending order, as ranges of step 1 with gaps between them."""


def chunk(indices: Runs, count: int, index: int) -> list[range]:
    """Return chunk number ``index`` of ``count``: all as long as the first, as far as they go.

    Examples
    --------
    >>> [chunk([range(5)], 3, i) for i in range(3)]
    [[range(0, 2)], [range(2, 4)], [range(4, 5)]]
    >>> chunk([range(0, 2), range(6, 8)], 2, 1)
    [range(6, 8)]
    """
    size = -(-sum(map(len, indices)) // count)
    start, stop = index * size, (index + 1) * size
    result = []
    for r in indices:
        result.append(r[max(start, 0) : max(stop, 0)])
        start, stop = start - len(r), stop - len(r)
    return [r for r in result if r]


def sample(
    plan: Plan,
    xp: MatrixPrimitives,
    normals: Callable[[Index], Normals],
    parts: Sequence[Runs],
) -> Array:
    """Return a part of an array of layout "out_in": what ``plan.sample`` has at these indices.

    Parameters
    ----------
    plan : Plan
        The request for the whole array.
    xp : MatrixPrimitives
        The backend's linear algebra.
    normals : callable
        As for :meth:`deq_init.plan.Plan.sample`. Matrices that the part does not meet are not asked
        for, so the fields must not depend on the order of the calls.
    parts : sequence of sequence of range
        Which indices, for each axis of the array; none of them empty.

    Returns
    -------
    array, shape (number of indices along each axis)
    """
    view = plan.view
    if view.batch or not view.ordered:
        return _stack(plan, xp, normals, [parts[axis] for axis in view.order])
    if plan.blocks is None:
        return _block(plan, xp, normals(()), parts)
    length = plan.block_shape[plan.axis]
    pieces = []
    for block in range(plan.blocks):
        own = _within(parts[plan.axis], block * length, length)
        if own:
            inner = [*parts[: plan.axis], own, *parts[plan.axis + 1 :]]
            pieces.append(_block(plan, xp, normals((block,)), inner))
    return xp.concatenate(pieces, plan.axis)


def _stack(
    plan: Plan,
    xp: MatrixPrimitives,
    normals: Callable[[Index], Normals],
    parts: Sequence[Runs],
) -> Array:
    """Return a part of a stack, given by its indices along each axis in the order of the view."""
    view, own = plan.view, plan.slice
    batch = len(view.batch)
    size = [sum(map(len, part)) for part in parts]
    pieces = []
    for place in product(*([i for r in part for i in r] for part in parts[:batch])):
        number = 0
        for length, i in zip(view.stacked, place, strict=False):
            number = number * length + i
        one = sample(own, xp, _of_slice(normals, (number,) if batch else ()), parts[batch:])
        pieces.append(xp.reshape(one, (1, *size[batch:])))
    stacked = xp.reshape(xp.concatenate(pieces, 0), tuple(size))
    return stacked if view.ordered else xp.transpose(stacked, view.inverse)


def _of_slice(normals: Callable[[Index], Normals], own: Index) -> Callable[[Index], Normals]:
    """Return the fields of one slice's matrices."""
    return lambda index: normals(own + index)


def _within(indices: Runs, start: int, length: int) -> list[range]:
    """Return the indices in [start, start + length), counted from its start."""
    cut = (range(max(r.start - start, 0), min(r.stop - start, length)) for r in indices)
    return [r for r in cut if r]


def _block(plan: Plan, xp: MatrixPrimitives, g: Normals, parts: Sequence[Runs]) -> Array:
    """Return a part of one block, from the block's own normals."""
    view = plan.view
    first = len(view.outputs if view.layout == "out_in" else view.inputs)
    rows = _flatten(plan.block_shape[:first], parts[:first])
    columns = _flatten(plan.block_shape[first:], parts[first:])
    if plan.entrywise:
        w = _tile(xp, rows, columns, lambda r, c: _rectangle(xp, plan, g, r, c))
    else:
        full = plan.realize(xp, g)
        w = _tile(xp, rows, columns, lambda r, c: _slice(full, r, c))
    return xp.reshape(w, tuple(sum(map(len, part)) for part in parts))


def _flatten(shape: Sequence[int], parts: Sequence[Runs]) -> list[range]:
    """Return the runs of the row-major indices of a product of runs."""
    result = [range(1)]
    for length, part in zip(shape, parts, strict=True):
        if list(part) == [range(length)]:
            result = [range(r.start * length, r.stop * length) for r in result]
        else:
            starts = [i * length for r in result for i in r]
            result = [range(i + p.start, i + p.stop) for i in starts for p in part]
    return result


@dataclass(frozen=True)
class _Window:
    """The square of a field of normals that lies on its diagonal from ``start`` to ``stop``."""

    g: Normals
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start,) * 2

    def __getitem__(self, region: tuple[slice, slice]) -> Array:
        rows, columns = (range(self.start, self.stop)[part] for part in region)
        return _slice(self.g, rows, columns)


def _rectangle(xp: MatrixPrimitives, plan: Plan, g: Normals, rows: range, columns: range) -> Array:
    """Return a rectangle of one block, without drawing more normals than it has entries."""
    symmetry = plan.family.symmetry
    if not symmetry or columns.start >= rows.stop:
        return _slice(g, rows, columns) * plan.factor
    if rows.start >= columns.stop:
        return xp.transpose(_slice(g, columns, rows)) * (plan.factor * symmetry)
    start, stop = max(rows.start, columns.start), min(rows.stop, columns.stop)
    if rows == columns:
        return plan.family.transform(xp, _Window(g, start, stop), plan.factor)
    return _tile(
        xp,
        _cut(rows, start, stop),
        _cut(columns, start, stop),
        lambda r, c: _rectangle(xp, plan, g, r, c),
    )


def _tile(
    xp: MatrixPrimitives, rows: Runs, columns: Runs, piece: Callable[[range, range], Array]
) -> Array:
    """Return the matrix made of one piece for each run of rows and columns."""
    if len(rows) == len(columns) == 1:
        return piece(rows[0], columns[0])
    bands = [xp.concatenate([piece(r, c) for c in columns], 1) for r in rows]
    return xp.concatenate(bands, 0)


def _slice(g: Normals, rows: range, columns: range) -> Array:
    """Return these rows and columns."""
    return g[rows.start : rows.stop, columns.start : columns.stop]


def _cut(indices: range, *at: int) -> list[range]:
    """Return the parts of a range between these of its indices."""
    edges = sorted({indices.start, *at, indices.stop})
    return [range(a, b) for a, b in pairwise(edges)]
