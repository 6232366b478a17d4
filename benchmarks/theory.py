"""How accurate the theory is at finite size: the tables of docs/theory.md.

``python benchmarks/theory.py norms`` compares ``jacobian_norm(..., n=n)`` with dense Jacobians at
the fixed points of sampled DEQs, at the gain that ``gain_for(jacobian_norm=0.9, n=n)`` gives (five
minutes of one core); ``quantiles`` compares ``length_quantile`` with solved linear DEQs (two
minutes); ``critical`` counts the draws for which plain iteration converges below the critical gain
(two minutes).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.sparse.linalg import eigsh

import deq_init.numpy
from deq_init import families, theory
from deq_init.theory.activations import ACTIVATIONS
from deq_init.theory.nonlinear import Form

NAMES = ("tanh", "relu", "gelu", "silu", "softplus", "mish", "selu", "sin")
VARIANCES = (0.01, 0.1, 1.0)
FORMS: tuple[Form, ...] = ("out", "in")
SIZES = (128, 512)
# One longer fixed point of a GOE matrix raises the norms of all activations together: more draws.
DRAWS = {"random": 48, "orthogonal": 48, "goe": 192, "antisymmetric": 48}
STATED = {"random": 1, "orthogonal": 1, "goe": 2, "antisymmetric": 1}  # times n^(-2/3)
TARGET = 0.9
Array = np.ndarray[Any, Any]
Cell = tuple[str, Form, float]


def draws_of(family: str, n: int, draws: int) -> Iterator[tuple[Array, Array]]:
    """Return matrices at gain 1 and standard normal inputs."""
    rng, sample = np.random.default_rng([n, 1000]), getattr(deq_init.numpy, family)
    for seed in range(1000, 1000 + draws):
        yield sample((n, n), seed=seed, dtype=np.float64), rng.standard_normal(n)


def solve(w: Array, x: Array, cells: list[Cell], gains: Array, steps: int) -> tuple[Array, Array]:
    """Return h, shape (cells, n), by plain iteration from 0, and for which cells it converges."""
    inner, outer = (
        np.array([v**0.5 * x if form == which else 0 * x for _, form, v in cells])
        for which in ("in", "out")
    )
    z, h, done, left = 0 * inner, 0 * inner, np.zeros(len(cells), bool), np.arange(len(cells))
    for _ in range(steps):
        h[left] = gains[left, None] * (z[left] @ w.T) + inner[left]
        new = outer[left] + [ACTIVATIONS[cells[i][0]].function(h[i]) for i in left]
        size, change = np.abs(z[left]).max(1), np.abs(new - z[left]).max(1)
        done[left] = change < 1e-8 * (1 + size)
        z[left] = new
        left = left[(change >= 1e-8 * (1 + size)) & (size < 1e9)]
        if not len(left):
            break
    return h, done


def norms(w: Array, h: Array, cells: list[Cell], gains: Array) -> Array:
    """Return the spectral norms of diag(φ'(h)) W, shape (cells,)."""
    square, found = w @ w.T, []
    for row, gain, (name, _, _) in zip(h, gains, cells, strict=True):
        slope = gain * ACTIVATIONS[name].derivative(row)
        matrix = slope[:, None] * square * slope
        found.append(eigsh(matrix, 1, which="LA", tol=1e-6, return_eigenvectors=False)[0] ** 0.5)
    return np.array(found)


def norms_table() -> None:
    """Print 100 (theory / measured - 1) for each cell, and the cells beyond the stated error.

    Beyond is what exceeds it by two standard errors of the simulation.
    """
    cells: list[Cell] = [(a, f, v) for a in NAMES for f in FORMS for v in VARIANCES]
    beyond = []
    for family in families.FAMILIES:
        texts = np.full(len(cells), "", object)
        draws = DRAWS[family]
        for n in SIZES:
            gains = np.array([
                theory.gain_for(family, a, jacobian_norm=TARGET, form=f, input_variance=v, n=n)
                for a, f, v in cells
            ])  # fmt: skip
            found = np.full((draws, len(cells)), np.nan)
            for row, (w, x) in zip(found, draws_of(family, n, draws), strict=True):
                h, done = solve(w, x, cells, gains, 1000)
                some = [cell for cell, converged in zip(cells, done, strict=True) if converged]
                row[done] = norms(w, h[done], some, gains[done])
            mean, share = np.nanmean(found, 0), np.isfinite(found).mean(0)
            deviation = np.nanstd(found, 0, ddof=1) / (share * draws) ** 0.5 / mean
            for i, error in enumerate(TARGET / mean - 1):
                outside = abs(error) > STATED[family] * n ** (-2 / 3) + 2 * deviation[i]
                texts[i] += f"{', ' if texts[i] else ''}{100 * error:+.1f}{'*' * bool(outside)}"
                texts[i] += "" if share[i] == 1 else f" ({share[i]:.0%})"
                if outside:
                    beyond.append((family, n, *cells[i], error, deviation[i]))
        for name, row in zip(NAMES, texts.reshape(len(NAMES), -1), strict=True):
            print(f"| {name}, {family} |", " | ".join(row), "|", flush=True)
    print("beyond the stated error:", beyond or "none")


def quantiles_table() -> None:
    """Print the share of solved linear DEQs below the quantiles of the law."""
    levels = (0.1, 0.5, 0.75, 0.9, 0.99)
    points = [
        (0.95, 200, 3000), (0.9, 50, 40_000), (0.99, 100, 12_000), (0.9, 10, 200_000),
        (0.6, 3, 200_000),
    ]  # fmt: skip
    print("| gain, n, draws |", " | ".join(f"{level:g}" for level in levels), "|")
    for gain, n, draws in points:
        rng, lengths, left = np.random.default_rng(n), [], draws
        while left > 0:
            count = min(left, 2_000_000 // n**2)
            system = np.eye(n) - gain / n**0.5 * rng.standard_normal((count, n, n))
            lengths.append((np.linalg.solve(system, np.ones((count, n, 1))) ** 2).mean((1, 2)))
            left -= count
        below = (
            np.concatenate(lengths) <= theory.length_quantile("random", gain, n, levels)[:, None]
        )
        cells = (
            f"{share:.4f} ± {(level * (1 - level) / draws) ** 0.5:.4f}"
            for share, level in zip(below.mean(1), levels, strict=True)
        )
        print(f"| {gain:g}, {n}, {draws} |", " | ".join(cells), "|", flush=True)


def critical_table() -> None:
    """Print the share of draws for which plain iteration from 0 converges in 1500 steps."""
    factors, variance = (0.8, 0.9, 0.95), 1.0
    cases: tuple[tuple[str, Form], ...] = (
        ("relu", "out"), ("selu", "out"), ("gelu", "out"), ("softplus", "out"), ("tanh", "in"),
    )  # fmt: skip
    print(
        "| family, n, draws |",
        " | ".join(f"{a}, {f}, {s:g}" for a, f in cases for s in factors),
        "|",
    )
    for family in families.FAMILIES:
        edges = np.array([theory.critical_gain(family, a, form=f) for a, f in cases])
        gains = np.outer(edges, factors).ravel()
        known = np.isfinite(gains)
        cells: list[Cell] = [(a, f, variance) for a, f in cases for _ in factors]
        cells = [cell for cell, finite in zip(cells, known, strict=True) if finite]
        for n, draws in ((128, 200), (512, 40)):
            done = np.full((draws, len(gains)), np.nan)
            for row, (w, x) in zip(done, draws_of(family, n, draws), strict=True):
                row[known] = solve(w, x, cells, gains[known], 1500)[1]
            shares = ("-" if np.isnan(share) else f"{share:.3g}" for share in done.mean(0))
            print(f"| {family}, {n}, {draws} |", " | ".join(shares), "|", flush=True)


if __name__ == "__main__":
    tables = {"norms": norms_table, "quantiles": quantiles_table, "critical": critical_table}
    if len(sys.argv) != 2 or sys.argv[1] not in tables:
        sys.exit(f"usage: python benchmarks/theory.py {{{','.join(tables)}}}")
    tables[sys.argv[1]]()
