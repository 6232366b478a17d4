"""A verdict on a Keras model, from its fixed point and the Jacobian there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from deq_init import check as core
from deq_init import plan as plans
from deq_init import selection
from deq_init.check import Look, Report
from deq_init.jacobian import Rescaling
from deq_init.keras import sampling
from deq_init.keras.jacobian import rescale_jacobian
from deq_init.keras.states import Flat, Function, State, Vectors
from deq_init.keras.variables import frobenius, restored, variables_of
from deq_init.states import Layout


def check(
    f: Function,
    z0: State,
    *,
    weights: keras.Variable | Iterable[keras.Variable] | None = None,
    family: str | None = None,
    draws: int = 4,
    blocks: int | tuple[int, int] | None = None,
) -> Report:
    """Say whether z = f(z) starts lazy, stable, critical or divergent, and what gain to use.

    Parameters
    ----------
    f : callable
        Maps a state to one like it, each sample for itself, and is differentiable; see
        :func:`fixed_point`.
    z0 : tensor of shape (batch, ...), or tuple, list or dict of such
        Where the model's iteration starts, for some 16 to 64 samples.
    weights : keras.Variable or iterable of keras.Variable, optional
        The variables that f applies again and again, such as ``layer.kernel``. With them, a model
        that is not stable gets a suggested gain. They are as they were afterwards.
    family : {"random", "orthogonal", "goe", "antisymmetric"}, optional
        Look at new draws of the weights from this family too, at their own gains.
    draws : int
        How many.
    blocks : int or (int, int), optional
        Of the new draws, as in :class:`Random`.

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
    The rule is in the text of :mod:`deq_init.check`. Runs eagerly, not within ``tf.function`` or
    ``jax.jit``.

    Examples
    --------
    >>> layer = keras.layers.Dense(64, kernel_initializer=keras.initializers.Identity(1.5))
    >>> layer.build((None, 64))
    >>> report = check(lambda z: layer(z) + 1, keras.ops.zeros((2, 64)), weights=layer.kernel)
    >>> report.verdict, round(report.suggested_gain, 2)
    ('divergent', 0.9)
    """
    flat = Flat(z0)
    none = weights is None or (isinstance(weights, (list, tuple)) and not weights)
    variables = [] if none else variables_of(weights)
    count = core.require_draws(draws, family, bool(variables))
    function, start = flat.map(f), flat.flatten(z0)
    known = core.Weights(
        [tuple(v.shape) for v in variables],
        [frobenius(v) ** 2 for v in variables],
        "in_out",
        family,
    )
    requests = known.plans(blocks)
    with restored(variables):
        seen = _look(function, variables, start, flat.layout)
        redraws = []
        for draw in range(count):
            for index, (variable, plan) in enumerate(zip(variables, requests, strict=True)):
                seed = selection.seed_of(draw, str(index))
                value = sampling.sample(plan, seed, plans.compute_dtype(variable.dtype))
                variable.assign(ops.cast(value, variable.dtype))
            redraws.append(_look(function, variables, start, flat.layout))

    def rescale(norm: float) -> tuple[Rescaling, Look]:
        with restored(variables):
            result = rescale_jacobian(variables, f, z0, jacobian_norm=norm)
            return result, _look(
                function, variables, start, flat.layout
            ) if result.reached else seen

    return core.report(seen, flat.layout, known, redraws, rescale=rescale, suggestion=_SUGGESTION)


_SUGGESTION = "deq_init.keras.rescale_jacobian(weights, f, z0, jacobian_norm={norm})"


if keras.backend.backend() == "torch":
    from deq_init.torch import verdict as _torch

    def _look(f: Vectors, variables: Sequence[keras.Variable], z0: Any, layout: Layout) -> Look:
        """Return what is seen with the variables as they are."""
        return _torch.look(f, z0, layout)

else:
    from deq_init.keras import loops

    _look = loops.look
