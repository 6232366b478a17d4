"""Length fluctuations of the linear DEQ z = W z + x as the spectral radius nears 1.

No training: for each family and radius, W is drawn ``draws`` times, the system is solved exactly
in float64, and |z|²/n is compared with the theory of :mod:`deq_init.theory`. The same draws of the
unit-gain matrix serve every radius.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

import deq_init.numpy
from deq_init import families, theory
from deq_init.draws import key_from_seed
from deq_init.experiments import report

RADII = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
_BAND = (0.16, 0.5, 0.84)


def run(
    output: str | Path | None = None,
    *,
    n: int = 200,
    draws: int = 200,
    seed: int = 0,
    quiet: bool = False,
) -> Path:
    """Run the experiment and return its results folder.

    Parameters
    ----------
    output : path, optional
        Where results go, see :func:`deq_init.experiments.report.results_folder`.
    n : int
        Size of W.
    draws : int
        Matrices for each family.
    seed : int
        Of the first draw; draw i has seed + i.
    quiet : bool
        No progress bar and no table on standard output.
    """
    for end in (seed, seed + draws):
        key_from_seed(end)
    folder = report.results_folder("lengths", output)
    started = time.perf_counter()
    settings = {"n": n, "draws": draws, "environment": report.environment()}
    lengths: dict[str, np.ndarray] = {}
    jobs = [(family, seed + i) for family in families.PAPER for i in range(draws)]
    measured: dict[str, list[np.ndarray]] = {family: [] for family in families.PAPER}
    for family, draw in report.progress(jobs, "lengths", quiet):
        measured[family].append(_lengths(family, n, draw))
        if len(measured[family]) == draws:
            lengths[family] = np.array(measured[family])
            rows = _rows(family, lengths[family], seed, settings)
            report.append_rows(folder, rows)
    table = _table(lengths, n)
    report.write_table(folder, table)
    _draw(folder, lengths, n)
    if not quiet:
        print(table)
        print(f"\n{time.perf_counter() - started:.1f} s. Results: {folder}")
    return folder


def _gain(family: str, radius: float) -> float:
    return radius / families.get(family).radius_edge


def _lengths(family: str, n: int, seed: int) -> np.ndarray:
    """Return |z|²/n at each radius for one draw of the unit-gain matrix."""
    sample: Any = getattr(deq_init.numpy, family)
    unit = sample((n, n), seed=seed, dtype=np.float64)
    x = np.ones(n)
    matrices = np.array([np.eye(n) - _gain(family, radius) * unit for radius in RADII])
    z = np.linalg.solve(matrices, np.broadcast_to(x[:, None], (len(RADII), n, 1)))
    lengths: np.ndarray = (z**2).mean(axis=(1, 2))
    return lengths


def _rows(
    family: str, lengths: np.ndarray, seed: int, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    return [
        {
            "experiment": "lengths",
            "family": family,
            "radius": radius,
            "gain": _gain(family, radius),
            "seed": seed + draw,
            "length": lengths[draw, k],
            **settings,
        }
        for k, radius in enumerate(RADII)
        for draw in range(len(lengths))
    ]


def _table(lengths: dict[str, np.ndarray], n: int) -> str:
    header = ["family", "radius", "mean", "theory", "sd/mean", "theory", "median", "theory"]
    rows = []
    for family, values in lengths.items():
        for k, radius in enumerate(RADII):
            gain, q = _gain(family, radius), values[:, k]
            median = "-"
            if family != "goe":
                median = f"{float(theory.length_quantile(family, gain, n, 0.5)):.3f}"
            rows.append(
                [
                    family,
                    f"{radius:.2f}",
                    f"{q.mean():.3f}",
                    f"{theory.length_mean(family, gain, n):.3f}",
                    f"{q.std(ddof=1) / q.mean():.3f}",
                    f"{_deviation(family, gain, n):.3f}",
                    f"{np.median(q):.3f}",
                    median,
                ]
            )
    draws = len(next(iter(lengths.values())))
    return (
        f"# Length |z*|²/n of the linear DEQ, n = {n}, {draws} draws\n\n"
        f"{report.markdown_table(header, rows)}\n\n"
        "radius: spectral radius in the limit of large n (orthogonal: exact). Theory: mean to "
        "order 1/n, sd/mean to leading order (orthogonal: both exact), median exact at this n "
        "(not known for GOE). For random and GOE the order-by-order columns fail close to radius "
        "1, where n(1 - r²)² and n(1 - r²)^1.5 are no longer large: there sd/mean is set by a "
        "few draws."
    )


def _deviation(family: str, gain: float, n: int) -> float:
    if family == "orthogonal":
        return float(theory.orthogonal_length_variance(gain, n) ** 0.5)
    return float(theory.length_relative_variance(family, gain, n) ** 0.5)


def _draw(folder: Path, lengths: dict[str, np.ndarray], n: int) -> None:
    figure, (left, right) = report.new_figure(2)
    grid = np.linspace(RADII[0], RADII[-1], 60)
    for family, values in lengths.items():
        colour = report.COLOURS[family]
        spread = values.std(axis=0, ddof=1) / values.mean(axis=0)
        curve = [_deviation(family, _gain(family, r), n) for r in grid]
        left.plot(RADII, spread, "o", color=colour, label=f"{family}, measured")
        left.plot(grid, curve, color=colour, label=f"{family}, theory")
        if family == "goe":
            continue
        low, middle, high = np.quantile(values, _BAND, axis=0)
        right.errorbar(
            RADII, middle, [middle - low, high - middle], fmt="o", capsize=3, color=colour,
            label=f"{family}, measured",
        )  # fmt: skip
        bands = np.array([theory.length_quantile(family, _gain(family, r), n, _BAND) for r in grid])
        right.fill_between(grid, bands[:, 0], bands[:, 2], color=colour, alpha=0.2)
        right.plot(grid, bands[:, 1], color=colour, label=f"{family}, exact law")
    left.set(yscale="log", xlabel="spectral radius of W", ylabel="sd / mean of |z*|²")
    right.set(yscale="log", xlabel="spectral radius of W", ylabel="|z*|²/n: median, 16–84 %")
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.suptitle(f"Linear DEQ z = Wz + x, n = {n}, {len(values)} draws", fontsize=10)
    figure.savefig(folder / report.FIGURE)
