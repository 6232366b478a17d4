r"""One look at a model's fixed point, one verdict: lazy, stable, critical, divergent or unknown.

The rule, for a batch of samples and plain iteration :math:`z \leftarrow f(z)` from the start:

=========== =====================================================================================
unknown     f gives no verdict: it is not finite at the start, it is random, or it rounds so much
            that samples cannot settle
divergent   more than half of the samples have not settled to rtol 1e-3 after 200 steps
critical    some have not
divergent   all have, but the Jacobian there is not finite
lazy        all have, and the Jacobian's spectral norm at the fixed point is below 0.3 in the mean:
            z* is little more than one application of f
stable      all have, and it is not
=========== =====================================================================================

200 steps to 1e-3 is what a spectral radius of 0.966 takes. ``solver=`` and ``max_steps=`` put the
model's own setting in the place of these. A sample has settled when
:math:`|f(z) - z| \le` rtol :math:`\cdot \max(|f(z)|, 0.03 |z_0|)`: a contraction to zero has a
relative residual that does not fall. ``docs/check.md`` holds the verdicts and the suggested factors
against the outcomes of training.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["lazy", "stable", "critical", "divergent", "unknown"]
VERDICTS: tuple[Verdict, ...] = ("lazy", "stable", "critical", "divergent", "unknown")

STEPS = 200
"""Steps of the solver in which a sample must settle, unless ``max_steps`` says otherwise."""

RTOL = 1e-3
"""Residual to which it must settle; or the rounding error of f's values, if that is larger."""

LAZY_BELOW = 0.3
"""Mean Jacobian norm below which a model is lazy."""


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
        Share of the samples that the solver brought to the tolerance.
    steps : float
        Median of the steps that these took; NaN if there are none, or for a solver of the user's.
    found : float
        Share of the samples whose fixed point that or Anderson acceleration found.
    anderson_steps : float
        Median of the steps that Anderson acceleration took; NaN if it found none.
    jacobian_norm, spectral_radius : Spread
        Of the Jacobian at the fixed point, over the samples where it was found; over all, at the
        best iterate, if it was found for none.
    adjoint_amplification : Spread
        Of |(I - J)⁻ᵀv|² / |v|² for a random v, one for each sample: by how much implicit
        differentiation enlarges squared gradients. Over the samples whose adjoint equation was
        solved; its error is that of the mean, from the spread.
    solver : str
        What brought the samples there, in words.
    """

    samples: int
    settled: float
    steps: float
    found: float
    anderson_steps: float
    jacobian_norm: Spread
    spectral_radius: Spread
    adjoint_amplification: Spread
    solver: str = f"{STEPS} steps of plain iteration"

    def found_in_words(self) -> str:
        """Return for how many samples the fixed point was found, and in how many steps."""
        solver = self.solver.partition("steps of ")[2] or self.solver
        result = f"{round(self.settled * self.samples)} of {self.samples} samples settle"
        if not math.isnan(self.steps):
            result += f", in {self.steps:.0f} steps of {solver}"
        result += f"; found for {round(self.found * self.samples)}"
        if not math.isnan(self.anderson_steps):
            result += f", in {self.anderson_steps:.0f} steps of Anderson acceleration"
        return result

    @property
    def judgement(self) -> tuple[Verdict, str]:
        """The verdict, and the rule that gave it."""
        if math.isnan(self.settled):
            return "unknown", "nothing was measured"
        shortfall = (
            f"{round((1 - self.settled) * self.samples)} of {self.samples} samples have not "
            f"settled in {self.solver}"
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
    verdict : {"lazy", "stable", "critical", "divergent", "unknown"}
        By the rule in the text of :mod:`deq_init.check`.
    reason : str
        The rule that gave it, with its numbers.
    size : int
        Numbers in the state of one sample.
    look : Look
        What was measured; NaN where nothing was.
    family : str or None
        Family that the weights were drawn anew from.
    redraws : tuple of Look
        What was measured with each new draw, at the gains of the weights as they are.
    gain : float or None
        Of the weights that were named: √(|W|² / outputs), the squares and outputs of all of them
        added up (with a family, what has this sum of squares in the mean); None if none were.
    suggested_factor : float or None
        What to multiply these weights by, for a stable model; 1 if it is, None if no factor was
        found, see :mod:`deq_init.advice`.
    suggested_gain : float or None
        ``gain`` times that.
    suggestion : str
        The line of code that multiplies by this factor; for a stable model "".
    note : str
        Why there is no suggested factor, or what else there is to know; or "".
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
        rows = [("verdict", f"{self.verdict}: {self.reason}")]
        if not math.isnan(look.settled):
            rows += [
                ("fixed point", look.found_in_words()),
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
