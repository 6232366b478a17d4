"""A verdict on a Keras model, from its fixed point and the Jacobian there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras import ops

from deq_init import examination, selection
from deq_init import plan as plans
from deq_init.check import Report
from deq_init.examination import Model, Setting
from deq_init.keras import sampling
from deq_init.keras.states import Flat, Function, State, Vectors
from deq_init.keras.variables import frobenius, restored, times, variables_of
from deq_init.redraws import Weights, require_draws


def check(
    f: Function,
    z0: State,
    *,
    weights: keras.Variable | Iterable[keras.Variable] | None = None,
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
    ShapeError, DTypeError, SolverError, FunctionError, FamilyError, SelectionError
        For arguments that are not as above. Divergence raises nothing.

    Notes
    -----
    The rule is in the text of :mod:`deq_init.check`, how a factor is suggested in that of
    :mod:`deq_init.advice`. Runs eagerly, not within ``tf.function`` or ``jax.jit``.

    Examples
    --------
    >>> layer = keras.layers.Dense(64, kernel_initializer=keras.initializers.Identity(1.5))
    >>> layer.build((None, 64))
    >>> report = check(lambda z: layer(z) + 1, keras.ops.zeros((2, 64)), weights=layer.kernel)
    >>> report.verdict, round(report.suggested_gain, 1)
    ('divergent', 0.7)
    """
    flat = Flat(z0)
    none = weights is None or (isinstance(weights, (list, tuple)) and not weights)
    variables = [] if none else variables_of(weights)
    count = require_draws(draws, family, bool(variables))
    how = examination.setting(solver, max_steps, rounding, flat.layout, _own(flat, f))
    known = Weights(
        [tuple(v.shape) for v in variables],
        [frobenius(v) ** 2 for v in variables],
        "in_out",
        family,
        blocks,
        batch_axes,
    )
    requests = known.plans()
    originals = [ops.copy(variable.value) for variable in variables]

    def scale(factor: float) -> None:
        for variable, original in zip(variables, originals, strict=True):
            variable.assign(times(original, factor))

    def draw(number: int) -> None:
        for index, (variable, plan) in enumerate(zip(variables, requests, strict=True)):
            seed = selection.seed_of(number, str(index))
            value = sampling.sample(plan, seed, plans.compute_dtype(variable.dtype))
            variable.assign(ops.cast(value, variable.dtype))

    with restored(variables):
        return examination.examine(
            _model(flat.map(f), variables, flat.flatten(z0), how),
            flat.layout,
            known,
            scale=scale,
            draws=count,
            draw=draw,
            line=lambda factor: f"deq_init.keras.multiply(weights, {factor:g})",
        )


if keras.backend.backend() == "torch":
    import torch

    from deq_init.torch import verdict as _torch

    def _own(flat: Flat, f: Function) -> Callable[[Any], Callable[[Any], Any]]:
        """Return what makes a solver of the user's one of tensors of shape (batch, n)."""

        def flattened(own: Any) -> Callable[[Any], Any]:
            @torch.no_grad()
            def solve(z: Any) -> Any:
                return flat.flatten(own(f, flat.unflatten(z)), "solver")

            return solve

        return flattened

    def _model(f: Vectors, variables: Sequence[keras.Variable], z0: Any, how: Setting) -> Model:
        return _torch.model(f, z0.detach(), how)

else:
    from deq_init.keras import loops

    _own, _model = loops.own, loops.model
