"""Results folders, rows, tables and progress, the same for every experiment."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deq_init import __version__
from deq_init.errors import OutputError, require
from deq_init.experiments.claims import Verdict

TABLE, FIGURE = "table.md", "figure.png"
_PACKAGES = {
    "jax": ("jax", "jaxlib"),
    "torch": ("torch",),
    "keras": ("keras", "jax", "torch", "tensorflow-cpu", "tensorflow"),
}


def write_table(folder: Path, text: str) -> None:
    """Write the folder's ``table.md``, last of all: it says that the run is finished.

    Raises
    ------
    OutputError
        If it fails.
    """
    try:
        (folder / TABLE).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritten(folder / TABLE, error) from error


def environment(backend: str | None = None) -> dict[str, str]:
    """Return the versions and the platform that results were obtained with.

    Parameters
    ----------
    backend : {"jax", "torch", "keras"}, optional
        Whose versions, and device, to add.
    """
    versions = {"deq-init": __version__, "python": platform.python_version()}
    for package in ("numpy", "scipy", *_PACKAGES.get(backend or "", ())):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if backend == "jax" and "jax" in sys.modules:
        versions["device"] = sys.modules["jax"].devices()[0].device_kind
    if backend == "keras" and "keras" in sys.modules:
        versions["keras backend"] = sys.modules["keras"].backend.backend()
    return {**versions, "platform": platform.platform()}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns: first column left, the others right.

    Examples
    --------
    >>> print(markdown_table(["family", "mean"], [["goe", "1.0"], ["random", "12.5"]]))
    | family | mean |
    |:-------|-----:|
    | goe    |  1.0 |
    | random | 12.5 |
    """
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    first, *others = ("-" * (width + 1) for width in widths)
    rule = "|" + "|".join([f":{first}", *(f"{other}:" for other in others)]) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def claims_table(verdicts: Sequence[Verdict], names: Sequence[str] | None = None) -> str:
    """Return a Markdown table of verdicts, each with its test, effect size, interval and seeds.

    Parameters
    ----------
    verdicts : sequence of Verdict
        One for each line.
    names : sequence of str, optional
        What to say beside the claim of each.
    """
    header = ["claim", "verdict", "where", "effect [95 %]", "p", "seeds", "test"]
    lines = []
    for i, found in enumerate(verdicts):
        effect = f"{found.effect:+.3g} [{found.low:.3g}, {found.high:.3g}] {found.unit}"
        if not found.seeds:
            effect = "-"
        lines.append(
            [
                f"{names[i]}: {found.claim.strip()}" if names else found.claim.strip(),
                f"**{found.verdict}**",
                found.where,
                effect,
                f"{found.p:.2g}",
                str(found.seeds),
                found.test,
            ]
        )
    return (
        f"{markdown_table(header, lines)}\n\n"
        "Claims are those of the paper; a positive effect is one that a claim says. Intervals: "
        "bootstrap over seeds. p: two-sided, corrected for all gains (Holm), and where the effect "
        "is negative, for all comparisons. where: the gain with the clearest effect, and the least "
        "clear of the comparisons that the claim takes there."
    )


def new_figure(columns: int, rows: int = 1) -> tuple[Any, Any]:
    """Return a Matplotlib figure of rows of panels, and its axes; no display is needed."""
    figure_module = require("matplotlib.figure", "experiments")
    size = (5.2 * columns, 4.0 * rows)
    figure = figure_module.Figure(figsize=size, layout="constrained", dpi=150)
    return figure, figure.subplots(rows, columns)


def save_figure(folder: Path, figure: Any) -> None:
    """Write the folder's ``figure.png``.

    Raises
    ------
    OutputError
        If it fails.
    """
    try:
        figure.savefig(folder / FIGURE)
    except OSError as error:
        raise _unwritten(folder / FIGURE, error) from error


def _unwritten(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"expected to write to {path}: {error}. The results are kept: make room, and run the same "
        "command again."
    )


COLOURS = {
    "random": "tab:red",
    "orthogonal": "tab:blue",
    "goe": "tab:green",
    "antisymmetric": "tab:purple",
}
"""One colour for each family, in every figure."""
