"""Tables, verdicts and figure of the fully-connected DEQ, from the rows of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deq_init import families
from deq_init.experiments import claims, report
from deq_init.experiments.fcn import FAILED_BELOW, REGIMES
from deq_init.experiments.results import Row
from deq_init.experiments.runs import draw, grouped

_SHOWN = 0.5  # a gap in points that is worth a word


def render(folder: Path, rows: list[Row]) -> str:
    """Write figure and table from the rows, and return the table."""
    # Rows are in the order in which cells were finished.
    found = {row["regime"] for row in rows}
    regimes = [name for name in REGIMES if name in found]
    parts = [_part([row for row in rows if row["regime"] == regime]) for regime in regimes]
    if len(regimes) > 1:
        parts.append(_across(rows, regimes))
    text = "\n\n".join(parts)
    _figure(folder, rows, regimes)
    report.write_table(folder, text)
    return text


def runs_of(rows: list[Row]) -> claims.Runs:
    """Return accuracies; what is not a number is none at all."""
    return claims.runs_of(
        rows,
        lambda row: row["accuracy"] or 0.0,
        lambda row: row["failed"],
        unit="points",
        factor=100.0,
    )


def _part(rows: list[Row]) -> str:
    runs = runs_of(rows)
    found = [
        claims.larger_weights(runs),
        claims.better_at_equal_gain(runs),
        claims.fluctuates_most(runs),
        *claims.stable_at_cost(runs),
        *claims.stable_at_cost(runs, goe="goe")[:1],
        claims.best_minimum_worst_average(runs),
    ]
    return "\n\n".join([_runs_table(rows), report.claims_table(found), _gaps_table(runs)])


def _accuracies(group: list[Row]) -> np.ndarray:
    return 100 * np.array([row["accuracy"] or 0.0 for row in group])


def _runs_table(rows: list[Row]) -> str:
    header = [
        "family", "gain", "radius", "mean %", "sd", "min", "max", "failed", "median loss",
        "solver steps", "not converged",
    ]  # fmt: skip
    lines = []
    for (_, label), group in grouped(rows).items():
        first = group[0]
        accuracy = _accuracies(group)
        # A loss that is not a number is worse than any.
        loss = np.array([np.inf if row["loss"] is None else row["loss"] for row in group])
        lines.append(
            [
                label,
                f"{first['gain']:g}",
                f"{first['gain'] * families.get(first['family']).radius_edge:g}",
                f"{accuracy.mean():.1f}",
                f"{accuracy.std(ddof=1) if len(accuracy) > 1 else 0:.1f}",
                f"{accuracy.min():.1f}",
                f"{accuracy.max():.1f}",
                f"{np.mean([row['failed'] for row in group]):.2f}",
                f"{np.median(loss):.3g}",
                f"{np.mean([row['solver_steps'] for row in group]):.1f}",
                f"{np.mean([row['not_converged'] for row in group]):.2f}",
            ]
        )
    row, orders = rows[0], {row["order"] for row in rows}
    regime = "" if row["regime"] == "base" else f", {row['regime']}"
    backend = {"jax": "", "torch": ", PyTorch", "keras": ", Keras"}[row["backend"]]
    many = f" in each of {len(orders)} data orders" if orders != {None} else ""
    return (
        f"# DEQ-FCN on {row['experiment']}{regime}{backend}: test accuracy over {row['seeds']} "
        f"seeds{many}\n\n{report.markdown_table(header, lines)}\n\n{_described(row)}"
    )


def _described(row: Row) -> str:
    how = row["settings"]
    optimizer = "Adam" if how["optimizer"] == "adam" else f"SGD, momentum {how['momentum']:g}"
    clip = "no clipping" if how["clip"] is None else f"gradients clipped at {how['clip']:g}"
    solver = {
        "batch": "plain iteration of the batch as a whole",
        "plain": "plain iteration of each sample",
        "anderson": "Anderson acceleration (memory 5) of each sample",
    }[how["method"]]
    return (
        "radius: spectral radius of W in the limit of large width. failed: share of runs below "
        f"{FAILED_BELOW:.0%}. median loss: of the last training step. solver steps, not "
        f"converged: forward solves during training, {solver}, at most {how['max_steps']} steps "
        f"to {how['rtol']:g}, converged or not. Width {how['width']}, batch {how['batch']}, "
        f"{how['epochs']} {'epoch' if how['epochs'] == 1 else 'epochs'} of {optimizer}, learning "
        f"rate {how['learning_rate']:g}, {clip}."
    )


def _gaps_table(runs: claims.Runs) -> str:
    header = ["orthogonal − random at gain", "points [95 %]", "p", "failed: orthogonal", "random"]
    lines = []
    for gain, gap in claims.gaps(runs, "orthogonal", "random").items():
        failed = [runs.failed[label, gain].mean() for label in ("orthogonal", "random")]
        lines.append(
            [
                f"{gain:g}",
                f"{gap.effect:+.2f} [{gap.low:.2f}, {gap.high:.2f}]",
                f"{gap.p:.2g}",
                *(f"{share:.2f}" for share in failed),
            ]
        )
    return report.markdown_table(header, lines)


def _across(rows: list[Row], regimes: list[str]) -> str:
    """Return where the difference between orthogonal and random shows."""
    header = ["regime", "largest gap", "at gain", "p", "gap shows"]
    lines = []
    for regime in regimes:
        runs = runs_of([row for row in rows if row["regime"] == regime])
        gaps = claims.gaps(runs, "orthogonal", "random")
        gain = max(gaps, key=lambda gain: gaps[gain].effect)
        gap = gaps[gain]
        if gap.p < claims.ALPHA and gap.low > 0:
            shows = "yes" if gap.effect > _SHOWN else f"below {_SHOWN:g} points"
        else:
            shows = "not significantly"
        lines.append(
            [
                regime,
                f"{gap.effect:+.2f} [{gap.low:.2f}, {gap.high:.2f}]",
                f"{gain:g}",
                f"{gap.p:.2g}",
                shows,
            ]
        )
    return (
        f"# Where orthogonal − random shows\n\n{report.markdown_table(header, lines)}\n\n"
        "Mean accuracy, in points, with its 95 % interval; p is corrected for all gains of the "
        "regime."
    )


def _figure(folder: Path, rows: list[Row], regimes: list[str]) -> None:
    figure, panels = report.new_figure(len(regimes))
    for axes, regime in zip(np.atleast_1d(panels), regimes, strict=True):
        _panel(axes, [row for row in rows if row["regime"] == regime])
        name = rows[0]["experiment"] + ("" if regime == "base" else f", {regime}")
        axes.set_title(f"DEQ-FCN on {name}: runs, median, 16–84 %", fontsize=10)
    report.save_figure(folder, figure)


def _panel(axes: Any, rows: list[Row]) -> None:
    draw(axes, grouped(rows), _accuracies)
    axes.set(xlabel="gain (half gain: twice that of W)", ylabel="test accuracy, %")
    axes.legend(fontsize=8, loc="lower left")
