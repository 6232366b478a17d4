"""The paper's claims, held against runs: supported, not supported or undecided.

The unit is the seed. Runs of one seed share all but W (and what differs by family), so families are
compared seed by seed, and runs of one seed in several data orders are averaged first. p-values are
two-sided sign-flip (paired permutation) tests, exact up to 13 seeds and of 10000 random flips
beyond; intervals are 95 % percentile bootstraps over seeds.

A claim says that some difference is positive. At one gain it may take several such differences; it
is then as sure as the least sure of them (the intersection-union test, whose p is the largest).
Over gains, Holm's correction is applied; to differences below 0, over all differences. With
α = 0.05 the claim is

- *supported* if at some gain the corrected p is below α with an interval above 0, and at none is
  any of the differences significantly below 0;
- *not supported* if some difference is significantly below 0 at some gain, and the claim holds
  significantly at none;
- *undecided* otherwise: the interval holds both, or different gains say opposite things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Decision = Literal["supported", "not supported", "undecided"]
Statistic = Callable[..., Any]

ALPHA = 0.05
_FLIPS, _RESAMPLES = 10_000, 4_000

LARGER = "orthogonal allows larger initial weights than random"
MOST = "random fluctuates most"
STABLE = "GOE is stable at some cost"
EXTREMES = "random has the best minimum and the worst average"


@dataclass(frozen=True)
class Verdict:
    """What runs say of a claim.

    Attributes
    ----------
    claim : str
        The claim, or a part of it.
    verdict : {"supported", "not supported", "undecided"}
        By the rule of this module.
    where : str
        The gain, and what is compared there: the ones with the least p.
    effect, low, high : float
        Effect size there, and its 95 % interval; positive means that the claim holds.
    unit : str
        Of the effect.
    test : str
        What p is of.
    p : float
        Corrected for all gains.
    seeds : int
        How many, for each family.
    """

    claim: str
    verdict: Decision
    where: str
    effect: float
    low: float
    high: float
    unit: str
    test: str
    p: float
    seeds: int


@dataclass(frozen=True)
class Difference:
    """One comparison at one gain: an estimate with its interval and p-value."""

    name: str
    effect: float
    low: float
    high: float
    p: float
    seeds: int


@dataclass(frozen=True)
class Runs:
    """Outcomes by family and gain, aligned by seed.

    Attributes
    ----------
    values : dict of (label, gain) to array, shape (seeds, orders)
        What a run gave; finite.
    failed : dict of (label, gain) to array of bool, shape (seeds, orders)
        Whether it failed.
    higher : bool
        Whether a higher value is a better one.
    unit, factor : str, float
        Of differences of values: ``factor`` times them are in ``unit``.
    """

    values: Mapping[tuple[str, float], Array]
    failed: Mapping[tuple[str, float], NDArray[np.bool_]]
    higher: bool = True
    unit: str = ""
    factor: float = 1.0

    def gains(self, *labels: str) -> list[float]:
        """Return the gains at which all of these families were run, ascending."""
        each = [{gain for label, gain in self.values if label == wanted} for wanted in labels]
        return sorted(set.intersection(*each))


def runs_of(
    rows: Iterable[Mapping[str, Any]],
    value: Callable[[Mapping[str, Any]], float],
    failed: Callable[[Mapping[str, Any]], bool],
    *,
    gain: str = "nominal",
    **kind: Any,
) -> Runs:
    """Return the outcomes of rows with a ``label``, a gain, a ``seed`` and maybe an ``order``.

    Parameters
    ----------
    rows : iterable of dict
        Each seed in each order once for each label and gain.
    value, failed : callable
        Of a row.
    gain : str
        The entry that is the gain.
    **kind
        ``higher``, ``unit`` and ``factor`` of :class:`Runs`.
    """
    groups: dict[tuple[str, float], dict[tuple[int, int], Mapping[str, Any]]] = {}
    for row in rows:
        run = (row["seed"], row.get("order") or 0)
        groups.setdefault((row["label"], row[gain]), {})[run] = row
    values, failures = {}, {}
    for where, group in groups.items():
        seeds = len({seed for seed, _ in group})
        ordered = [group[run] for run in sorted(group)]
        values[where] = np.array([value(row) for row in ordered], float).reshape(seeds, -1)
        failures[where] = np.array([failed(row) for row in ordered], bool).reshape(seeds, -1)
    return Runs(values, failures, **kind)


def larger_weights(runs: Runs, *, large: str = "orthogonal", small: str = "random") -> Verdict:
    """Compare the largest gains up to which, and at which, the runs of a seed do not fail."""
    gains = runs.gains(large, small)
    usable = [
        np.mean(_usable(np.stack([runs.failed[label, gain] for gain in gains]), gains), axis=1)
        for label in (large, small)
    ]
    difference = _paired(f"{large} − {small}", usable[0] - usable[1])
    failures = sum(int(runs.failed[label, g].sum()) for label in (large, small) for g in gains)
    found = _decide(
        f"{LARGER} (by failures)",
        {gains[-1]: [difference]},
        unit="largest usable gain",
        test="sign-flip on the largest gain up to which no run of the seed fails",
    )
    where = f"gains {gains[0]:g} to {gains[-1]:g}"
    return replace(found, where=where if failures else f"{where}: no run failed")


def better_at_equal_gain(
    runs: Runs, *, large: str = "orthogonal", small: str = "random"
) -> Verdict:
    """Compare the means, gain by gain: what larger weights cost, short of failure, counts here."""
    parts = {
        gain: [
            _paired(
                f"{large} − {small}",
                _better(runs, runs.values[large, gain], runs.values[small, gain]),
            )
        ]
        for gain in runs.gains(large, small)
    }
    return _decide(
        f"{LARGER} (by the mean at equal gain)", parts, unit=runs.unit, test="sign-flip on the mean"
    )


def fluctuates_most(
    runs: Runs, *, most: str = "random", others: Sequence[str] = ("orthogonal", "goe, half gain")
) -> Verdict:
    """Compare spreads over seeds: mean absolute deviations from the family's median."""
    parts = {
        gain: [
            _spread(f"{most} : {other}", runs.values[most, gain], runs.values[other, gain])
            for other in others
        ]
        for gain in runs.gains(most, *others)
    }
    return _decide(
        MOST if most == "random" else f"{most} fluctuates most",
        parts,
        unit="log ratio of mean absolute deviations",
        test="sign-flip on absolute deviations from the medians",
    )


def stable_at_cost(runs: Runs, *, goe: str = "goe, half gain") -> list[Verdict]:
    """Compare GOE's spread with random's, and its runs with orthogonal's where neither fails."""
    stable = _decide(
        "  GOE is stable",
        {
            gain: [_spread(f"random : {goe}", runs.values["random", gain], runs.values[goe, gain])]
            for gain in runs.gains("random", goe)
        },
        unit="log ratio of mean absolute deviations",
        test="sign-flip on absolute deviations from the medians",
    )
    costs = {}
    for gain in runs.gains("orthogonal", goe):
        lost = (runs.failed["orthogonal", gain] | runs.failed[goe, gain]).any(axis=1)
        gap = _better(runs, runs.values["orthogonal", gain], runs.values[goe, gain])[~lost]
        if len(gap) > 1:
            costs[gain] = [_paired(f"orthogonal − {goe}", gap)]
    cost = _decide("  at some cost", costs, unit=runs.unit, test="sign-flip where neither failed")
    worse = max((stable, cost), key=_trouble)
    decisions = {stable.verdict, cost.verdict}
    verdict: Decision = "undecided"
    if decisions == {"supported"}:
        verdict = "supported"
    elif "not supported" in decisions:
        verdict = "not supported"
    name = STABLE if goe != "goe" else f"{STABLE} (equal gain)"
    return [replace(worse, claim=name, verdict=verdict), stable, cost]


def best_minimum_worst_average(
    runs: Runs, *, others: Sequence[str] = ("orthogonal", "goe, half gain")
) -> Verdict:
    """Compare random's best run, and its mean, with those of the others."""
    parts: dict[float, list[Difference]] = {}
    for gain in runs.gains("random", *others):
        own = runs.values["random", gain]
        parts[gain] = []
        for other in others:
            theirs = runs.values[other, gain]
            worse = -_better(runs, own, theirs)
            parts[gain] += [
                _best(f"best: random − {other}", runs, own, theirs),
                _paired(f"average: {other} − random", worse),
            ]
    return _decide(
        EXTREMES, parts, unit=runs.unit, test="sign-flip on the best run and on the mean"
    )


def gaps(runs: Runs, first: str, second: str) -> dict[float, Difference]:
    """Return by how much a family's runs are better than another's, gain by gain; Holm's p."""
    found = {
        gain: _paired(
            f"{first} − {second}",
            _better(runs, runs.values[first, gain], runs.values[second, gain]),
        )
        for gain in runs.gains(first, second)
    }
    corrected = holm([difference.p for difference in found.values()])
    return {gain: replace(found[gain], p=p) for gain, p in zip(found, corrected, strict=True)}


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's corrected p-values.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def _decide(
    claim: str, parts: Mapping[float, Sequence[Difference]], *, unit: str, test: str
) -> Verdict:
    """Return the verdict of the differences at each gain, by the rule of this module."""
    if not parts:
        nothing = (float("nan"),) * 3
        return Verdict(claim, "undecided", "no gain", *nothing, unit, test, 1.0, 0)
    weakest = {gain: max(each, key=_doubt) for gain, each in parts.items()}
    # The two-sided p of a difference that points the other way is none for the claim.
    own = [part.p if part.effect > 0 else 1.0 for part in weakest.values()]
    corrected = dict(zip(parts, holm(own), strict=True))
    holds = [gain for gain in parts if corrected[gain] < ALPHA and weakest[gain].low > 0]
    every = [(gain, part) for gain, each in parts.items() for part in each]
    all_corrected = holm([part.p for _, part in every])
    fails = [
        (gain, part, p)
        for (gain, part), p in zip(every, all_corrected, strict=True)
        if p < ALPHA and part.high < 0
    ]
    verdict: Decision = "undecided"
    gain = min(parts, key=lambda gain: (_doubt(weakest[gain]), weakest[gain].p))
    part, p = weakest[gain], corrected[gain]
    if part.effect <= 0:
        p = next(p for (_, other), p in zip(every, all_corrected, strict=True) if other is part)
    if holds and not fails:
        verdict = "supported"
    elif fails and not holds:
        verdict = "not supported"
        gain, part, p = min(fails, key=lambda found: found[2])
    where = f"gain {gain:g}: {part.name}"
    if holds and fails:
        against = min(fails, key=lambda found: found[2])
        where += f"; the reverse at gain {against[0]:g}: {against[1].name}"
    return Verdict(
        claim, verdict, where, part.effect, part.low, part.high, unit, test, p, part.seeds
    )


def _doubt(part: Difference) -> tuple[bool, float]:
    """Order differences by how little they are positive."""
    return (part.effect <= 0, part.p if part.effect > 0 else -part.p)


def _trouble(found: Verdict) -> tuple[int, float]:
    """Order parts of a claim by how little they support it."""
    return (("supported", "undecided", "not supported").index(found.verdict), found.p)


def _better(runs: Runs, first: Array, second: Array) -> Array:
    """Return by how much each seed's runs of the first are better, averaged over orders."""
    sign = runs.factor if runs.higher else -runs.factor
    difference: Array = sign * (first - second).mean(axis=1)
    return difference


def _usable(failed: NDArray[np.bool_], gains: Sequence[float]) -> Array:
    """Return the largest gain before the first failure, shape (seeds, orders); 0 if none."""
    count = (~np.logical_or.accumulate(failed, axis=0)).sum(axis=0)
    usable: Array = np.array([0.0, *gains])[count]
    return usable


def _paired(name: str, differences: Array) -> Difference:
    """Return the mean of the seeds' differences."""
    p = _flip_p(differences[:, None], lambda d: d[..., 0].mean(axis=-1))
    low, high = _interval(differences[:, None], lambda d: d[..., 0].mean(axis=-1))
    return Difference(name, float(differences.mean()), low, high, p, len(differences))


def _spread(name: str, first: Array, second: Array) -> Difference:
    """Return the log ratio of the mean absolute deviations from the medians."""
    away = [abs(values - np.median(values)).mean(axis=1) for values in (first, second)]
    p = _flip_p((away[0] - away[1])[:, None], lambda d: d[..., 0].mean(axis=-1))

    def ratio(both: Array) -> Array:
        half = both.shape[-1] // 2
        sizes = []
        for values in (both[..., :half], both[..., half:]):
            middle = np.median(values, axis=(-2, -1), keepdims=True)
            sizes.append(abs(values - middle).mean(axis=(-2, -1)) + 1e-12)
        logarithm: Array = np.log(sizes[0] / sizes[1])
        return logarithm

    both = np.concatenate([first, second], axis=1)
    low, high = _interval(both, ratio)
    return Difference(name, float(ratio(both)), low, high, p, len(first))


def _best(name: str, runs: Runs, first: Array, second: Array) -> Difference:
    """Return by how much the best run of all is better; seeds' results are swapped for p."""
    sign = runs.factor if runs.higher else -runs.factor
    both = sign * np.stack([first, second], axis=1)  # seeds, family, orders

    def gap(both: Array) -> Array:
        best = both.max(axis=(-3, -1))
        difference: Array = best[..., 0] - best[..., 1]
        return difference

    observed = float(gap(both))
    swaps = _flips(len(first))[:, :, None, None] < 0
    swapped = gap(np.where(swaps, both[None, :, ::-1], both[None]))
    low, high = _interval(both, gap)
    return Difference(name, observed, low, high, _share(swapped, observed, len(first)), len(first))


def _flip_p(values: Array, statistic: Statistic) -> float:
    observed = float(statistic(values))
    flipped = statistic(_flips(len(values))[:, :, None] * values[None])
    return _share(flipped, observed, len(values))


def _share(others: Array, observed: float, seeds: int) -> float:
    """Return the two-sided p; with random flips, the observed one counts as one of them."""
    extreme = int((abs(others) >= abs(observed) * (1 - 1e-9)).sum())
    if 2**seeds <= _FLIPS:
        return extreme / len(others)
    return (extreme + 1) / (len(others) + 1)


def _flips(seeds: int) -> Array:
    """Return all choices of signs, or random ones if there are too many."""
    if 2**seeds <= _FLIPS:
        bits = (np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1
    else:
        bits = np.random.default_rng(0).integers(0, 2, (_FLIPS, seeds))
    return np.asarray(1.0 - 2.0 * bits, np.float64)


def _interval(values: Array, statistic: Statistic) -> tuple[float, float]:
    """Return the 95 % percentile interval over resampled seeds (first axis of the values)."""
    n = len(values)
    indices = np.arange(n)
    if n < 2:
        return -np.inf, np.inf
    found = stats.bootstrap(
        (indices,),
        lambda chosen, axis: statistic(values[chosen.astype(int)]),
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
        batch=500,
    )
    low, high = found.confidence_interval
    return float(low), float(high)
