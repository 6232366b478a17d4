"""Length fluctuations of the linear DEQ z = W z + x as the spectral radius nears 1.

No training: for each family and radius, W is drawn, the system is solved exactly in float64, and
|z|²/n is compared with the theory of :mod:`deq_init.theory`. Whether plain iteration from 0 gets
there, too, is recorded. The same draws of the unit-gain matrix serve every radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import deq_init.numpy
from deq_init import families, theory
from deq_init.draws import key_from_seed
from deq_init.experiments import claims, report
from deq_init.experiments.entries import INTEGER, NUMBER, TEXT, Kind, maybe, one_of, several
from deq_init.experiments.results import Row
from deq_init.theory.arguments import require_size
from deq_init.theory.linear import SMALLEST

_BAND = (0.16, 0.5, 0.84)
_RTOL, _MAX_STEPS = 1e-3, 300
_DRAWS_A_CELL = 25
_EXACT = ("random", "orthogonal")  # families whose law of the length is known at finite n


@dataclass(frozen=True)
class Grid:
    """What is run.

    Attributes
    ----------
    n : int
        Size of W.
    draws, first_seed : int
        Matrices for each family; draw i has first_seed + i.
    radii : tuple of float
        Spectral radii in the limit of large n. Not 1: half of the orthogonal matrices of even size
        have it as an eigenvalue.
    """

    n: int = 200
    draws: int = 100
    first_seed: int = 0
    radii: tuple[float, ...] = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


GRIDS = {
    "small": Grid(),
    "full": Grid(
        n=1000,
        draws=2000,
        radii=(0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99),
    ),
}
"""The grids of ``--size``."""


ENTRIES: dict[str, Kind] = {
    "label": TEXT,
    "family": one_of(families.PAPER),
    "n": INTEGER,
    "radii": several(NUMBER),
    "seed": INTEGER,
    "lengths": several(NUMBER),
    "steps": several(maybe(INTEGER)),
}
"""What the report needs of a row."""


def cells(grid: Grid) -> list[Row]:
    """Return the configurations: some draws of a family at all radii each."""
    require_size(grid.n, SMALLEST)
    for end in (grid.first_seed, grid.first_seed + grid.draws):
        key_from_seed(end)
    return [
        {
            "experiment": "lengths",
            "label": family,
            "family": family,
            "n": grid.n,
            "radii": list(grid.radii),
            "first_seed": grid.first_seed + start,
            "seeds": min(_DRAWS_A_CELL, grid.draws - start),
            "rtol": _RTOL,
            "max_steps": _MAX_STEPS,
        }
        for start in range(0, grid.draws, _DRAWS_A_CELL)
        for family in families.PAPER
    ]


def measure(cell: Row) -> list[Row]:
    """Return a row for each draw: |z|²/n, and the steps of plain iteration, at each radius."""
    first = cell["first_seed"]
    return [_draw_once(cell, seed) for seed in range(first, first + cell["seeds"])]


def core_hours(configurations: list[Row]) -> float:
    """Return about how many hours of one core the cells take."""
    total = 0.0
    for cell in configurations:
        n, radii = cell["n"], len(cell["radii"])
        total += cell["seeds"] * radii * (n**3 / 2e10 + 2.0 * cell["max_steps"] * n**2 / 8e9)
    return total / 3600


def render(folder: Path, rows: list[Row]) -> str:
    """Write figure and table from the rows, and return the table."""
    radii, n = np.array(rows[0]["radii"]), rows[0]["n"]
    found = _by_family(rows, "lengths")
    steps = _by_family(rows, "steps")
    verdicts = _verdicts(rows)
    text = f"{_table(found, steps, radii, n)}\n\n{report.claims_table(verdicts)}"
    _figure(folder, found, radii, n)
    report.write_table(folder, text)
    return text


def gain_of(family: str, radius: float) -> float:
    """Return the gain at which a family has a spectral radius, in the limit of large n."""
    return radius / families.get(family).radius_edge


def _draw_once(cell: Row, seed: int) -> Row:
    n, radii = cell["n"], cell["radii"]
    sample: Any = getattr(deq_init.numpy, cell["family"])
    unit = sample((n, n), seed=seed, dtype=np.float64)
    gains = np.array([gain_of(cell["family"], radius) for radius in radii])
    x = np.ones((n, 1))
    lengths = [float((np.linalg.solve(np.eye(n) - g * unit, x) ** 2).mean()) for g in gains]
    steps = _plain_iteration(unit, gains, cell["rtol"], cell["max_steps"])
    return {"seed": seed, "lengths": lengths, "steps": steps}


def _plain_iteration(
    unit: np.ndarray, gains: np.ndarray, rtol: float, max_steps: int
) -> list[int | None]:
    """Return the steps of z <- gain · unit z + 1 from 0 at each gain; None if too many."""
    z = np.zeros((len(unit), len(gains)))
    steps: list[int | None] = [None] * len(gains)
    left = np.arange(len(gains))
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(1, max_steps + 1):
            new = unit @ z * gains[left] + 1
            done = np.linalg.norm(new - z, axis=0) <= rtol * np.linalg.norm(new, axis=0)
            for k in left[done]:
                steps[k] = step
            z, left = new[:, ~done], left[~done]
            if not len(left):
                break
    return steps


def _by_family(rows: list[Row], entry: str) -> dict[str, np.ndarray]:
    """Return an entry of the rows as arrays (draws, radii), by family, in the order of seeds."""
    found = {}
    for family in families.PAPER:
        own = sorted((row for row in rows if row["family"] == family), key=lambda r: r["seed"])
        found[family] = np.array([row[entry] for row in own], float)  # None becomes nan
    return found


def _verdicts(rows: list[Row]) -> list[claims.Verdict]:
    each = [
        {**row, "radius": radius, "length": length, "step": step}
        for row in rows
        for radius, length, step in zip(row["radii"], row["lengths"], row["steps"], strict=True)
    ]
    runs = claims.runs_of(
        each, lambda row: np.log(row["length"]), lambda row: row["step"] is None, gain="radius"
    )
    return [
        claims.larger_weights(runs),
        claims.fluctuates_most(runs, others=("orthogonal", "goe")),
    ]


def _table(
    lengths: dict[str, np.ndarray], steps: dict[str, np.ndarray], radii: np.ndarray, n: int
) -> str:
    header = [
        "family", "radius", "mean", "theory", "sd/mean", "theory", "median", "theory", "converged",
    ]  # fmt: skip
    rows = []
    for family, values in lengths.items():
        for k, radius in enumerate(radii):
            gain, q = gain_of(family, radius), values[:, k]
            median = "-"
            if family in _EXACT:
                median = f"{float(theory.length_quantile(family, gain, n, 0.5)):.3f}"
            rows.append(
                [
                    family,
                    f"{radius:g}",
                    f"{q.mean():.3f}",
                    f"{theory.length_mean(family, gain, n):.3f}",
                    f"{q.std(ddof=1) / q.mean():.3f}",
                    f"{_deviation(family, gain, n):.3f}",
                    f"{np.median(q):.3f}",
                    median,
                    f"{np.isfinite(steps[family][:, k]).mean():.2f}",
                ]
            )
    return (
        f"# Length |z*|²/n of the linear DEQ, n = {n}, {len(q)} draws\n\n"
        f"{report.markdown_table(header, rows)}\n\n"
        "radius: spectral radius in the limit of large n (orthogonal: exact). Theory: mean to "
        "order 1/n, sd/mean to leading order (orthogonal: both exact), median exact at this n "
        "(not known for GOE). For random and GOE the order-by-order columns fail close to radius "
        "1, where n(1 - r²)² and n(1 - r²)^1.5 are no longer large: the mean over all draws is "
        "infinite at any n, and near radius 1 a few draws set the measured mean and sd: compare "
        f"medians there. converged: share of draws whose plain iteration reaches {_RTOL:g} in "
        f"{_MAX_STEPS} steps. In the claims the gain is the radius, spreads are those of "
        "log |z*|², and a run fails that does not converge."
    )


def _deviation(family: str, gain: float, n: int) -> float:
    if family == "orthogonal":
        return float(theory.orthogonal_length_variance(gain, n) ** 0.5)
    return float(theory.length_relative_variance(family, gain, n) ** 0.5)


def _figure(folder: Path, lengths: dict[str, np.ndarray], radii: np.ndarray, n: int) -> None:
    figure, (left, right) = report.new_figure(2)
    grid = np.linspace(radii[0], radii[-1], 60)
    for k, (family, values) in enumerate(lengths.items()):
        colour = report.COLOURS[family]
        spread = values.std(axis=0, ddof=1) / values.mean(axis=0)
        curve = [_deviation(family, gain_of(family, r), n) for r in grid]
        left.plot(radii, spread, "o", color=colour, label=f"{family}, measured")
        left.plot(grid, curve, color=colour, label=f"{family}, theory")
        where = np.repeat(radii + (k - 1) * 0.008, len(values))
        right.plot(where, values.T.ravel(), ".", ms=2, alpha=0.25, color=colour)
        if family not in _EXACT:
            continue
        low, middle, high = np.quantile(values, _BAND, axis=0)
        right.errorbar(
            radii, middle, [middle - low, high - middle], fmt="o", capsize=3, color=colour,
            label=f"{family}, measured",
        )  # fmt: skip
        bands = np.array(
            [theory.length_quantile(family, gain_of(family, r), n, _BAND) for r in grid]
        )
        right.fill_between(grid, bands[:, 0], bands[:, 2], color=colour, alpha=0.2)
        right.plot(grid, bands[:, 1], color=colour, label=f"{family}, exact law")
    left.set(yscale="log", xlabel="spectral radius of W", ylabel="sd / mean of |z*|²")
    right.set(yscale="log", xlabel="spectral radius of W", ylabel="|z*|²/n: draws, median, 16–84 %")
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.suptitle(f"Linear DEQ z = Wz + x, n = {n}, {len(values)} draws", fontsize=10)
    report.save_figure(folder, figure)
