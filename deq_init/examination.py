"""How a model is checked: what is measured, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deq_init import advice, fixed_point, jacobian, rounding, states
from deq_init._protocol import Array, IterationPrimitives
from deq_init.check import RTOL, STEPS, Look, Report, Spread, Verdict
from deq_init.errors import FunctionError, ShapeError, SolverError
from deq_init.redraws import Weights

_FLOOR = 0.03  # of |z0|: a contraction to zero settles from the radius on that another one does
_MEASURING_RTOL = 0.01
_NO_WEIGHTS = "name the weights for a suggested factor"
_CONTRACTING = 0.95  # radius below which 150 steps are enough near the fixed point
_CYCLE = (
    "the Jacobian contracts at the fixed point that Anderson acceleration found, and yet plain "
    "iteration does not come to it: it may cycle, or f may round"
)
_NORM_STEPS, _RADIUS_STEPS = 64, 128


@dataclass(frozen=True)
class Setting:
    """How the fixed point is looked for.

    Attributes
    ----------
    method : {"plain", "anderson"}
        The solver, if it is not the user's.
    solver : callable or None
        The user's: maps arrays of shape (batch, n), the starts, to fixed points.
    max_steps : int
        Evaluations of f at most; not for a solver of the user's.
    rounding : float
        Relative error of f's values.
    """

    method: fixed_point.Method = "plain"
    solver: Callable[[Array], Array] | None = None
    max_steps: int = STEPS
    rounding: float = 0.0

    @property
    def rtol(self) -> float:
        """Residual to which a sample must settle."""
        return max(RTOL, self.rounding)

    @property
    def words(self) -> str:
        """The solver, in words."""
        if self.solver is not None:
            return "the solver that was passed in"
        name = "plain iteration" if self.method == "plain" else "Anderson acceleration"
        return f"{self.max_steps} steps of {name}"


def setting(
    solver: Any,
    max_steps: Any,
    rounding: Any,
    layout: states.Layout,
    flatten: Callable[[Any], Callable[[Array], Array]],
) -> Setting:
    """Return what was asked for.

    Parameters
    ----------
    solver : {"plain", "anderson"} or callable
        The argument of ``check``.
    max_steps : int or None
        The same.
    rounding : float or None
        The same; by default the epsilon of the state's coarsest dtype.
    layout : states.Layout
        Of the state.
    flatten : callable
        Makes the user's solver one of arrays of shape (batch, n).

    Raises
    ------
    SolverError, ShapeError
        For options out of their ranges, or a batch of no samples.
    """
    if layout.batch == 0:
        raise ShapeError(
            "expected a batch of at least one sample to check, received none. Pass a z0 of some "
            "16 to 64 samples."
        )
    own = callable(solver)
    if own and max_steps is not None:
        raise SolverError(
            f"expected max_steps for solver='plain' or 'anderson' alone, received "
            f"max_steps={max_steps!r} and a solver. Let the solver stop after so many steps."
        )
    steps = STEPS if max_steps is None else max_steps
    least = layout.rounding
    result = Setting(
        "plain" if own else solver,
        flatten(solver) if own else None,
        steps,
        least if rounding is None else rounding,
    )
    fixed_point.require_options(result.method, RTOL, steps, rounding=result.rounding)
    return replace(result, rounding=max(float(result.rounding), least))


def look(
    xp: IterationPrimitives,
    f: Callable[[Array], Array],
    z0: Array,
    start: Array,
    products: jacobian.Products,
    how: Setting,
) -> tuple[Array, ...]:
    """Measure, for each sample; :func:`summarize` makes a :class:`Look` of it.

    Parameters
    ----------
    xp : IterationPrimitives
        The backend's arrays and loops.
    f : callable
        Maps arrays of shape (batch, n) to such, each row for itself.
    z0 : array, shape (batch, n)
        Where the iteration starts.
    start : array, shape (batch, n)
        Normals.
    products : callable
        ``products(z)`` returns products with the Jacobians of f at z and with their transposes.
    how : Setting
        How the fixed point is looked for.

    Returns
    -------
    tuple of array, shape (batch,)
        Settled, steps; found and steps by Anderson acceleration; norm, its error; radius, its
        error; adjoint amplification, and whether its equation was solved; what the first sample
        changes in each. Then where that was measured, shape (batch, n).
    """
    value, settled, steps = settle(xp, f, z0, how)
    anderson = fixed_point.solve(
        xp, f, z0, rtol=how.rtol, max_steps=STEPS, rounding=how.rounding, floor=_FLOOR
    )
    z = xp.where(settled[:, None], value, anderson.value)
    jvp, vjp = products(z)
    norm = jacobian.norm(xp, jvp, vjp, start, rtol=_MEASURING_RTOL, max_steps=_NORM_STEPS)
    radius = jacobian.radius(xp, jvp, start, rtol=_MEASURING_RTOL, max_steps=_RADIUS_STEPS)
    adjoint = fixed_point.solve(
        xp, lambda u: vjp(u) + start, start, rtol=_MEASURING_RTOL, max_steps=STEPS
    )
    grown = xp.sum(adjoint.value * adjoint.value, 1) / xp.sum(start * start, 1)
    alone = jvp(xp.concatenate([start[:1], start[1:] * 0.0], 0))
    return (
        settled,
        steps,
        anderson.converged,
        anderson.steps,
        norm.value,
        norm.error,
        radius.value,
        radius.error,
        grown,
        adjoint.converged,
        xp.sum(alone * alone, 1),
        z,
    )


def settle(
    xp: IterationPrimitives, f: Callable[[Array], Array], z0: Array, how: Setting
) -> tuple[Array, Array, Array]:
    """Return where the solver ends, whether each sample has settled there, and in how many steps.

    The steps of a solver of the user's are not known, and are 0.
    """
    if how.solver is None:
        solution = fixed_point.solve(
            xp,
            f,
            z0,
            method=how.method,
            rtol=how.rtol,
            max_steps=how.max_steps,
            rounding=how.rounding,
            floor=_FLOOR,
        )
        return solution.value, solution.converged, solution.steps
    z = how.solver(z0)
    y = f(z)
    size = xp.maximum(xp.lengths(y), _FLOOR * xp.lengths(z0))
    settled = xp.lengths(y - z) <= how.rtol * size  # False for what is not finite
    return z, settled, xp.integers(settled) * 0


def summarize(measured: Sequence[Any], how: Setting) -> Look:
    """Return the summary of what :func:`look` measured, as NumPy arrays.

    Raises
    ------
    FunctionError
        If f lets one sample change another: their Jacobians are then no matrices of their own.
    """
    settled, steps, by_anderson, anderson_steps, norm, norm_error, radius, radius_error, *rest = (
        np.asarray(x) for x in measured[:11]
    )
    grown, solved, alone = rest
    if (alone[1:] > 0).any():
        raise FunctionError(
            "expected f to map each sample for itself, received one in which the first sample "
            "changes others. Add a batch axis to a single state; put batch normalization into "
            "inference mode."
        )
    found = settled | by_anderson
    over = found if found.any() else np.ones_like(found)
    grown = grown[solved & over]
    deviation = np.std(grown, ddof=1) / len(grown) ** 0.5 if len(grown) > 1 else np.nan
    return Look(
        len(settled),
        float(settled.mean()),
        math.nan if how.solver is not None else _median(steps[settled]),
        float(found.mean()),
        _median(anderson_steps[by_anderson]),
        _spread(norm[over], norm_error[over]),
        _spread(radius[over], radius_error[over]),
        _spread(grown, np.full(len(grown), deviation)),
        how.words,
    )


@dataclass
class Model:
    """A model to check, in a backend's arrays, with the weights as they are at the time.

    Attributes
    ----------
    xp : IterationPrimitives
        The backend's arrays and loops.
    f : callable
        Maps arrays of shape (batch, n) to such, each row for itself.
    products : callable
        ``products(z)`` returns products with the Jacobians of f at z and with their transposes.
    z0, normals : array, shape (batch, n)
        Where the iteration starts, and what measurements start from.
    how : Setting
        How the fixed point is looked for.
    numbers : callable
        Makes what NumPy can read of an array.
    """

    xp: IterationPrimitives
    f: Callable[[Array], Array]
    products: jacobian.Products
    z0: Array
    normals: Array
    how: Setting
    numbers: Callable[[Array], Any] = np.asarray
    at: Array = field(init=False)
    """Where the last look ended."""

    def look(self) -> Look:
        """Return what is seen with the weights as they are."""
        measured = look(self.xp, self.f, self.z0, self.normals, self.products, self.how)
        self.at = measured[-1]
        return summarize([self.numbers(x) for x in measured[:-1]], self.how)

    def settled(self) -> float:
        """Return the share of the samples that settle."""
        return float(np.mean(self.numbers(settle(self.xp, self.f, self.z0, self.how)[1])))

    def fault(self) -> tuple[str, int]:
        """Return why f gives no verdict, or "", and for how many samples f(z0) is not finite.

        As far as a few evaluations tell.
        """
        began = self.f(self.z0)
        lost = int((~np.isfinite(self.values(self.z0, began)).all(1)).sum())
        if lost == len(self.z0):
            return (
                "f(z0) is not finite for any sample. Look at z0 and at what f reads: its weights "
                "and its input"
            ), lost
        once, again = self.values(began), self.values(began)
        off, above = rounding.relative(once - again, once), max(RTOL / 10, self.how.rounding)
        if off > above:
            return (
                f"f is random: two evaluations at one state differ by {off:.1g} of their "
                "length. Check without dropout and other random numbers"
            ), lost
        error = rounding.error(self.xp, self.f, began, self.normals, above, self.numbers)
        if error and self.settled() < 1:
            return (
                f"samples do not settle, and f rounds by about {error:.1g}. Check in float32, "
                "without autocast or a mixed policy; or pass rounding=2**-7 for bfloat16, "
                "rounding=2**-10 for float16"
            ), lost
        return "", lost

    def values(self, z: Array, y: Array | None = None) -> NDArray[Any]:
        """Return f(z), or what it was, as float64."""
        return np.array(self.numbers(self.f(z) if y is None else y), np.float64)


def examine(
    model: Model,
    layout: states.Layout,
    weights: Weights,
    *,
    scale: Callable[[float], None],
    draws: int,
    draw: Callable[[int], None],
    line: Callable[[float], str],
) -> Report:
    """Return the report on a model.

    Parameters
    ----------
    model : Model
        The model, with its weights as they were given.
    layout : deq_init.states.Layout
        Of its state.
    weights : Weights
        Those that were named.
    scale : callable
        Sets them to what they were given as, times a factor. Not called for a stable model.
    draws : int
        How many new draws to look at.
    draw : callable
        Sets them to new draws, from a number.
    line : callable
        Returns the line of code that multiplies them by a factor.
    """
    gain = weights.gain
    with np.errstate(all="ignore"):  # what overflows is an answer here
        fault, lost = model.fault()
        if fault:
            unseen = _unseen(layout.batch, model.how)
            return Report("unknown", fault, layout.n, unseen, weights.family, gain=gain)
        seen = model.look()
        at = model.at
        verdict, reason = seen.judgement
        redraws = []
        for number in range(draws):
            draw(number)
            redraws.append(model.look())
        base = Report(verdict, reason, layout.n, seen, weights.family, tuple(redraws), gain)
        if lost:
            return replace(base, note=f"f(z0) is not finite for {lost} of {layout.batch} samples")
        if seen.settled < 1 and seen.spectral_radius.high < _CONTRACTING and _is_long(model.how):
            base = replace(base, note=_CYCLE)
        if verdict == "stable":
            return (
                base if gain is None else replace(base, suggested_factor=1.0, suggested_gain=gain)
            )
        if gain is None:
            return replace(base, note=base.note or _NO_WEIGHTS)
        trials = _trials(model, at, scale)
        advised = (
            advice.for_lazy(trials)
            if verdict == "lazy"
            else advice.for_unsettled(trials, seen.settled)
        )
    if advised.factor is None:
        return replace(base, note="; ".join(filter(None, (base.note, advised.note))))
    return replace(
        base,
        suggested_factor=advised.factor,
        suggested_gain=gain * advised.factor,
        suggestion=line(advised.factor),
    )


def _trials(model: Model, z: Array, scale: Callable[[float], None]) -> advice.Trials:
    """Return what advice is found from; z is where the model ended as it is."""

    def settled(factor: float) -> float:
        scale(factor)
        return model.settled()

    def verdict(factor: float) -> Verdict:
        scale(factor)
        return model.look().judgement[0]

    def value(factor: float) -> NDArray[Any]:
        scale(factor)
        return model.values(z)

    def share(factor: float) -> float:
        without = value(0.0)
        left, whole = (float(np.linalg.norm(value(s) - without)) for s in (factor, 1.0))
        result = left / whole if whole > 0 else 0.0
        return 1.0 if math.isnan(result) else result  # f may not be defined without the weights

    return advice.Trials(settled, verdict, share)


def _is_long(how: Setting) -> bool:
    """Return whether a radius below ``_CONTRACTING`` should have been enough for this solver."""
    return how.solver is None and _CONTRACTING**how.max_steps < RTOL


def _unseen(samples: int, how: Setting) -> Look:
    """Return the look at a model at which nothing was measured."""
    nothing = Spread(math.nan, math.nan, math.nan, math.nan)
    return Look(
        samples, math.nan, math.nan, math.nan, math.nan, nothing, nothing, nothing, how.words
    )


def _spread(values: NDArray[Any], errors: NDArray[Any]) -> Spread:
    if not len(values):
        return Spread(math.nan, math.nan, math.nan, math.nan)
    numbers = np.asarray(values, np.float64)
    return Spread(
        float(numbers.mean()), float(numbers.min()), float(numbers.max()), float(np.mean(errors))
    )


def _median(values: NDArray[Any]) -> float:
    return float(np.median(values)) if len(values) else math.nan
