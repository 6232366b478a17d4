"""The experiments by name: what each is made of, for the command line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deq_init.errors import OutputError
from deq_init.experiments import (
    entries,
    fcn,
    fcn_report,
    jacobian,
    lengths,
    report,
    results,
    sweep,
    wikitext,
    wikitext_report,
)
from deq_init.experiments.entries import Kind
from deq_init.experiments.results import Row


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes
    ----------
    grids : dict of str to dataclass
        What is run, by ``--size``.
    cells : callable
        From a grid to configurations.
    measure : callable
        From a configuration to rows, in a worker.
    render : callable
        From a folder and rows to a table; it writes table and figure.
    entries : dict of str to Kind
        What the table needs of a row.
    core_hours : callable
        From configurations to what they cost.
    require_ready : callable
        Raises what the first cell would, for a grid.
    """

    grids: dict[str, Any]
    cells: Callable[[Any], list[Row]]
    measure: Callable[[Row], list[Row]]
    render: Callable[[Path, list[Row]], str]
    entries: dict[str, Kind]
    core_hours: Callable[[list[Row]], float]
    require_ready: Callable[[Any], None] = lambda grid: None


def _fcn(name: fcn.Name) -> Experiment:
    return Experiment(
        {size: fcn.GRIDS[name, size] for size in ("small", "full")},
        lambda grid: fcn.cells(name, grid),
        fcn.measure,
        fcn_report.render,
        fcn.ENTRIES,
        fcn.core_hours,
        lambda grid: fcn.require_ready(name, grid),
    )


EXPERIMENTS: dict[str, Experiment] = {
    "lengths": Experiment(
        lengths.GRIDS,
        lengths.cells,
        lengths.measure,
        lengths.render,
        lengths.ENTRIES,
        lengths.core_hours,
    ),
    "jacobian": Experiment(
        jacobian.GRIDS,
        jacobian.cells,
        jacobian.measure,
        jacobian.render,
        jacobian.ENTRIES,
        jacobian.core_hours,
    ),
    "digits": _fcn("digits"),
    "mnist": _fcn("mnist"),
    "wikitext": Experiment(
        wikitext.GRIDS,
        wikitext.cells,
        wikitext.measure,
        wikitext_report.render,
        wikitext.ENTRIES,
        wikitext.core_hours,
        wikitext.require_ready,
    ),
}


def run(name: str, grid: Any, options: sweep.Options, announce: bool = False) -> Path:
    """Run an experiment, or what is left of it, and return its results folder.

    Parameters
    ----------
    name : str
        Out of :data:`EXPERIMENTS`.
    grid : dataclass
        Such as those of its ``grids``.
    options : sweep.Options
        How.
    announce : bool
        Whether to say on standard error, before it starts, what it is expected to cost.
    """
    experiment = EXPERIMENTS[name]
    experiment.require_ready(grid)
    cells = experiment.cells(grid)
    if announce:
        print(
            f"{name}: {len(cells)} cells, about {experiment.core_hours(cells):.3g} hours of one "
            "CPU core; divide by the cores that it runs on.",
            file=sys.stderr,
        )
    started = time.perf_counter()
    folder = sweep.run(name, cells, experiment.measure, options)
    text = _render(name, folder, quiet=True)
    if not options.quiet:
        print(text)
        print(f"\n{time.perf_counter() - started:.1f} s. Results: {folder}")
    return folder


def rebuild(folder: Path) -> str:
    """Write table and figure of a folder again, from its results alone, and return the table.

    Raises
    ------
    OutputError
        If there are no results of a known experiment, or the folder cannot be written to.
    """
    first = next(iter(results.load(folder).rows.values()), [{}])[0]
    text = _render(first.get("experiment"), folder)
    return f"{text}\n\n{folder / report.FIGURE}"


def _render(name: Any, folder: Path, *, quiet: bool = False) -> str:
    """Write table and figure from the rows of a folder, and return the table."""
    experiment = EXPERIMENTS.get(name) if isinstance(name, str) else None
    if experiment is None:
        results.read(folder)  # which says so if there are none
        raise OutputError(
            f"expected results of {', '.join(EXPERIMENTS)} in {folder}, received those of {name}. "
            "Use the version of deq-init that made them."
        )
    kinds = {"experiment": entries.one_of([name]), **experiment.entries}
    rows = results.read(folder, lambda row: entries.complaint(row, kinds), quiet=quiet)
    try:
        return experiment.render(folder, rows)
    except OutputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise OutputError(
            f"expected a finished run in {folder}, received one of which no table can be made: "
            "cells are missing, or rows do not belong together. Run the same deq-init reproduce "
            f"again to go on with it ({type(error).__name__}: {error})."
        ) from error
