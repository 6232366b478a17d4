"""The fully-connected DEQ trained from different initializations of W.

The setting is one in which the initialization shows: SGD with momentum and no gradient clipping,
plain iteration with the last iterate kept, and a small network. Adam, Anderson acceleration,
clipping, few solver steps or a large width each hide it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deq_init import data, families
from deq_init.errors import require
from deq_init.experiments import report

FAILED_BELOW = 0.8
"""A run has failed if its test accuracy is below this, or not a number."""


@dataclass(frozen=True)
class Settings:
    """How every run of the experiment is trained.

    Attributes
    ----------
    width, batch, epochs : int
        Size of z, samples a step, passes over the training samples.
    learning_rate, momentum : float
        Of SGD.
    rtol, max_steps : float, int
        Tolerance and step cap of plain iteration from z = 0, forward and adjoint.
    input_gain : float
        Entries of U have standard deviation input_gain / sqrt(features).
    """

    width: int = 48
    batch: int = 50
    epochs: int = 3
    learning_rate: float = 0.02
    momentum: float = 0.9
    rtol: float = 1e-3
    max_steps: int = 40
    input_gain: float = 0.3


@dataclass(frozen=True)
class Cell:
    """One family at one gain; ``label`` tells GOE at equal gain from GOE at equal radius."""

    family: str
    gain: float
    nominal: float
    label: str


def cells(gains: tuple[float, ...]) -> list[Cell]:
    """Return the grid: every family at each gain, and GOE at half of it (equal radius)."""
    grid = []
    for gain in gains:
        for family in families.PAPER:
            grid.append(Cell(family, gain, gain, family))
            if families.get(family).radius_edge == 2:
                grid.append(Cell(family, gain / 2, gain, f"{family}, half gain"))
    return grid


def run_digits(
    output: str | Path | None = None,
    *,
    gains: tuple[float, ...] = (0.6, 0.9, 1.2, 1.3),
    seeds: int = 12,
    epochs: int = 3,
    quiet: bool = False,
) -> Path:
    """Train on scikit-learn's handwritten digits and return the results folder.

    Parameters
    ----------
    output : path, optional
        Where results go, see :func:`deq_init.experiments.report.results_folder`.
    gains : tuple of float
        Gains of W; GOE is run at half of each too.
    seeds : int
        Runs for each cell, seeds 0, 1, ... A seed fixes input matrix, readout and data order,
        which all families share.
    epochs : int
        Passes over the training samples.
    quiet : bool
        No progress bar and no table on standard output.
    """
    jax_adapter = require("deq_init.jax", "jax")
    models = require("deq_init.jax.models", "jax")
    training = require("deq_init.jax.training", "jax")
    settings = Settings(epochs=epochs)
    split = data.digits()
    folder = report.results_folder("digits", output)
    started = time.perf_counter()
    model = models.DEQFCN(
        inputs=split.x_train.shape[1],
        width=settings.width,
        classes=10,
        rtol=settings.rtol,
        max_steps=settings.max_steps,
        input_gain=settings.input_gain,
    )
    orders = np.stack([_order(len(split.x_train), settings, seed) for seed in range(seeds)])
    context = {"settings": asdict(settings), "environment": report.environment()}
    rows: list[dict[str, Any]] = []
    for cell in report.progress(cells(gains), "digits", quiet):
        begun = time.perf_counter()
        outcome = training.train_fcn(
            model,
            getattr(jax_adapter, cell.family)(cell.gain),
            split,
            orders,
            np.arange(seeds),
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
        )
        seconds = time.perf_counter() - begun
        new = [
            {
                "experiment": "digits",
                **asdict(cell),
                "seed": seed,
                "accuracy": outcome.accuracy[seed],
                "failed": not outcome.accuracy[seed] >= FAILED_BELOW,
                "loss": outcome.loss[seed],
                "solver_steps": outcome.solver_steps[seed],
                "not_converged": outcome.not_converged[seed],
                "cell_seconds": seconds,
                **context,
            }
            for seed in range(seeds)
        ]
        report.append_rows(folder, new)
        rows += new
    table = _table(rows, settings)
    report.write_table(folder, table)
    _draw(folder, rows)
    if not quiet:
        print(table)
        print(f"\n{time.perf_counter() - started:.1f} s. Results: {folder}")
    return folder


def _order(samples: int, settings: Settings, seed: int) -> np.ndarray:
    """Return the training samples of each step: every epoch a new shuffle, the rest dropped."""
    rng = np.random.default_rng(seed)
    steps = samples // settings.batch
    kept = [rng.permutation(samples)[: steps * settings.batch] for _ in range(settings.epochs)]
    return np.concatenate(kept).reshape(-1, settings.batch)


def _groups(rows: list[dict[str, Any]]) -> dict[tuple[float, str], list[dict[str, Any]]]:
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["nominal"], row["label"]), []).append(row)
    return groups


def _table(rows: list[dict[str, Any]], settings: Settings) -> str:
    header = [
        "family", "gain", "radius", "mean %", "sd", "min", "failed", "solver steps",
        "not converged",
    ]  # fmt: skip
    lines = []
    for (_, label), group in _groups(rows).items():
        first = group[0]
        accuracy = 100 * np.array([row["accuracy"] for row in group])
        lines.append(
            [
                label,
                f"{first['gain']:g}",
                f"{first['gain'] * families.get(first['family']).radius_edge:g}",
                f"{accuracy.mean():.1f}",
                f"{accuracy.std(ddof=1) if len(accuracy) > 1 else 0:.1f}",
                f"{accuracy.min():.1f}",
                f"{np.mean([row['failed'] for row in group]):.2f}",
                f"{np.mean([row['solver_steps'] for row in group]):.1f}",
                f"{np.mean([row['not_converged'] for row in group]):.2f}",
            ]
        )
    return (
        f"# DEQ-FCN on digits: test accuracy over {len(group)} seeds\n\n"
        f"{report.markdown_table(header, lines)}\n\n"
        f"radius: spectral radius of W in the limit of large width. failed: share of runs below "
        f"{FAILED_BELOW:.0%}. solver steps, not converged: forward solves during training, at most "
        f"{settings.max_steps} steps to {settings.rtol:g}, last iterate kept. Width "
        f"{settings.width}, batch {settings.batch}, {settings.epochs} epochs of SGD, learning "
        f"rate {settings.learning_rate:g}, momentum {settings.momentum:g}, no clipping."
    )


def _draw(folder: Path, rows: list[dict[str, Any]]) -> None:
    figure, axes = report.new_figure(1)
    groups = _groups(rows)
    labels = list(dict.fromkeys(label for _, label in groups))
    nominals = list(dict.fromkeys(nominal for nominal, _ in groups))
    for k, label in enumerate(labels):
        family = groups[nominals[0], label][0]["family"]
        x = np.arange(len(nominals)) + (k - (len(labels) - 1) / 2) * 0.18
        accuracy = [[100 * row["accuracy"] for row in groups[g, label]] for g in nominals]
        colour = report.COLOURS[family] if label == family else "tab:olive"
        where = np.repeat(x, [len(a) for a in accuracy])
        axes.plot(where, np.concatenate(accuracy), "o", ms=3, alpha=0.6, color=colour, label=label)
        axes.plot(x, [np.mean(a) for a in accuracy], "_", ms=16, color=colour)
    axes.set_xticks(range(len(nominals)), [f"{gain:g}" for gain in nominals])
    axes.set(xlabel="gain (half gain: twice that of W)", ylabel="test accuracy, %")
    axes.set_title("DEQ-FCN on digits: each seed, and the mean", fontsize=10)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(folder / report.FIGURE)
