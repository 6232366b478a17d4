"""Verdicts on made-up runs in which a claim is true, false, or cannot be told.

Each "true" or "false" case has an effect of several standard errors, so that a wrong verdict is
rare (below 1e-6 for the normal cases); seeds are fixed. The level is tested by simulation.
"""

import numpy as np
import pytest
from scipy import stats

from deq_init.experiments import claims

RANDOM, ORTHOGONAL, GOE = "random", "orthogonal", "goe, half gain"
SEEDS = 24


def runs(values, higher=True, failed_below=0.8):
    """Runs at gains 0.5 and 1.0 from functions of (rng, gain) that give an array of seeds."""
    rng = np.random.default_rng(7)
    found = {
        (label, gain): np.asarray(law(rng, gain), float)[:, None]
        for gain in (0.5, 1.0)
        for label, law in values.items()
    }
    failed = {key: value < failed_below for key, value in found.items()}
    return claims.Runs(found, failed, higher, "points", 100.0)


def around(mean, deviation):
    return lambda rng, gain: mean + deviation * rng.standard_normal(SEEDS)


def failing(share):
    """Good at the small gain; a share of runs at chance at the large one."""

    def law(rng, gain):
        good = 0.95 + 0.01 * rng.standard_normal(SEEDS)
        return np.where((gain > 0.7) & (np.arange(SEEDS) < share * SEEDS), 0.1, good)

    return law


def test_larger_weights():
    verdict = claims.larger_weights(runs({ORTHOGONAL: failing(0), RANDOM: failing(0.5)}))
    assert verdict.verdict == "supported"
    assert verdict.effect == pytest.approx(0.25)  # half of the seeds stop at 0.5 and not 1.0
    assert verdict.low <= verdict.effect <= verdict.high
    assert verdict.seeds == SEEDS
    against = claims.larger_weights(runs({ORTHOGONAL: failing(0.5), RANDOM: failing(0)}))
    assert against.verdict == "not supported"
    few = claims.larger_weights(runs({ORTHOGONAL: failing(0), RANDOM: failing(0.1)}))
    assert few.verdict == "undecided"
    none = claims.larger_weights(runs({ORTHOGONAL: failing(0), RANDOM: failing(0)}))
    assert (none.verdict, none.p) == ("undecided", 1)
    assert "no run failed" in none.where


def test_usable_gains_end_at_the_first_failure():
    """A run that fails at 0.5 and not at 1.0 has not earned the 1.0."""
    lucky = runs({ORTHOGONAL: failing(0), RANDOM: failing(0)})
    lucky.failed[RANDOM, 0.5][:] = True
    assert claims.larger_weights(lucky).effect == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("spread", "expected"), [(0.1, "supported"), (0.01, "undecided"), (0.001, "not supported")]
)
def test_fluctuates_most(spread, expected):
    found = claims.fluctuates_most(
        runs({RANDOM: around(0.9, spread), ORTHOGONAL: around(0.9, 0.01), GOE: around(0.9, 0.01)})
    )
    assert found.verdict == expected
    if expected != "undecided":
        assert found.effect == pytest.approx(np.log(spread / 0.01), abs=0.8)


def test_to_fluctuate_most_is_to_fluctuate_more_than_each():
    found = claims.fluctuates_most(
        runs({RANDOM: around(0.9, 0.1), ORTHOGONAL: around(0.9, 0.01), GOE: around(0.9, 0.1)})
    )
    assert found.verdict == "undecided"
    assert GOE in found.where


@pytest.mark.parametrize(
    ("goe", "stable", "cost", "both"),
    [
        (around(0.90, 0.01), "supported", "supported", "supported"),
        (around(0.95, 0.01), "supported", "undecided", "undecided"),
        (around(0.98, 0.01), "supported", "not supported", "not supported"),
    ],
)
def test_stable_at_cost(goe, stable, cost, both):
    made = runs({RANDOM: around(0.95, 0.1), ORTHOGONAL: around(0.95, 0.01), GOE: goe})
    whole, *parts = claims.stable_at_cost(made)
    assert [part.verdict for part in parts] == [stable, cost]
    assert whole.verdict == both


def test_the_cost_is_that_of_runs_that_do_not_fail():
    """GOE fails in half of its runs here, and the others are as good as orthogonal's."""
    made = runs({RANDOM: failing(0.5), ORTHOGONAL: around(0.95, 0.01), GOE: failing(0.5)})
    assert abs(claims.stable_at_cost(made)[2].effect) < 2


def test_best_minimum_worst_average():
    """As in the paper: perplexities, of which lower is better."""
    lucky = lambda rng, gain: np.where(np.arange(SEEDS) < 12, 50, 500) + rng.random(SEEDS)  # noqa: E731
    law = {RANDOM: lucky, ORTHOGONAL: around(100, 1), GOE: around(110, 1)}
    found = claims.best_minimum_worst_average(runs(law, higher=False))
    assert found.verdict == "supported"
    assert claims.best_minimum_worst_average(runs(law)).verdict == "not supported"
    law[RANDOM] = around(40, 1)
    assert claims.best_minimum_worst_average(runs(law, higher=False)).verdict == "not supported"


def test_what_is_true_at_one_gain_and_reversed_at_another_is_undecided():
    law = {ORTHOGONAL: lambda rng, gain: 0.9 + 0.05 * (gain - 0.75) + 0.001 * rng.random(SEEDS)}
    found = claims.better_at_equal_gain(runs(law | {RANDOM: around(0.9, 0.001)}))
    assert found.verdict == "undecided"
    assert "gain 1: orthogonal − random; the reverse at gain 0.5" in found.where
    better = claims.better_at_equal_gain(runs({ORTHOGONAL: around(0.95, 0.01), RANDOM: failing(1)}))
    assert better.verdict == "supported"


def test_few_seeds_decide_nothing():
    rows = [
        {"label": label, "nominal": 1.0, "seed": seed, "order": None, "x": x + seed / 100}
        for label, x in ((ORTHOGONAL, 0.9), (RANDOM, 0.1))
        for seed in range(4)
    ]
    made = claims.runs_of(rows, lambda row: row["x"], lambda row: row["x"] < 0.8)
    found = claims.larger_weights(made)
    # Two of the 16 choices of signs are as extreme.
    assert (found.verdict, found.p) == ("undecided", pytest.approx(2 / 16))


def test_runs_of_a_seed_in_two_orders_count_once():
    rows = [
        {"label": label, "nominal": 1.0, "seed": seed, "order": order, "x": float(seed + order)}
        for seed in (3, 1, 2)
        for order in (1, 0)
        for label in (ORTHOGONAL, RANDOM)
    ]
    made = claims.runs_of(rows, lambda row: row["x"], lambda row: row["x"] > 2)
    np.testing.assert_array_equal(made.values[RANDOM, 1.0], [[1, 2], [2, 3], [3, 4]])
    np.testing.assert_array_equal(made.failed[RANDOM, 1.0], [[0, 0], [0, 1], [1, 1]])
    assert claims.larger_weights(made).seeds == 3


@pytest.mark.parametrize("seeds", [8, 20])
def test_p_is_scipys(seeds):
    """Against SciPy's own permutation test: exact for 8 seeds, to sampling error for 20."""
    rng = np.random.default_rng(seeds)
    first, second = rng.normal(0.5, 1, seeds), rng.normal(0, 1, seeds)
    values = {(ORTHOGONAL, 1.0): first[:, None], (RANDOM, 1.0): second[:, None]}
    found = claims.gaps(claims.Runs(values, {}), ORTHOGONAL, RANDOM)[1.0]
    reference = stats.permutation_test(
        (first - second,), np.mean, permutation_type="samples", n_resamples=20_000, rng=rng
    )
    assert found.p == pytest.approx(reference.pvalue, abs=1e-12 if seeds == 8 else 0.02)
    assert found.effect == pytest.approx((first - second).mean())


def test_the_level():
    """Equal families: false verdicts in at most 5 % of 200 experiments, each at two gains.

    Binomial(200, 0.05) exceeds 26 with probability 1e-5; the test's own is conservative.
    """
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        values = {
            (label, gain): rng.normal(size=(10, 1))
            for label in (RANDOM, ORTHOGONAL)
            for gain in (0.5, 1.0)
        }
        gaps = claims.gaps(claims.Runs(values, {}), ORTHOGONAL, RANDOM)
        wrong += any(gap.p < claims.ALPHA for gap in gaps.values())
    assert 0 < wrong <= 26


def test_holm():
    assert claims.holm([0.5]) == [0.5]
    assert claims.holm([0.02, 0.5, 0.01]) == pytest.approx([0.04, 0.5, 0.03])
    assert claims.holm([0.9, 0.8]) == [1, 1]


def test_a_reversed_difference_is_no_evidence_at_another_gain():
    """Two gains: at one, two differences that disagree; at the other, p = 0.04 alone.

    Corrected for two gains that is 0.08. The reversed one's own p of 0.02 is none for the claim.
    """
    parts = {
        1.0: [
            claims.Difference("a", -1, -2, -0.1, 0.02, 8),
            claims.Difference("b", 1, -1, 2, 0.5, 8),
        ],
        2.0: [
            claims.Difference("a", 1, 0.1, 2, 0.04, 8),
            claims.Difference("b", 1, 0.1, 2, 0.03, 8),
        ],
    }
    found = claims._decide("claim", parts, unit="", test="")
    assert found.verdict == "undecided"
    assert found.p == pytest.approx(0.08)
