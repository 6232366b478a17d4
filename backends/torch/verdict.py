"""A verdict on a PyTorch model, from its fixed point and the Jacobian there."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor

from deq_init import check as core
from deq_init import selection
from deq_init.check import Look, Report
from deq_init.jacobian import Rescaling
from deq_init.states import Layout
from deq_init.torch import filling
from deq_init.torch.iteration import xp
from deq_init.torch.jacobian import (
    Function,
    Product,
    Scaled,
    normals,
    products,
    rescale_jacobian_,
    weights_of,
)
from deq_init.torch.states import Flat, State


def check(
    f: Function,
    z0: State,
    *,
    weights: Tensor | Iterable[Tensor] | None = None,
    family: str | None = None,
    draws: int = 4,
    blocks: int | tuple[int, int] | None = None,
) -> Report:
    """Say whether z = f(z) starts lazy, stable, critical or divergent, and what gain to use.

    Parameters
    ----------
    f : callable
        Maps a state to one like it, each sample for itself, and is differentiable. A module is
        called in the mode that it is in: put one with dropout or batch normalization into
        ``eval()`` mode.
    z0 : Tensor of shape (batch, ...), or tuple, list or dict of such
        Where the model's iteration starts, for some 16 to 64 samples.
    weights : Tensor or iterable of Tensor, optional
        The weights that f applies again and again. With them, a model that is not stable gets a
        suggested gain. They are as they were afterwards.
    family : {"random", "orthogonal", "goe", "antisymmetric"}, optional
        Look at new draws of the weights from this family too, at their own gains.
    draws : int
        How many.
    blocks : int or (int, int), optional
        Of the new draws, as in :func:`random_`.

    Returns
    -------
    deq_init.check.Report
        ``print`` it for a table; ``to_dict()`` gives plain data.

    Raises
    ------
    ShapeError, DTypeError, SolverError, FunctionError, FamilyError, WeightError, SelectionError
        For arguments that are not as above. Divergence raises nothing.

    Notes
    -----
    The rule is in the text of :mod:`deq_init.check`. Costs some 400 evaluations of f, as many
    products with the Jacobian, and memory for 128 states, each time that it looks.

    Examples
    --------
    >>> weight = 1.5 * torch.eye(64)
    >>> report = check(lambda z: z @ weight.T + 1, torch.zeros(2, 64), weights=weight)
    >>> report.verdict, round(report.suggested_gain, 2)
    ('divergent', 0.9)
    """
    flat = Flat(z0)
    chosen = [] if weights is None else weights_of(weights)
    scaled = Scaled(chosen) if chosen else None
    count = core.require_draws(draws, family, bool(chosen))
    function, start = flat.map(f), flat.flatten(z0).detach()
    sizes = [] if scaled is None else scaled.sizes()
    known = core.Weights(
        [shape for shape, _ in sizes], [norm**2 for _, norm in sizes], "out_in", family
    )
    requests = known.plans(blocks)
    with nullcontext() if scaled is None else scaled.restored_unless_kept():
        seen = look(function, start, flat.layout)
        redraws = []
        if scaled is not None and count:
            scaled.written = True
        for draw in range(count):
            for index, (w, plan) in enumerate(zip(chosen, requests, strict=True)):
                seed = selection.seed_of(draw, str(index))
                filling.fill(plan.family.name, w, plan.scale, blocks, None, seed, None)
            redraws.append(look(function, start, flat.layout))

    def rescale(norm: float) -> tuple[Rescaling, Look]:
        with Scaled(chosen).restored_unless_kept() as kept:
            kept.written = True
            result = rescale_jacobian_(chosen, f, z0, jacobian_norm=norm)
            return result, look(function, start, flat.layout) if result.reached else seen

    return core.report(seen, flat.layout, known, redraws, rescale=rescale, suggestion=_SUGGESTION)


_SUGGESTION = "deq_init.torch.rescale_jacobian_(weights, f, z0, jacobian_norm={norm})"


def look(f: Product, z0: Tensor, layout: Layout) -> Look:
    """Return what is seen from z0, of shape (batch, n), with the weights as they are."""
    with torch.no_grad():
        measured = core.look(xp, f, z0, normals(z0), lambda z: products(f, z), layout)
    return core.summarize([x.cpu() for x in measured])
