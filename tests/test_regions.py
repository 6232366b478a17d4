"""A part of an array equals that part of the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deq_init import plan as plans
from deq_init import regions, scale
from deq_init.numpy import primitives

from backends import FAMILIES, SQUARE


class Counted:
    """A field of normals that remembers how often each of them was asked for."""

    def __init__(self, shape, seed):
        self.shape = shape
        self.values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        self.times = np.zeros(shape, int)

    def __getitem__(self, region):
        self.times[region] += 1
        return self.values[region].copy()


@st.composite
def cases(draw):
    """A plan, and indices along each axis of its array."""
    family = draw(st.sampled_from(FAMILIES))
    n = draw(st.integers(1, 9))
    shapes = [((n, n), None), ((3 * n, n), 3), ((n, 2 * n), (2, 1))]
    if family not in SQUARE:
        shapes += [((n, 5), None), ((4, n, 3, 2), None), ((4, 2 * n, 3), (2, 1))]
    shape, blocks = draw(st.sampled_from(shapes))
    kind = draw(st.sampled_from(("gain", "spectral_norm")))
    if n == 1 and family == "antisymmetric":
        kind = "gain"
    named = {}
    if draw(st.booleans()):
        shapes = [
            ((3, n, 2, n), {"batch_axes": (2, 0)}),
            ((n, 3, n), {"batch_axes": 1, "in_axes": 0}),
        ]
        shape, named = draw(st.sampled_from(shapes))
        blocks = None
    plan = plans.plan(family, shape, "out_in", scale.Scale(kind, 0.7), blocks, None, **named)
    indices = [
        sorted(draw(st.sets(st.integers(0, length - 1), min_size=1, max_size=length)))
        for length in shape
    ]
    return plan, indices


def fields(plan):
    made = {}

    def normals(index):
        return made.setdefault(index, Counted((plan.rows, plan.columns), [*index, 7]))

    return made, normals


def as_runs(indices):
    result = []
    for i in indices:
        if result and result[-1].stop == i:
            result[-1] = range(result[-1].start, i + 1)
        else:
            result.append(range(i, i + 1))
    return result


@given(cases())
def test_a_part_is_that_part_of_the_whole(case):
    plan, indices = case
    whole = plan.sample(primitives.xp, fields(plan)[1])
    made, normals = fields(plan)
    part = regions.sample(plan, primitives.xp, normals, [as_runs(i) for i in indices])
    assert np.array_equal(part, whole[np.ix_(*indices)])
    drawn = sum(field.times.sum() for field in made.values())
    if plan.entrywise:
        assert drawn <= part.size


@pytest.mark.parametrize("family", SQUARE)
def test_a_large_part_across_the_diagonal(family):
    plan = plans.plan(family, (700, 700), "out_in", scale.Scale("gain", 0.7))
    whole = plan.sample(primitives.xp, fields(plan)[1])
    made, normals = fields(plan)
    part = regions.sample(plan, primitives.xp, normals, [[range(100, 650)], [range(20, 500)]])
    assert np.array_equal(part, whole[100:650, 20:500])
    # Above the diagonal, and on it, nothing is drawn twice; below, once more as the mirror image.
    assert made[()].times.max() <= 2
    assert made[()].times.sum() <= part.size


@given(st.integers(0, 40), st.integers(1, 7))
def test_chunks_are_in_order_and_complete(length, count):
    # PyTorch's chunks: all as long as the first, then a shorter one, then none.
    size = -(-length // count)
    expected = [list(range(length))[i * size : (i + 1) * size] for i in range(count)]
    found = [regions.chunk([range(length)], count, i) for i in range(count)]
    assert [[j for r in runs for j in r] for runs in found] == expected
    gaps = [range(0, 2), range(5, 6), range(7, 12)]
    pieces = [regions.chunk(gaps, count, i) for i in range(count)]
    assert [j for runs in pieces for r in runs for j in r] == [j for r in gaps for j in r]
