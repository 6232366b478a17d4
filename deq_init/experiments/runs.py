"""Runs of several families at several gains, in the order of tables, and drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from deq_init import families
from deq_init.experiments import report
from deq_init.experiments.results import Row

Groups = dict[tuple[float, str], list[Row]]


def grouped(rows: list[Row]) -> Groups:
    """Return the rows of each nominal gain and label, by gain and then by family."""
    groups: Groups = {}
    # Cells are written in the order in which they were finished.
    for row in rows:
        groups.setdefault((row["nominal"], row["label"]), []).append(row)
    return {key: groups[key] for key in sorted(groups, key=lambda key: (key[0], *_rank(key[1])))}


def _rank(label: str) -> tuple[int, bool, str]:
    family = label.split(",")[0]
    return families.PAPER.index(family), label != family, label


def draw(axes: Any, groups: Groups, values: Callable[[list[Row]], np.ndarray]) -> None:
    """Draw each run, the median and the band from 16 to 84 % against the gain.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where.
    groups : dict
        By :func:`grouped`.
    values : callable
        Of a group: one number for each run.
    """
    labels = list(dict.fromkeys(label for _, label in groups))
    nominals = sorted({nominal for nominal, _ in groups})
    for k, label in enumerate(labels):
        family = label.split(",")[0]
        colour = report.COLOURS[family] if label == family else "tab:olive"
        x = np.arange(len(nominals)) + (k - (len(labels) - 1) / 2) * 0.18
        each = [values(groups[nominal, label]) for nominal in nominals]
        where = np.repeat(x, [len(numbers) for numbers in each])
        axes.plot(where, np.concatenate(each), "o", ms=3, alpha=0.4, color=colour)
        low, middle, high = np.array([np.quantile(a, (0.16, 0.5, 0.84)) for a in each]).T
        axes.fill_between(x, low, high, color=colour, alpha=0.15)
        axes.plot(x, middle, "_-", ms=14, lw=0.8, color=colour, label=label)
    axes.set_xticks(range(len(nominals)), [f"{gain:g}" for gain in nominals])
