"""How accurate the theory is at finite size: the tables of docs/theory.md.

``python benchmarks/theory.py norms`` compares ``jacobian_norm(..., n=n)`` with dense Jacobians at
the fixed points of sampled DEQs, at the gain that ``gain_for(jacobian_norm=0.9, n=n)`` gives (half
an hour of one core); ``quantiles`` compares ``length_quantile`` with solved linear DEQs (two
minutes); ``critical`` counts the draws for which plain iteration converges below the critical gain
(two minutes).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from scipy.linalg import eigh

import deq_init.numpy
from deq_init import families, theory
from deq_init.theory.activations import ACTIVATIONS
from deq_init.theory.nonlinear import Form

NAMES = ("tanh", "relu", "gelu", "silu", "softplus", "mish", "selu", "sin")
VARIANCES = (0.01, 0.1, 1.0)
FORMS: tuple[Form, ...] = ("out", "in")
DRAWS = {128: 48, 512: 16}
TARGET = 0.9
Array = np.ndarray[Any, Any]


def units(family: str, n: int, draws: int) -> Array:
    """Return matrices at gain 1, shape (draws, n, n)."""
    sample = getattr(deq_init.numpy, family)
    return np.array([sample((n, n), seed=seed, dtype=np.float64) for seed in range(draws)])


def solve(w: Array, x: Array, name: str, form: str, steps: int) -> tuple[Array, Array]:
    """Return h, shape (draws, n), by plain iteration from 0, and for which draws it converges."""
    phi, z = ACTIVATIONS[name].function, np.zeros_like(x)
    for _ in range(steps):
        h = (w @ z[:, :, None])[:, :, 0] + (x if form == "in" else 0)
        change = phi(h) + (x if form == "out" else 0) - z
        done = np.abs(change).max(1) < 1e-8 * (1 + np.abs(z).max(1))
        if done.all():
            break
        z += np.where(np.abs(z) < 1e9, change, 0)
    return h, done


def norms(w: Array, h: Array, name: str) -> Array:
    """Return the spectral norms of diag(φ'(h)) W, shape (draws,)."""
    slope, top = ACTIVATIONS[name].derivative, len(w[0]) - 1
    jacobians = (slope(row)[:, None] * matrix for row, matrix in zip(h, w, strict=True))
    largest = [eigh(j @ j.T, eigvals_only=True, subset_by_index=[top, top])[0] for j in jacobians]
    return np.sqrt(largest)


def norms_table() -> None:
    """Print 100 (theory / measured - 1) for each cell, and the cells beyond the stated error."""
    print("| φ, family |", " | ".join(f"{form}, {v:g}" for form in FORMS for v in VARIANCES), "|")
    beyond = []
    matrices = {(f, n): units(f, n, k) for f in families.FAMILIES for n, k in DRAWS.items()}
    inputs = {n: np.random.default_rng(n).standard_normal((k, n)) for n, k in DRAWS.items()}
    for name in NAMES:
        for family in families.FAMILIES:
            cells = []
            for form in FORMS:
                for variance in VARIANCES:
                    texts = []
                    for n in DRAWS:
                        law: dict[str, Any] = {"form": form, "input_variance": variance, "n": n}
                        gain = theory.gain_for(family, name, jacobian_norm=TARGET, **law)
                        w = gain * matrices[family, n]
                        h, done = solve(w, variance**0.5 * inputs[n], name, form, 1000)
                        found = norms(w[done], h[done], name)
                        spread = found.std(ddof=1) / found.mean()
                        error = TARGET / found.mean() - 1
                        allowed = n ** (-2 / 3) + 2 * spread / len(found) ** 0.5
                        text = f"{100 * error:+.1f}" + ("*" if abs(error) > allowed else "")
                        text += "" if done.all() else f" ({done.mean():.0%})"
                        texts.append(text)
                        if abs(error) > allowed:
                            beyond.append((name, family, form, variance, n, error, spread))
                    cells.append(", ".join(texts))
            print(f"| {name}, {family} |", " | ".join(cells), "|", flush=True)
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
    factors = (0.8, 0.9, 0.95)
    cases: tuple[tuple[str, Form], ...] = (("relu", "out"), ("selu", "out"), ("tanh", "in"))
    print("| family, n |", " | ".join(f"{a}, {f}, {s:g}" for a, f in cases for s in factors), "|")
    for family in families.FAMILIES:
        for n, draws in ((128, 40), (512, 10)):
            w, x = units(family, n, draws), np.random.default_rng(n).standard_normal((draws, n))
            cells = []
            for name, form in cases:
                edge = theory.critical_gain(family, name, form=form)
                for factor in factors:
                    if edge == float("inf"):
                        cells.append("-")
                        continue
                    done = solve(factor * edge * w, x, name, form, 1500)[1]
                    cells.append(f"{done.mean():.2f}")
            print(f"| {family}, {n} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    tables = {"norms": norms_table, "quantiles": quantiles_table, "critical": critical_table}
    if len(sys.argv) != 2 or sys.argv[1] not in tables:
        sys.exit(f"usage: python benchmarks/theory.py {{{','.join(tables)}}}")
    tables[sys.argv[1]]()
