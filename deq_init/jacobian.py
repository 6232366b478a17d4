r"""Norm and radius of the Jacobian of :math:`z \mapsto f(z)`, and weights scaled to a target.

A batch is one block-diagonal operator: a product of the whole batch with one vector gives every
sample's product with its own, so the Jacobians are never formed. The norm is found by Lanczos on
:math:`J^T J`, a forward and a reverse product for each step; the radius by Arnoldi on J.

The Jacobian at the fixed point depends on the scale s of the weights through the fixed point too,
so its norm g(s) is not proportional to s, nor always increasing, and for ReLU it jumps.
:func:`search` finds s with g(s) at the target by a secant in (log s, log g(s)) that is kept inside
a bracket. A lost fixed point counts as g = inf.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from deq_init import fixed_point, spectra
from deq_init._protocol import Array, IterationPrimitives
from deq_init.errors import ScaleError
from deq_init.spectra import Estimate

Kind = Literal["jacobian_norm", "spectral_radius"]

MAX_STEPS: dict[Kind, int] = {"jacobian_norm": 128, "spectral_radius": 256}
"""Steps of Lanczos and Arnoldi at most."""

SOLVER_STEPS = 1000
"""Evaluations of f for one fixed point at most, when weights are rescaled."""

_SOLVES = 12
_FARTHEST = math.log(4.0)  # one step's factor, where nothing brackets the target
_TINY = 1e-30


@dataclass(frozen=True)
class Target:
    """What is measured, the value it shall have, and how accurately.

    Attributes
    ----------
    kind : {"jacobian_norm", "spectral_radius"}
        The quantity, a mean over the batch.
    value : float
        Its target, finite and positive.
    rtol : float
        Relative error that is good enough.
    """

    kind: Kind
    value: float
    rtol: float

    @property
    def measuring_rtol(self) -> float:
        """How accurately to measure each sample."""
        return self.rtol / 5

    @property
    def solving_rtol(self) -> float:
        """How accurately to solve for the fixed point."""
        return self.rtol / 100


@dataclass(frozen=True)
class Measurement:
    """What was found at one scale of the weights.

    Attributes
    ----------
    value, error : float
        Mean of the norm or radius over the batch, and of its error estimates.
    found : bool
        Whether every sample's fixed point was found.
    """

    value: float
    error: float
    found: bool


@dataclass(frozen=True)
class Rescaling:
    """How weights were scaled to give the Jacobian its norm or radius.

    Attributes
    ----------
    factor : float
        What the weights were multiplied by; if the target was not reached, what gave ``achieved``,
        and the weights are as they were.
    achieved : float
        The value nearest to the target that was measured at a fixed point, a mean over the batch;
        NaN if no fixed point was found.
    target : float
        The value asked for.
    solves : int
        Fixed points that were solved for.
    reached : bool
        Whether the target was met to the tolerance.
    reason : str
        Why not, or "".
    """

    factor: float
    achieved: float
    target: float
    solves: int
    reached: bool
    reason: str


def norm(
    xp: IterationPrimitives,
    jvp: Callable[[Array], Array],
    vjp: Callable[[Array], Array],
    start: Array,
    *,
    rtol: float,
    max_steps: int,
) -> Estimate:
    """Return the spectral norm of each sample's Jacobian.

    Parameters
    ----------
    xp : IterationPrimitives
        The backend's arrays and loops.
    jvp, vjp : callable
        Products with the Jacobians and with their transposes, (batch, n) to (batch, n).
    start : array, shape (batch, n)
        Normals.
    rtol : float
        Relative error to stop at.
    max_steps : int
        Pairs of products at most.
    """
    fixed_point.require_rtol(rtol)
    fixed_point.require_count("max_steps", max_steps)
    return spectra.symmetric_norm(
        xp, lambda v: vjp(jvp(v)), start, rtol=rtol, max_steps=max_steps, squared=True
    )


def radius(
    xp: IterationPrimitives,
    jvp: Callable[[Array], Array],
    start: Array,
    *,
    rtol: float,
    max_steps: int,
) -> Estimate:
    """Return the spectral radius of each sample's Jacobian; parameters as for :func:`norm`."""
    fixed_point.require_rtol(rtol)
    fixed_point.require_count("max_steps", max_steps)
    return spectra.spectral_radius(xp, jvp, start, rtol=rtol, max_steps=max_steps)


def measure(
    kind: Kind,
    xp: IterationPrimitives,
    jvp: Callable[[Array], Array],
    vjp: Callable[[Array], Array],
    start: Array,
    *,
    rtol: float,
    max_steps: int,
) -> Estimate:
    """Return the one or the other."""
    if kind == "jacobian_norm":
        return norm(xp, jvp, vjp, start, rtol=rtol, max_steps=max_steps)
    return radius(xp, jvp, start, rtol=rtol, max_steps=max_steps)


def target(jacobian_norm: Any, spectral_radius: Any, rtol: Any) -> Target:
    """Return the one target that was asked for.

    Raises
    ------
    ScaleError
        If not exactly one is given, or one that is not a finite number > 0.
    SolverError
        If rtol is not between 0 and 1.
    """
    given: dict[Kind, Any] = {"jacobian_norm": jacobian_norm, "spectral_radius": spectral_radius}
    chosen = {kind: value for kind, value in given.items() if value is not None}
    if len(chosen) != 1:
        received = ", ".join(f"{k}={v!r}" for k, v in chosen.items()) or "neither"
        raise ScaleError(
            f"expected one of jacobian_norm and spectral_radius, received {received}. "
            "Pass the value that the Jacobian should have, e.g. jacobian_norm=0.9."
        )
    kind, value = chosen.popitem()
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, (bool, np.bool_, str)) or not 0 < number < math.inf:
        raise ScaleError(
            f"expected {kind} to be a finite number > 0, received {value!r}. "
            "Typical values lie between 0.1 and 1."
        )
    fixed_point.require_rtol(rtol)
    return Target(kind, number, float(rtol))


def measurement(
    values: Sequence[float], errors: Sequence[float], converged: Sequence[bool]
) -> Measurement:
    """Return the means over a batch, from its estimates and from which fixed points were found."""
    value, error = (float(np.mean(np.asarray(x, np.float64))) for x in (values, errors))
    found = bool(np.all(np.asarray(converged))) and math.isfinite(value)
    return Measurement(value, error, found)


def search(wanted: Target, first: float, evaluate: Callable[[float], Measurement]) -> Rescaling:
    """Return the factor at which the measured value is the target, or the nearest one found.

    Parameters
    ----------
    wanted : Target
        The target.
    first : float
        The value measured at factor 1, near the fixed point; any number if it is not known.
    evaluate : callable
        Measures at the fixed point of the weights times a factor.
    """
    goal = math.log(wanted.value)
    guess = wanted.value / first if first > _TINY and math.isfinite(first) else 1.0
    x = math.log(guess)
    found: dict[float, float] = {}  # log of the factor -> log of value over target
    lost: list[float] = []
    best: tuple[float, Measurement] | None = None
    for _ in range(_SOLVES):
        measured = evaluate(math.exp(x))
        if measured.found:
            found[x] = math.log(max(measured.value, _TINY)) - goal
            if best is None or abs(found[x]) < abs(found[best[0]]):
                best = x, measured
            off = abs(measured.value - wanted.value)
            if off + measured.error <= wanted.rtol * wanted.value:
                return _result(wanted, best, len(found) + len(lost), "")
        else:
            lost.append(x)
        step = _next(found, lost)
        if step is None:
            break
        x = step
    return _result(wanted, best, len(found) + len(lost), _reason(wanted, found, lost, best))


def _result(
    wanted: Target, best: tuple[float, Measurement] | None, solves: int, reason: str
) -> Rescaling:
    x, value = (0.0, math.nan) if best is None else (best[0], best[1].value)
    return Rescaling(math.exp(x), value, wanted.value, solves, not reason, reason)


def _next(found: dict[float, float], lost: list[float]) -> float | None:
    """Return the next scale to try, None if a bracket has closed."""
    if not found:
        return min(lost) - math.log(2.0)
    points = sorted(found)
    nearest = min(points, key=lambda x: abs(found[x]))
    low, high = _bracket(found, lost, nearest)
    step = _secant(found, nearest)
    if math.isinf(low):
        step = nearest + min(max(step - nearest, -_FARTHEST), _FARTHEST)
        if not points[0] < step < points[-1] and step not in found:
            return step
        # Not increasing here: farther out it may.
        return points[-1] + _FARTHEST / 2 if found[nearest] < 0 else points[0] - _FARTHEST / 2
    width = high - low
    if width < 1e-6:
        return None
    # A secant that hugs one end, or has had many attempts, gives way to the middle.
    inside = low + 0.02 * width < step < high - 0.02 * width
    patient = len(found) + len(lost) < 7
    if inside and (patient or abs(found[nearest]) < 0.1):
        return step
    return (low + high) / 2


def _bracket(found: dict[float, float], lost: list[float], nearest: float) -> tuple[float, float]:
    """Return neighbouring scales around a change of sign, as near to ``nearest`` as there are."""
    signs = {x: value > 0 for x, value in found.items()} | dict.fromkeys(lost, True)
    ordered = sorted(signs)
    pairs = [(a, b) for a, b in itertools.pairwise(ordered) if signs[a] != signs[b]]
    if not pairs:
        return -math.inf, math.inf
    return min(pairs, key=lambda pair: max(abs(pair[0] - nearest), abs(pair[1] - nearest)))


def _secant(found: dict[float, float], nearest: float) -> float:
    """Return where the line through the two nearest points meets the target."""
    slope = 1.0
    others = sorted((x for x in found if x != nearest), key=lambda x: abs(found[x]))
    if others:
        rise = found[others[0]] - found[nearest]
        slope = min(max(rise / (others[0] - nearest), 0.2), 5.0)
    return nearest - found[nearest] / slope


def _reason(
    wanted: Target,
    found: dict[float, float],
    lost: list[float],
    best: tuple[float, Measurement] | None,
) -> str:
    """Say why the target was not reached."""
    name = wanted.kind.replace("_", " ")
    factors = [math.exp(x) for x in (*found, *lost)]
    tried = f"over factors {min(factors):.3g} to {max(factors):.3g}"
    if best is None:
        return f"no fixed point was found {tried}"
    x, measured = best
    if abs(found[x]) <= wanted.rtol:
        return (
            f"{name} {measured.value:.4g} may be off by {measured.error:.1g}, which is too much "
            f"to tell whether it is {wanted.value:g}"
        )
    values = [wanted.value * math.exp(value) for value in found.values()]
    at = f"; the fixed point was lost at factor {math.exp(min(lost)):.3g}" if lost else ""
    if min(values) < wanted.value < max(values):
        return f"{name} jumps over {wanted.value:g}, to {measured.value:.4g} next to it{at}"
    side = "below" if max(values) < wanted.value else "above"
    return f"{name} stayed {side} {wanted.value:g}, at {measured.value:.4g} at best, {tried}{at}"
