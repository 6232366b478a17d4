"""Results folders, rows, tables and progress, the same for every experiment."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deq_init import __version__
from deq_init.errors import OutputError, require

RESULTS, TABLE, FIGURE = "results.jsonl", "table.md", "figure.png"


def results_folder(name: str, output: str | Path | None) -> Path:
    """Create and return the folder for an experiment's results.

    Parameters
    ----------
    name : str
        The experiment.
    output : path or None
        The folder; it may exist, but not hold results already. None chooses a new one below
        ``deq-init-results`` in the working directory.

    Raises
    ------
    OutputError
        If it holds results already or cannot be created.
    MissingFrameworkError
        If what the report needs is not installed: found out before the work, not after it.
    """
    require("matplotlib.figure", "experiments")
    require("tqdm", "experiments")
    if output is None:
        base = Path("deq-init-results") / name
        folder, number = base, 1
        while (folder / RESULTS).exists():
            number += 1
            folder = base.with_name(f"{name}-{number}")
    else:
        folder = Path(output)
        if (folder / RESULTS).exists():
            raise OutputError(
                f"expected a folder without results, received {folder}, which holds {RESULTS}. "
                "Choose another folder with --output, or move the old results away."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULTS).touch()
    except OSError as error:
        raise OutputError(
            f"expected a folder that can be written to, received {folder}: {error}. "
            "Choose another with --output."
        ) from error
    return folder


def append_rows(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to the folder's results, as one JSON object a line.

    Numbers that are not finite become null.
    """
    text = "".join(json.dumps(_plain(row), allow_nan=False) + "\n" for row in rows)
    try:
        with (folder / RESULTS).open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(
            f"expected to write to {folder / RESULTS}: {error}. What was written before is kept."
        ) from error


def write_table(folder: Path, text: str) -> None:
    """Write the folder's ``table.md``."""
    (folder / TABLE).write_text(text + "\n", encoding="utf-8")


def environment() -> dict[str, str]:
    """Return the versions and the platform that results were obtained with."""
    versions = {"deq-init": __version__, "python": platform.python_version()}
    for package in ("numpy", "scipy", "jax", "jaxlib", "scikit-learn"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
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


def progress(items: Sequence[Any], description: str, quiet: bool) -> Iterable[Any]:
    """Return the items under a progress bar on standard error."""
    if quiet:
        return items
    bar: Iterable[Any] = require("tqdm", "experiments").tqdm(items, desc=description)
    return bar


def new_figure(columns: int) -> tuple[Any, Any]:
    """Return a Matplotlib figure of one row of panels, and its axes; no display is needed."""
    figure_module = require("matplotlib.figure", "experiments")
    figure = figure_module.Figure(figsize=(5.2 * columns, 4.0), layout="constrained", dpi=150)
    return figure, figure.subplots(1, columns)


COLOURS = {
    "random": "tab:red",
    "orthogonal": "tab:blue",
    "goe": "tab:green",
    "antisymmetric": "tab:purple",
}
"""One colour for each family, in every figure."""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
