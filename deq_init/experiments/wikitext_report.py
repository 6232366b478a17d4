"""Tables, verdicts and figure of the DEQ-transformer, from the rows of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deq_init.experiments import claims, report
from deq_init.experiments.paper import SLIDES_SOURCE, SLIDES_WIKITEXT103
from deq_init.experiments.results import Row
from deq_init.experiments.runs import draw, grouped

_WHERE = {"post": "post-norm", "pre": "pre-norm", "none": "no normalization"}


def render(folder: Path, rows: list[Row]) -> str:
    """Write figure and table from the rows, and return the table."""
    norms = list(dict.fromkeys(row["settings"]["norm"] for row in rows))
    norms = [norm for norm in _WHERE if norm in norms]
    parts = [[row for row in rows if row["settings"]["norm"] == norm] for norm in norms]
    text = "\n\n".join(_part(part) for part in parts)
    figure, panels = report.new_figure(len(parts))
    for axes, part in zip(np.atleast_1d(panels), parts, strict=True):
        _panel(axes, part)
    report.save_figure(folder, figure)
    report.write_table(folder, text)
    return text


def runs_of(rows: list[Row]) -> claims.Runs:
    """Return logarithms of perplexities: at most that of guessing, which a lost run counts as."""
    return claims.runs_of(
        rows,
        lambda row: float(np.log(_perplexity(row))),
        lambda row: row["failed"],
        higher=False,
        unit="log perplexity",
    )


def _perplexity(row: Mapping[str, Any]) -> float:
    found, most = row["perplexity"], row["vocabulary"]
    return float(most if found is None else min(found, most))


def _part(rows: list[Row]) -> str:
    runs = runs_of(rows)
    others = ("orthogonal", "goe")
    found = [
        claims.larger_weights(runs),
        claims.better_at_equal_gain(runs),
        claims.fluctuates_most(runs, others=others),
        *claims.stable_at_cost(runs, goe="goe"),
        claims.best_minimum_worst_average(runs, others=others),
    ]
    return "\n\n".join([_runs_table(rows), report.claims_table(found)])


def _runs_table(rows: list[Row]) -> str:
    header = [
        "family", "gain", "min", "median", "mean", "failed", "solver steps", "not converged",
        "paper: min", "mean",
    ]  # fmt: skip
    lines = []
    for (nominal, label), group in grouped(rows).items():
        perplexity = _perplexities(group)
        lines.append(
            [
                label,
                f"{group[0]['gain']:g}",
                f"{perplexity.min():.1f}",
                f"{np.median(perplexity):.1f}",
                f"{perplexity.mean():.1f}",
                f"{np.mean([row['failed'] for row in group]):.2f}",
                f"{_mean(group, 'solver_steps'):.1f}",
                f"{_mean(group, 'not_converged'):.2f}",
                *(f"{v:.1f}" for v in SLIDES_WIKITEXT103.get(nominal, {}).get(label, ())),
            ]
        )
        lines[-1] += ["-"] * (len(header) - len(lines[-1]))
    row = rows[0]
    how = row["settings"]
    backend = {"jax": "", "torch": ", PyTorch", "keras": ", Keras"}[row["backend"]]
    clip = "no clipping" if how["clip"] is None else f"gradients clipped at {how['clip']:g}"
    return (
        f"# DEQ-transformer on WikiText-{row['text']}, {_WHERE[how['norm']]}{backend}: perplexity "
        f"over {row['seeds']} seeds\n\n{report.markdown_table(header, lines)}\n\n"
        f"Perplexity on the {row['valid']} text after training on the {row['train']} text, both "
        f"with {row['vocabulary']} words. failed: share of runs above {row['baseline']:.1f}, the "
        f"perplexity of the words' frequencies alone; a run that is lost counts as guessing, "
        f"{row['vocabulary']}. Width {how['width']}, {how['heads']} heads, feed-forward layer "
        f"{how['expansion']} times as wide, {how['batch']} sequences of {how['length']} words, "
        f"{how['steps']} steps of Adam, learning rate {how['learning_rate']:g}, {clip}; "
        f"{how['method']} iteration of at most {how['max_steps']} steps to {how['rtol']:g}, "
        f"converged or not. paper: {SLIDES_SOURCE}, WikiText-103; their setting is not published."
    )


def _perplexities(group: list[Row]) -> NDArray[np.float64]:
    return np.array([_perplexity(row) for row in group])


def _mean(group: list[Row], name: str) -> float:
    values = [row[name] for row in group if row[name] is not None]
    return float(np.mean(values)) if values else float("nan")


def _panel(axes: Any, rows: list[Row]) -> None:
    draw(axes, grouped(rows), _perplexities)
    axes.axhline(rows[0]["baseline"], color="grey", lw=0.8, ls=":", label="word frequencies")
    axes.set(yscale="log", xlabel="gain (half gain: twice that of the block)", ylabel="perplexity")
    norm = _WHERE[rows[0]["settings"]["norm"]]
    axes.set_title(f"DEQ-transformer, {norm}: runs, median, 16–84 %", fontsize=10)
    axes.legend(fontsize=8)
