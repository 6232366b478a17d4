r"""Norm and radius of the Jacobian of :math:`z \mapsto f(z)`, and weights scaled to a target.

A batch is one block-diagonal operator: a product of the whole batch with one vector gives every
sample's product with its own, so the Jacobians are never formed. The norm is found by Lanczos on
:math:`J^T J`, a forward and a reverse product for each step; the radius by Arnoldi on J.

The Jacobian at the fixed point depends on the scale s of the weights through the fixed point too,
so its norm g(s) is not proportional to s, nor always increasing, and for ReLU it jumps.
:func:`search` finds s with g(s) at the target by a secant in (log s, log g(s)) that is kept inside
a bracket. A lost fixed point counts as g = inf. Where the law of the weight and the activation are
known, the secant starts from the mean-field scale.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from deq_init import families, fixed_point, rounding, spectra
from deq_init._protocol import Array, IterationPrimitives
from deq_init.errors import ScaleError, SelectionError, ShapeError
from deq_init.products import Differences
from deq_init.spectra import Estimate

Kind = Literal["jacobian_norm", "spectral_radius"]
Products = Callable[[Array], tuple[Callable[[Array], Array], Callable[[Array], Array]]]
"""From z to products with the Jacobians of a map at z and with their transposes."""
Form = Literal["out", "in"]

MAX_STEPS: dict[Kind, int] = {"jacobian_norm": 128, "spectral_radius": 256}
"""Steps of Lanczos and Arnoldi at most."""

RISK = 1e-3
"""Probability, over start vectors, that a norm is farther from its estimate than its error says."""

SOLVER_STEPS = 1000
"""Evaluations of f for one fixed point at most, when weights are rescaled."""

SOLVER_NOTE = (
    "This came from f or from the solver that was passed in, while weights were rescaled; they are "
    "as they were. A solver that raises when it does not converge should return its last iterate "
    "instead (optimistix: throw=False): a large residual counts as a lost fixed point."
)
"""What is added to exceptions that are raised under another solver."""

_SOLVES = 12
_FARTHEST = math.log(4.0)  # one step's factor, where nothing brackets the target
_CLOSED = 0.5  # width of a closed bracket over rtol: the value rises some 3 times faster, at least
_SMALLEST_N = 8  # that the theory corrects the norm for
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
    found = spectra.symmetric_norm(
        xp,
        lambda v: vjp(jvp(v)),
        start,
        rtol=rtol,
        max_steps=max_steps,
        squared=True,
        risk=RISK,
    )
    if isinstance(jvp, Differences):
        error = found.error + jvp.error * found.value
        found = replace(found, error=error, converged=error <= rtol * found.value)
    return found


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
    product = jvp.transpose if isinstance(jvp, Differences) else jvp
    return spectra.spectral_radius(xp, product, start, rtol=rtol, max_steps=max_steps)


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
    """Return the means over a batch, from its estimates and from which fixed points were found.

    Raises
    ------
    ShapeError
        If the batch is empty: it has no mean.
    """
    if len(values) == 0:
        raise ShapeError(
            "expected a batch of at least one sample to rescale for, received none. Pass a z0 of "
            "a few samples."
        )
    value, error = (float(np.mean(np.asarray(x, np.float64))) for x in (values, errors))
    found = bool(np.all(np.asarray(converged))) and math.isfinite(value)
    return Measurement(value, error, found)


class Probe:
    """What is measured at the fixed point of f, each solve started where the last one ended.

    Parameters
    ----------
    wanted : Target
        The quantity and how accurately it is needed.
    xp : IterationPrimitives
        The backend's arrays and loops.
    f : callable
        Maps arrays of shape (batch, n) to such, with the weights as they are at that time.
    products : callable
        ``products(z)`` returns products with the Jacobians of f at z and with their transposes.
    z0, normals : array, shape (batch, n)
        Where the first solve starts, and what measurements start from.
    solver : callable, optional
        ``solver(z)`` returns fixed points instead; they count if their residual is at most
        ``wanted.rtol / 4``.
    numbers : callable
        Makes what NumPy can read of an array.
    """

    def __init__(
        self,
        wanted: Target,
        xp: IterationPrimitives,
        f: Callable[[Array], Array],
        products: Products,
        z0: Array,
        normals: Array,
        *,
        solver: Callable[[Array], Array] | None = None,
        numbers: Callable[[Array], Any] = np.asarray,
    ) -> None:
        self._wanted, self._xp, self._f, self._products = wanted, xp, f, products
        self._z, self._normals, self._solver, self._numbers = z0, normals, solver, numbers
        self._rounding = 0.0  # where fixed points were lost

    def near(self) -> float:
        """Return the value near the fixed point, one step away from the start; 1 if it is lost."""
        z = self._f(self._z)
        lost = bool(self._xp.any(~self._xp.isfinite(z)))
        return 1.0 if lost else self._at(z, [True] * len(z)).value

    def measure(self) -> Measurement:
        """Return what is measured at the fixed point."""
        wanted = self._wanted
        rtol, steps = max(wanted.solving_rtol, 10 * spectra.epsilon_of(self._z)), SOLVER_STEPS
        z = self._z
        if self._solver is not None:
            rtol, steps = wanted.rtol / 4, 1
            try:
                z = self._solver(z)
            except Exception as error:
                error.add_note(SOLVER_NOTE)
                raise
        solution = fixed_point.solve(self._xp, self._f, z, rtol=rtol, max_steps=steps)
        converged = self._numbers(solution.converged)
        if len(converged) and not all(converged):
            self._rounding = self.rounding()
            return Measurement(math.nan, math.inf, False)
        self._z = solution.value
        return self._at(solution.value, converged)

    def rounding(self) -> float:
        """Return the largest relative error of f's values here and where fixed points were lost.

        0 if they could be found all the same.
        """
        if len(self._z) == 0:
            return 0.0
        z, above = self._f(self._z), self._wanted.solving_rtol
        error = rounding.error(self._xp, self._f, z, self._normals, above, self._numbers)
        return max(error, self._rounding)

    def _at(self, z: Array, converged: Any) -> Measurement:
        wanted = self._wanted
        if len(z) == 0:
            return measurement([], [], [])
        jvp, vjp = self._products(z)
        estimate = measure(
            wanted.kind,
            self._xp,
            jvp,
            vjp,
            self._normals,
            rtol=wanted.measuring_rtol,
            max_steps=MAX_STEPS[wanted.kind],
        )
        return measurement(self._numbers(estimate.value), self._numbers(estimate.error), converged)


def mean_field_factor(
    wanted: Target,
    weights: Sequence[tuple[Sequence[int], float]],
    *,
    family: str | None,
    activation: Any,
    form: Form,
    input_variance: float,
) -> float | None:
    r"""Return the factor that brings a weight to the gain of the mean-field theory.

    Parameters
    ----------
    wanted : Target
        What the Jacobian shall have.
    weights : sequence of (shape, Frobenius norm)
        Those to be scaled; one square matrix, if a family is given.
    family, activation, form, input_variance
        As in :func:`~deq_init.theory.gain_for`. None for family and activation if not known.

    Returns
    -------
    float or None
        None if no family is given, or the theory has no gain for this target, or the weight none.

    Raises
    ------
    ScaleError, FamilyError, ActivationError
        For arguments that the theory does not know, or a family without an activation.
    SelectionError
        If the weights are not one square matrix.

    Notes
    -----
    The weight's own gain is :math:`|W|_F / \sqrt{n + s}`, s being 1 for GOE, -1 for antisymmetric
    and 0 for other matrices: exact in the mean square.
    """
    if (family is None) != (activation is None):
        raise ScaleError(
            f"expected family and activation together, received family={family!r}, "
            f"activation={activation!r}. The mean-field scale depends on both: pass the other one "
            "too, or neither."
        )
    if family is None:
        return None
    from deq_init import theory  # SciPy's optimizers take a second to import

    theory.mean_field(family, 0.0, activation, form=form, input_variance=input_variance)
    if len(weights) != 1 or len(weights[0][0]) != 2 or len(set(weights[0][0])) != 1:
        raise SelectionError(
            "expected one square weight beside family=, received shapes "
            f"{[tuple(shape) for shape, _ in weights]}. Leave out family and activation: the "
            "search then starts from what it measures."
        )
    (n, _), frobenius = weights[0]
    gain = frobenius / math.sqrt(max(n + families.get(family).symmetry, 1))
    if not 0 < gain < math.inf:
        return None
    try:
        return (
            theory.gain_for(
                family,
                activation,
                **{wanted.kind: wanted.value},
                form=form,
                input_variance=input_variance,
                n=n if n >= _SMALLEST_N else None,
            )
            / gain
        )
    except ScaleError:  # of the target: a sample may have what the mean field does not
        return None


def search(
    wanted: Target,
    first: float,
    evaluate: Callable[[float], Measurement],
    *,
    start: float | None = None,
    rounding: Callable[[], float] = float,
) -> Rescaling:
    """Return the factor at which the measured value is the target, or the nearest one found.

    Parameters
    ----------
    wanted : Target
        The target.
    first : float
        The value measured at factor 1, near the fixed point; any number if it is not known.
    evaluate : callable
        Measures at the fixed point of the weights times a factor.
    start : float, optional
        Factor to try first; without it, the one that brings ``first`` to the target.
    rounding : callable, optional
        Returns the relative error of f's values, 0 if it is small enough; called if no factor met
        the target.
    """
    goal = math.log(wanted.value)
    if start is None:
        start = wanted.value / first if _TINY < first < math.inf else 1.0
    x = math.log(start)
    found: dict[float, float] = {}  # log of the factor -> log of value over target
    lost: list[float] = []
    best: tuple[float, Measurement] | None = None
    tolerance = wanted.rtol * wanted.value
    for _ in range(_SOLVES):
        measured = evaluate(math.exp(x))
        if measured.found:
            found[x] = math.log(max(measured.value, _TINY)) - goal
            if best is None or abs(found[x]) < abs(found[best[0]]):
                best = x, measured
            off = abs(measured.value - wanted.value)
            if off + measured.error <= tolerance:
                return _result(wanted, (x, measured), len(found) + len(lost), "")
            if off <= tolerance < measured.error:
                # Nothing nearer could be told from the target either.
                best = x, measured
                break
        else:
            lost.append(x)
        step = _next(found, lost, wanted.rtol)
        if step is None:
            break
        x = step
    error = rounding()
    reason = _rounded(wanted, error) if error else _reason(wanted, found, lost, best)
    return _result(wanted, best, len(found) + len(lost), reason)


def _result(
    wanted: Target, best: tuple[float, Measurement] | None, solves: int, reason: str
) -> Rescaling:
    x, value = (0.0, math.nan) if best is None else (best[0], best[1].value)
    return Rescaling(math.exp(x), value, wanted.value, solves, not reason, reason)


def _next(found: dict[float, float], lost: list[float], rtol: float) -> float | None:
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
    if width < _CLOSED * rtol:
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


def _rounded(wanted: Target, error: float) -> str:
    """Return what to do about an f that rounds so much that no fixed point tells anything."""
    return (
        f"f rounds, or is random, by about {error:.1g}, and fixed points are needed to "
        f"{wanted.solving_rtol:.1g}: which factors meet the target cannot be told. Rescale in "
        "float32, without autocast or a mixed policy, and keep the weights for the other precision"
    )


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
    if abs(measured.value - wanted.value) <= wanted.rtol * wanted.value:
        return (
            f"{name} {measured.value:.4g} may be off by {measured.error:.1g}, which is too much "
            f"to tell whether it is {wanted.value:g} to {wanted.rtol:g}"
        )
    at = f"; the fixed point was lost at factor {math.exp(min(lost)):.4g}" if lost else ""
    low, high = _bracket(found, [], x)
    if math.isfinite(low):
        values = " to ".join(f"{wanted.value * math.exp(found[x]):.5g}" for x in (low, high))
        if high - low < _CLOSED * wanted.rtol:
            return (
                f"{name} jumps over {wanted.value:g}, from {values}, at factor {math.exp(low):.4g}"
            )
        between = f"between factors {math.exp(low):.4g} and {math.exp(high):.4g}"
        return f"{name} goes from {values} {between}, and no factor tried met the target{at}"
    side = "below" if found[x] < 0 else "above"
    return f"{name} stayed {side} {wanted.value:g}, at {measured.value:.4g} at best, {tried}{at}"
