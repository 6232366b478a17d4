"""The factor on a model's weights that :mod:`deq_init.check` suggests.

For a model whose samples do not all settle: the factor nearest to 1 at which they do, below 1 where
there is one. Factors near 1 are tried first, and bisection then narrows down where samples begin to
settle. A factor below 1 is then taken 0.7 times, if the samples settle there too: of models at the
edge, training pushes many over it. For a lazy model: the smallest factor above 1, of those tried,
at which it is stable.

A factor is refused if it takes the part of f that depends on the weights to nearly zero: a block
that passes its state on settles whatever it is given, and learns nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LEAST_FACTOR = 0.1
"""Smallest factor that is suggested."""

LEAST_SHARE = 0.01
"""Smallest share of |f(z; w) - f(z; 0)| that a suggested factor leaves."""

MARGIN = 0.7
"""Distance from the edge, as a factor."""

DOWN = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.12, LEAST_FACTOR)
UP = (1.1, 1.25, 1.5, 2.0)
UP_FROM_LAZY = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)

_CLOSE = 1.03  # ratio of the factors that bracket the edge, where bisection ends

_INSTEAD = (
    "Scale the weights of one branch alone, feed the input in at each step, or train with a solver "
    "that finds the fixed point: check(solver='anderson')"
)


@dataclass(frozen=True)
class Advice:
    """A factor, or why there is none.

    Attributes
    ----------
    factor : float or None
        What to multiply the weights by, with three digits.
    note : str
        Why there is no factor, and what to do instead; or "".
    """

    factor: float | None
    note: str = ""


@dataclass(frozen=True)
class Trials:
    """What can be found out about a model with its weights multiplied by a factor.

    Attributes
    ----------
    settled : callable
        Share of the samples that settle.
    verdict : callable
        The verdict on the model.
    share : callable
        |f(z; s w) - f(z; 0)| over that at s = 1, at the state that the model was left in.
    """

    settled: Callable[[float], float]
    verdict: Callable[[float], Any]
    share: Callable[[float], float]


def for_unsettled(trials: Trials, settled: float) -> Advice:
    """Return the advice for a model of which this share of the samples settles, less than 1."""
    best = (settled, 1.0)
    refused = None
    for factors in (DOWN, UP):
        outside = 1.0
        for factor in factors:
            share = trials.settled(factor)
            best = max(best, (share, factor), key=lambda seen: seen[0])
            if share < 1:
                outside = factor
                continue
            factor = _edge(trials, factor, outside)
            safe = float(f"{MARGIN * factor:.3g}")
            if LEAST_FACTOR <= safe < MARGIN and _is_fit(trials, safe):
                return Advice(safe)
            if trials.verdict(factor) not in ("stable", "lazy"):
                break
            left = trials.share(factor)
            if left >= LEAST_SHARE:
                return Advice(factor)
            refused = refused or (
                f"at factor {factor:g} all samples settle, but {left:.1g} is left of what these "
                "weights do in f"
            )
            break
    tried = (
        f"none of the factors tried from {LEAST_FACTOR:g} to {UP[-1]:g} makes all samples settle: "
        f"{best[0]:.0%} do at best, at factor {best[1]:g}"
    )
    return Advice(None, f"{refused or tried}. {_INSTEAD}")


def for_lazy(trials: Trials) -> Advice:
    """Return the advice for a lazy model: up, or down if units are saturated."""
    for factor in (*UP_FROM_LAZY, *DOWN):
        if trials.settled(factor) == 1 and trials.verdict(factor) == "stable":
            return Advice(factor)
    return Advice(
        None,
        f"no factor tried from {LEAST_FACTOR:g} to {UP_FROM_LAZY[-1]:g} makes it stable rather "
        "than lazy; a lazy start is no danger to training. If f should depend more on its state, "
        "look for dead or saturated units, or for weights that were not named",
    )


def _is_fit(trials: Trials, factor: float) -> bool:
    """Return whether this factor may be suggested."""
    return (
        trials.settled(factor) == 1
        and trials.verdict(factor) in ("stable", "lazy")
        and trials.share(factor) >= LEAST_SHARE
    )


def _edge(trials: Trials, inside: float, outside: float) -> float:
    """Return the factor next to ``outside`` at which all samples settle, with three digits."""
    while max(inside / outside, outside / inside) > _CLOSE:
        middle = float(f"{math.sqrt(inside * outside):.3g}")
        if middle in (inside, outside):
            break
        if trials.settled(middle) == 1:
            inside = middle
        else:
            outside = middle
    return inside
