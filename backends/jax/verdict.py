"""A verdict on a JAX model, from its fixed point and the Jacobian there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from deq_init import examination
from deq_init import plan as plans
from deq_init.check import Report
from deq_init.errors import SelectionError
from deq_init.jax.eager import Compiled
from deq_init.jax.jacobian import Flat, Function, State, chosen_weights, normals, times
from deq_init.jax.sampling import sample
from deq_init.jax.selection import require_layout
from deq_init.numpy.iteration import xp
from deq_init.redraws import Weights, require_draws


def check(
    f: Callable[[Any, State], State],
    params: Any,
    z0: State,
    *,
    where: str | Sequence[str] | Callable[[str, Any], bool] | None = None,
    family: str | None = None,
    draws: int = 4,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    layout: plans.Layout = "in_out",
    solver: str | Callable[[Function, State], State] = "plain",
    max_steps: int | None = None,
    rounding: float | None = None,
) -> Report:
    """Return whether z = f(params, z) starts lazy, stable, critical or divergent, and what helps.

    Parameters
    ----------
    f : callable
        ``f(params, z)`` maps a state to one like it, each sample for itself, and can be traced and
        differentiated.
    params : pytree
        Parameters of f; for a function without weights, None or what it takes: it gets no
        suggestion.
    z0 : pytree of Array, shape (batch, ...)
        Where the model's iteration starts, for some 16 to 64 samples.
    where : str, sequence of str or callable, optional
        The weights that f applies again and again, as in :func:`rescale_jacobian`.
    family : {"random", "orthogonal", "goe", "antisymmetric"}, optional
        Look at new draws of the weights from this family too, at their own gains.
    draws : int
        How many.
    blocks : int or (int, int), optional
        Of the new draws, as in :func:`random`.
    batch_axes : int or sequence of int, optional
        Along which weights of three axes and more are stacks of matrices. With a family, those of
        three axes need it: () for one matrix, such as a convolution's.
    layout : {"in_out", "out_in"}
        Whether layers compute ``z @ kernel`` (Flax, Haiku) or ``weight @ z`` (Equinox).
    solver : {"plain", "anderson"} or callable
        What must bring the samples to their fixed points for a model to be stable: plain iteration,
        Anderson acceleration, or ``solver(f, z0) -> z``; it is traced, and
        its f takes z alone.
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
    ShapeError, DTypeError, SolverError, FunctionError, FamilyError, SelectionError
        For arguments that are not as above. Divergence raises nothing.

    Notes
    -----
    The rule is in the text of :mod:`deq_init.check`, how a factor is suggested in that of
    :mod:`deq_init.advice`. f and its derivatives are compiled once for each call; the
    iterations around them run in NumPy. Not for use under ``jax.jit``.

    Examples
    --------
    >>> params = {"w": 1.5 * jax.numpy.eye(64)}
    >>> f = lambda params, z: z @ params["w"] + 1
    >>> report = check(f, params, jax.numpy.zeros((2, 64)))
    >>> report.verdict, round(report.suggested_gain, 1)
    ('divergent', 0.7)
    """
    require_layout(layout)
    flat = Flat(z0)
    leaves, structure = jax.tree_util.tree_flatten(params)
    try:
        chosen = sorted(chosen_weights(params, where))
    except SelectionError:
        if where is not None:
            raise
        chosen = []
    count = require_draws(draws, family, bool(chosen))
    given = weights = [leaves[i] for i in chosen]
    how = examination.setting(
        solver,
        max_steps,
        rounding,
        flat.layout,
        lambda own: lambda z: np.asarray(solved(weights, z, own)),
    )
    known = Weights(
        [leaf.shape for leaf in given],
        [float(np.square(np.asarray(leaf, np.float64)).sum()) for leaf in given],
        layout,
        family,
        blocks,
        batch_axes,
    )
    requests = known.plans()

    def params_with(weights: list[jax.Array]) -> Any:
        new = list(leaves)
        for index, weight in zip(chosen, weights, strict=True):
            new[index] = weight
        return jax.tree_util.tree_unflatten(structure, new)

    def function(weights: list[jax.Array], z: jax.Array) -> jax.Array:
        new = params_with(weights)
        return flat.map(lambda z: f(new, z))(z)

    @partial(jax.jit, static_argnums=2)
    def solved(weights: list[jax.Array], z: jax.Array, own: Any) -> jax.Array:
        new = params_with(weights)
        return flat.flatten(own(lambda z: f(new, z), flat.unflatten(z)), "solver")

    def scale(factor: float) -> None:
        nonlocal weights
        weights = [times(weight, factor) for weight in given]

    def draw(number: int) -> None:
        nonlocal weights
        weights = [
            sample(
                request.with_value(1.0),
                weight.dtype.name,
                None,
                jax.random.fold_in(jax.random.key(number), index),
                request.scale.value,
            )
            for weight, index, request in zip(given, chosen, requests, strict=True)
        ]

    compiled, start = Compiled(function), flat.flatten(z0)
    model = examination.Model(
        xp,
        lambda z: compiled(weights, z),
        lambda z: compiled.products(weights, z),
        np.asarray(start),
        np.asarray(normals(start)),
        how,
    )
    return examination.examine(
        model,
        flat.layout,
        known,
        scale=scale,
        draws=count,
        draw=draw,
        line=lambda factor: _line(factor, where),
    )


def _line(factor: float, where: Any) -> str:
    named = "where" if callable(where) else repr(where)
    chosen = f", where={named}" if where is not None else ""
    return f"params = deq_init.jax.multiply(params, {factor:g}{chosen})"
