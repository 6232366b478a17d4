"""A verdict on a JAX model, from its fixed point and the Jacobian there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from deq_init import check as core
from deq_init import plan as plans
from deq_init.check import Look, Report
from deq_init.errors import SelectionError
from deq_init.jacobian import Rescaling
from deq_init.jax.eager import Compiled
from deq_init.jax.jacobian import Flat, State, chosen_weights, normals, rescale_jacobian
from deq_init.jax.sampling import sample
from deq_init.jax.selection import require_layout
from deq_init.numpy.iteration import xp


def check(
    f: Callable[[Any, State], State],
    params: Any,
    z0: State,
    *,
    where: str | Sequence[str] | Callable[[str, Any], bool] | None = None,
    family: str | None = None,
    draws: int = 4,
    blocks: int | tuple[int, int] | None = None,
    layout: plans.Layout = "in_out",
) -> Report:
    """Say whether z = f(params, z) starts lazy, stable, critical or divergent, and a better gain.

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
    layout : {"in_out", "out_in"}
        Whether layers compute ``z @ kernel`` (Flax, Haiku) or ``weight @ z`` (Equinox).

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
    The rule is in the text of :mod:`deq_init.check`. f and its derivatives are compiled once for
    each call; the iterations around them run in NumPy. Not for use under ``jax.jit``.

    Examples
    --------
    >>> params = {"w": 1.5 * jax.numpy.eye(64)}
    >>> f = lambda params, z: z @ params["w"] + 1
    >>> report = check(f, params, jax.numpy.zeros((2, 64)))
    >>> report.verdict, round(report.suggested_gain, 2)
    ('divergent', 0.9)
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
    count = core.require_draws(draws, family, bool(chosen))
    known = core.Weights(
        [leaves[i].shape for i in chosen],
        [float(np.square(np.asarray(leaves[i], np.float64)).sum()) for i in chosen],
        layout,
        family,
    )
    requests = known.plans(blocks)

    def function(weights: list[jax.Array], z: jax.Array) -> jax.Array:
        new = list(leaves)
        for index, weight in zip(chosen, weights, strict=True):
            new[index] = weight
        new_params = jax.tree_util.tree_unflatten(structure, new)
        return flat.map(lambda z: f(new_params, z))(z)

    compiled, start = Compiled(function), flat.flatten(z0)
    began, vectors = np.asarray(start), np.asarray(normals(start))

    # What overflows is an answer here.
    @np.errstate(all="ignore")
    def look(weights: list[jax.Array]) -> Look:
        measured = core.look(
            xp,
            lambda z: compiled(weights, z),
            began,
            vectors,
            lambda z: compiled.products(weights, z),
            flat.layout,
        )
        return core.summarize(measured)

    seen = look([leaves[i] for i in chosen])
    redraws = [
        look(
            [
                sample(
                    request.with_value(1.0),
                    leaves[index].dtype.name,
                    None,
                    jax.random.fold_in(jax.random.key(draw), index),
                    request.scale.value,
                )
                for index, request in zip(chosen, requests, strict=True)
            ]
        )
        for draw in range(count)
    ]

    def rescale(norm: float) -> tuple[Rescaling, Look]:
        new, result = rescale_jacobian(f, params, z0, where=where, jacobian_norm=norm)
        scaled = jax.tree_util.tree_leaves(new)
        return result, look([scaled[i] for i in chosen]) if result.reached else seen

    return core.report(
        seen, flat.layout, known, redraws, rescale=rescale, suggestion=_suggestion(where)
    )


def _suggestion(where: Any) -> str:
    named = "where" if callable(where) else repr(where)
    chosen = f", where={named}" if where is not None else ""
    return "params, _ = deq_init.jax.rescale_jacobian(f, params, z0, jacobian_norm={norm}" + (
        chosen + ")"
    ).replace("{", "{{").replace("}", "}}")
