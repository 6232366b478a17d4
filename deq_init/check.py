r"""One look at a model's fixed point, one verdict: lazy, stable, critical or divergent.

The rule, for a batch of samples and plain iteration :math:`z \leftarrow f(z)` from the start:

=========== =====================================================================================
divergent   more than half of the samples have not settled to rtol 1e-3 after 200 steps
critical    some have not
divergent   all have, but the Jacobian there is not finite
lazy        all have, and the Jacobian's spectral norm at the fixed point is below 0.3 in the mean:
            z* is little more than one application of f
stable      all have, and it is not
=========== =====================================================================================

200 steps to 1e-3 is what a spectral radius of 0.966 takes. Plain iteration is the test whatever
solver a model uses: Anderson acceleration finds fixed points that training then cannot keep.
``docs/check.md`` holds the verdicts against the outcomes of training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deq_init import families, fixed_point, jacobian, scale, states
from deq_init import plan as plans
from deq_init._protocol import Array, IterationPrimitives
from deq_init.errors import FunctionError, SelectionError, ShapeError
from deq_init.jacobian import Rescaling

Verdict = Literal["lazy", "stable", "critical", "divergent"]
VERDICTS: tuple[Verdict, ...] = ("lazy", "stable", "critical", "divergent")

STEPS = 200
"""Steps of plain iteration in which a sample shall settle."""

RTOL = 1e-3
"""Residual to which it shall; or the machine epsilon of the state's dtype, if that is larger."""

LAZY_BELOW = 0.3
"""Mean Jacobian norm below which a model is lazy."""

SUGGESTED_NORM = 0.9
"""Jacobian norm to suggest: below 1, the iteration contracts near the fixed point."""

_MEASURING_RTOL = 0.01
_NO_WEIGHTS = "name the weights for a suggested gain"
_CONTRACTING = 0.95  # radius below which 150 steps are enough, if f is what it seems
_ROUNDING = (
    "the Jacobian contracts, and yet samples do not settle: does f round (autocast, a mixed "
    "policy) or draw random numbers? Check in float32 and without dropout"
)
_NORM_STEPS, _RADIUS_STEPS = 64, 128


@dataclass(frozen=True)
class Spread:
    """A quantity over the samples of a batch.

    Attributes
    ----------
    mean, low, high : float
        Mean, smallest and largest value; NaN if it was measured for no sample.
    error : float
        Mean of the estimates of the measurement's absolute error.
    """

    mean: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class Look:
    """What was measured with one setting of the weights.

    Attributes
    ----------
    samples : int
        Samples in the batch.
    settled : float
        Share of the samples that plain iteration brought to the tolerance in :data:`STEPS` steps.
    steps : float
        Median of the steps that these took; NaN if there are none.
    found : float
        Share of the samples whose fixed point plain iteration or Anderson acceleration found.
    anderson_steps : float
        Median of the steps that Anderson acceleration took; NaN if it found none.
    jacobian_norm, spectral_radius : Spread
        Of the Jacobian at the fixed point, over the samples where it was found; over all, at the
        best iterate, if it was found for none.
    adjoint_amplification : Spread
        Of |(I - J)⁻ᵀv|² / |v|² for a random v, one for each sample: by how much implicit
        differentiation enlarges squared gradients. Over the samples whose adjoint equation was
        solved; its error is that of the mean, from the spread.
    """

    samples: int
    settled: float
    steps: float
    found: float
    anderson_steps: float
    jacobian_norm: Spread
    spectral_radius: Spread
    adjoint_amplification: Spread

    @property
    def judgement(self) -> tuple[Verdict, str]:
        """The verdict, and the rule that gave it."""
        shortfall = (
            f"{round((1 - self.settled) * self.samples)} of {self.samples} samples have not "
            f"settled in {STEPS} steps"
        )
        if self.settled < 0.5:
            return "divergent", f"{shortfall}, more than half"
        if self.settled < 1:
            return "critical", shortfall
        if not math.isfinite(self.jacobian_norm.mean):
            return "divergent", "all samples settle, but the Jacobian there is not finite"
        size = f"the Jacobian's norm is {self.jacobian_norm.mean:.3g} in the mean"
        if self.jacobian_norm.mean < LAZY_BELOW:
            return "lazy", f"all samples settle and {size}, below {LAZY_BELOW}"
        return "stable", f"all samples settle and {size}, not below {LAZY_BELOW}"


@dataclass(frozen=True)
class Report:
    """The verdict on a model, and what it rests on.

    Attributes
    ----------
    verdict : {"lazy", "stable", "critical", "divergent"}
        By the rule in the text of :mod:`deq_init.check`.
    reason : str
        The rule that gave it, with its numbers.
    size : int
        Numbers in the state of one sample.
    look : Look
        What was measured.
    family : str or None
        Family that the weights were drawn anew from.
    redraws : tuple of Look
        What was measured with each new draw, at the gains of the weights as they are.
    gain : float or None
        Of the weights that were named: √(|W|² / outputs), the squares and outputs of all of them
        added up (with a family, what has this sum of squares in the mean); None if none were.
    suggested_factor : float or None
        What to multiply these weights by, for a stable model; 1 if it is, None if no factor was
        found.
    suggested_gain : float or None
        ``gain`` times that.
    suggestion : str
        The line of code that does it; for a stable model "".
    note : str
        Why there is no suggested gain, or "".
    """

    verdict: Verdict
    reason: str
    size: int
    look: Look
    family: str | None = None
    redraws: tuple[Look, ...] = ()
    gain: float | None = None
    suggested_factor: float | None = None
    suggested_gain: float | None = None
    suggestion: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, JSON-serialisable; None for what is not finite."""
        result: dict[str, Any] = _plain(asdict(self))
        for look, data in zip(self.redraws, result["redraws"], strict=True):
            data["verdict"] = look.judgement[0]
        return result

    def __str__(self) -> str:
        look = self.look
        count = round(look.settled * look.samples)
        settled = f"{count} of {look.samples} samples settle"
        if look.settled:
            settled += f", in {look.steps:.0f} steps of plain iteration"
        found = f"found for {round(look.found * look.samples)}"
        if not math.isnan(look.anderson_steps):
            found += f", in {look.anderson_steps:.0f} steps of Anderson acceleration"
        rows = [
            ("verdict", f"{self.verdict}: {self.reason}"),
            ("fixed point", f"{settled}; {found}"),
            ("Jacobian norm", _span(look.jacobian_norm)),
            ("spectral radius", _span(look.spectral_radius)),
            ("gradient growth", _span(look.adjoint_amplification)),
        ]
        if self.redraws:
            rows.append(("new draws", self._redrawn()))
        if self.gain is not None:
            gain = f"{self.gain:.3g}"
            if self.suggested_gain is not None and self.suggestion:
                gain += f"; suggested {self.suggested_gain:.3g}"
            rows.append(("gain", gain))
        if self.suggestion:
            rows.append(("suggestion", self.suggestion))
        if self.note:
            rows.append(("note", self.note))
        return "\n".join(f"{name:<17}{text}" for name, text in rows)

    def _redrawn(self) -> str:
        counts = Counter(look.judgement[0] for look in self.redraws)
        verdicts = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
        norms, radii = (
            [getattr(look, name).mean for look in self.redraws]
            for name in ("jacobian_norm", "spectral_radius")
        )
        return (
            f"{len(self.redraws)} of {self.family}: {verdicts}; norm {min(norms):.3g} to "
            f"{max(norms):.3g}, radius {min(radii):.3g} to {max(radii):.3g}"
        )


def look(
    xp: IterationPrimitives,
    f: Callable[[Array], Array],
    z0: Array,
    start: Array,
    products: jacobian.Products,
    layout: states.Layout,
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
    layout : states.Layout
        Of the states that f maps, whose dtypes say to what samples can settle.

    Returns
    -------
    tuple of array, shape (batch,)
        Settled, steps; found and steps by Anderson acceleration; norm, its error; radius, its
        error; adjoint amplification, and whether its equation was solved; what the first sample
        changes in each.
    """
    rtol = _settling_rtol(layout)
    plain = fixed_point.solve(xp, f, z0, method="plain", rtol=rtol, max_steps=STEPS)
    anderson = fixed_point.solve(xp, f, z0, rtol=rtol, max_steps=STEPS, rounding=layout.rounding)
    z = xp.where(plain.converged[:, None], plain.value, anderson.value)
    jvp, vjp = products(z)
    norm = jacobian.norm(xp, jvp, vjp, start, rtol=_MEASURING_RTOL, max_steps=_NORM_STEPS)
    radius = jacobian.radius(xp, jvp, start, rtol=_MEASURING_RTOL, max_steps=_RADIUS_STEPS)
    adjoint = fixed_point.solve(
        xp, lambda u: vjp(u) + start, start, rtol=_MEASURING_RTOL, max_steps=STEPS
    )
    grown = xp.sum(adjoint.value * adjoint.value, 1) / xp.sum(start * start, 1)
    alone = jvp(xp.concatenate([start[:1], start[1:] * 0.0], 0))
    return (
        plain.converged,
        plain.steps,
        anderson.converged,
        anderson.steps,
        norm.value,
        norm.error,
        radius.value,
        radius.error,
        grown,
        adjoint.converged,
        xp.sum(alone * alone, 1),
    )


def summarize(measured: Sequence[Any]) -> Look:
    """Return the summary of what :func:`look` measured, as NumPy arrays.

    Raises
    ------
    FunctionError
        If f lets one sample change another: their Jacobians are then no matrices of their own.
    """
    settled, steps, by_anderson, anderson_steps, norm, norm_error, radius, radius_error, *rest = (
        np.asarray(x) for x in measured
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
        _median(steps[settled]),
        float(found.mean()),
        _median(anderson_steps[by_anderson]),
        _spread(norm[over], norm_error[over]),
        _spread(radius[over], radius_error[over]),
        _spread(grown, np.full(len(grown), deviation)),
    )


def report(
    seen: Look,
    layout: states.Layout,
    weights: Weights | None = None,
    redraws: Sequence[Look] = (),
    *,
    rescale: Callable[[float], tuple[Rescaling, Look]],
    suggestion: str,
) -> Report:
    """Return the report on what was seen.

    Parameters
    ----------
    seen : Look
        The model as it is.
    layout : deq_init.states.Layout
        Of its state.
    weights : Weights, optional
        Those that were named.
    redraws : sequence of Look
        The model with new draws of them.
    rescale : callable
        Searches for the factor that gives the Jacobian a norm, and looks at the model with it;
        called if there are weights and the model is not stable.
    suggestion : str
        The line of code that multiplies the weights by it, with ``{norm}`` for the norm.
    """
    verdict, reason = seen.judgement
    family, gain = (None, None) if weights is None else (weights.family, weights.gain)
    base = Report(verdict, reason, layout.n, seen, family, tuple(redraws), gain)
    if seen.settled < 1 and seen.spectral_radius.high < _CONTRACTING:
        base = replace(base, note=_ROUNDING)
    if gain is None:
        return base if verdict == "stable" or base.note else replace(base, note=_NO_WEIGHTS)
    if verdict == "stable":
        return replace(base, suggested_factor=1.0, suggested_gain=gain)
    # Of the mean; then of the largest, if that is still too much for single samples.
    norm, outcome, then = SUGGESTED_NORM, "", seen
    for _ in range(2):
        result, then = rescale(norm)
        if result.reached and then.judgement[0] == "stable":
            return replace(
                base,
                suggested_factor=result.factor,
                suggested_gain=gain * result.factor,
                suggestion=suggestion.format(norm=f"{norm:g}"),
            )
        outcome = f"it is {then.judgement[0]} at norm {norm:g}" if result.reached else result.reason
        share = then.jacobian_norm.mean / then.jacobian_norm.high
        norm = math.floor(100 * SUGGESTED_NORM * share) / 100 if share > 0.1 else 0.0
        if not 0 < norm < SUGGESTED_NORM:
            break
    return replace(base, note=base.note or f"no common factor makes it stable: {outcome}")


def _settling_rtol(layout: states.Layout) -> float:
    """Return the residual to which samples of a state can settle."""
    if layout.batch == 0:
        raise ShapeError(
            "expected a batch of at least one sample to check, received none. Pass a z0 of some "
            "16 to 64 samples."
        )
    return max(RTOL, layout.rounding)


def require_draws(draws: Any, family: str | None, weights: bool) -> int:
    """Return how many new draws to look at, 0 without a family.

    Raises
    ------
    SolverError, SelectionError
        If it is not a positive integer, or there are no weights to draw.
    """
    fixed_point.require_count("draws", draws)
    if family is None:
        return 0
    if not weights:
        raise SelectionError(
            f"expected the weights to draw from the {family} family, received none. "
            "Name them, or leave out family=."
        )
    return int(draws)


@dataclass(frozen=True)
class Weights:
    """What a check must know of the weights that were named.

    Attributes
    ----------
    shapes : sequence of sequence of int
        Shape of each.
    squares : sequence of float
        Sum of each one's squared entries.
    layout : {"out_in", "in_out"}
        How the framework's arrays hold W, see :mod:`deq_init.plan`.
    family : str or None
        Family to draw them anew from.
    """

    shapes: Sequence[Sequence[int]]
    squares: Sequence[float]
    layout: plans.Layout
    family: str | None

    @property
    def gain(self) -> float | None:
        """Gain of all of them together; None if there are none."""
        if not self.shapes:
            return None
        # n x n GOE matrices have n + 1 times V for the mean sum of their squares, antisymmetric
        # ones n - 1 times, others n times.
        symmetry = 0 if self.family is None else families.get(self.family).symmetry
        axis = 0 if self.layout == "out_in" else -1
        outputs = sum(shape[axis] + symmetry for shape in self.shapes)
        return math.sqrt(sum(self.squares) / max(outputs, 1))

    def plans(self, blocks: int | tuple[int, int] | None) -> list[plans.Plan]:
        """Return what to draw for each of them, at its own gain; nothing without a family.

        The gain at which draws of the family have its sum of squares in the mean.

        Raises
        ------
        FamilyError, ShapeError
            For a family that they cannot be.
        """
        if self.family is None:
            return []
        result = []
        for shape, square in zip(self.shapes, self.squares, strict=True):
            unit = plans.plan(self.family, shape, self.layout, scale.Scale("gain", 1.0), blocks)
            gain = math.sqrt(square / max(_mean_square(unit), 1))
            request = scale.Scale("gain", gain)
            result.append(plans.plan(self.family, shape, self.layout, request, blocks))
        return result


def _mean_square(unit: plans.Plan) -> int:
    """Return the mean sum of squares of what a plan at gain 1 draws."""
    outputs = unit.rows * unit.columns // unit.fan_in
    block = min(unit.rows, unit.columns) if unit.family.isometric else outputs
    return (unit.blocks or 1) * (block + unit.family.symmetry)


def _spread(values: NDArray[Any], errors: NDArray[Any]) -> Spread:
    if not len(values):
        return Spread(math.nan, math.nan, math.nan, math.nan)
    numbers = np.asarray(values, np.float64)
    return Spread(
        float(numbers.mean()), float(numbers.min()), float(numbers.max()), float(np.mean(errors))
    )


def _median(values: NDArray[Any]) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _span(spread: Spread) -> str:
    if math.isnan(spread.mean):
        return "not measured"
    error = "" if math.isnan(spread.error) else f" ± {spread.error:.1g}"
    return f"{spread.mean:.3g}{error}, from {spread.low:.3g} to {spread.high:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
