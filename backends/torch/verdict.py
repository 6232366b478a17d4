"""A verdict on a PyTorch model, from its fixed point and the Jacobian there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from deq_init import examination, selection
from deq_init.check import Report
from deq_init.examination import Model, Setting
from deq_init.redraws import Weights, require_draws
from deq_init.torch import filling
from deq_init.torch.iteration import xp
from deq_init.torch.jacobian import Function, Product, Scaled, normals, products, weights_of
from deq_init.torch.states import Flat, State


def check(
    f: Function,
    z0: State,
    *,
    weights: Tensor | Iterable[Tensor] | None = None,
    family: str | None = None,
    draws: int = 4,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    solver: str | Callable[[Function, State], State] = "plain",
    max_steps: int | None = None,
    rounding: float | None = None,
) -> Report:
    """Return whether z = f(z) starts lazy, stable, critical or divergent, and what helps.

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
    batch_axes : int or sequence of int, optional
        Along which weights of three axes and more are stacks of matrices. With a family, those of
        three axes need it: () for one matrix, such as a convolution's.
    solver : {"plain", "anderson"} or callable
        What must bring the samples to their fixed points for a model to be stable: plain iteration,
        Anderson acceleration, or ``solver(f, z0) -> z``.
    max_steps : int, optional
        In how many steps, for the two named ones; 200 by default.
    rounding : float, optional
        Relative error of f's values, to which samples then settle: say 2**-7 for an f that computes
        in bfloat16. By default the epsilon of z0's coarsest dtype.

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
    The rule is in the text of :mod:`deq_init.check`, how a factor is suggested in that of
    :mod:`deq_init.advice`. A look costs some 400 evaluations of f, as many products with the
    Jacobian, and memory for 128 states. A model gets one, and one for each new draw; a suggestion
    takes up to 2,000 evaluations more, or for a lazy model some looks. An f that is random is
    found out in three evaluations.

    Examples
    --------
    >>> weight = 1.5 * torch.eye(64)
    >>> report = check(lambda z: z @ weight.T + 1, torch.zeros(2, 64), weights=weight)
    >>> report.verdict, round(report.suggested_gain, 1)
    ('divergent', 0.7)
    """
    flat = Flat(z0)
    chosen = [] if weights is None else weights_of(weights)
    scaled = Scaled(chosen) if chosen else None
    count = require_draws(draws, family, bool(chosen))
    how = examination.setting(
        solver,
        max_steps,
        rounding,
        flat.layout,
        lambda own: lambda z: flat.flatten(own(f, flat.unflatten(z.clone())), "solver"),
    )
    sizes = [] if scaled is None else scaled.sizes()
    known = Weights(
        [shape for shape, _ in sizes],
        [norm**2 for _, norm in sizes],
        "out_in",
        family,
        blocks,
        batch_axes,
    )
    requests = known.plans()

    def scale(factor: float) -> None:
        if scaled is not None:
            scaled.multiply(factor)

    def draw(number: int) -> None:
        if scaled is not None:
            scaled.written = True
        for index, (w, plan) in enumerate(zip(chosen, requests, strict=True)):
            seed = selection.seed_of(number, str(index))
            named = (known.stack(w.shape), None, None)
            filling.fill(plan.family.name, w, plan.scale, blocks, None, seed, None, named)

    with nullcontext() if scaled is None else scaled.restored_unless_kept(), torch.no_grad():
        return examination.examine(
            model(flat.map(f), flat.flatten(z0).detach(), how),
            flat.layout,
            known,
            scale=scale,
            draws=count,
            draw=draw,
            line=lambda factor: f"deq_init.torch.multiply_(weights, {factor:g})",
        )


def model(f: Product, z0: Tensor, how: Setting) -> Model:
    """Return what is to be examined, from z0 of shape (batch, n)."""
    return Model(
        xp,
        torch.no_grad()(f),
        lambda z: products(f, z),
        z0,
        normals(z0),
        how,
        numbers=lambda x: x.detach().cpu().numpy(),
    )
