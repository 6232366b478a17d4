"""Length and Jacobian of the nonlinear DEQ z = φ(W z) + x against the gain, with theory.

No training: for each family, activation and gain, W and an x of length √n are drawn, z* is found,
and |z*|²/n and the norm and spectral radius of J = diag(φ'(W z*)) W, by LAPACK in float64, are
compared with the mean field of :mod:`deq_init.theory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import deq_init.numpy
from deq_init import families, fixed_point, theory
from deq_init.draws import key_from_seed
from deq_init.experiments import claims, report
from deq_init.experiments.entries import BOOLEAN, INTEGER, NUMBER, TEXT, Kind, maybe, one_of
from deq_init.experiments.results import Row
from deq_init.numpy.iteration import xp
from deq_init.theory import activations

_RTOL, _MAX_STEPS = 1e-9, 2000
_MEASURES = {"length": "|z*|²/n", "norm": "norm of J", "radius": "spectral radius of J"}


@dataclass(frozen=True)
class Grid:
    """What is run.

    Attributes
    ----------
    n : int
        Size of W.
    seeds, first_seed : int
        Draws of W and x for each cell, and the first one's seed.
    gains : tuple of float
        Of W; of GOE, half of each, which is equal radius of W.
    activations : tuple of str
        Names of :data:`deq_init.theory.activations.ACTIVATIONS`.
    """

    n: int = 300
    seeds: int = 12
    first_seed: int = 0
    gains: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9, 1.1, 1.3)
    activations: tuple[str, ...] = ("tanh", "relu")


GRIDS = {
    "small": Grid(),
    "full": Grid(
        n=1000,
        seeds=64,
        gains=tuple(round(0.1 * k, 1) for k in range(2, 14)),
        activations=("tanh", "relu", "hard_tanh", "gelu"),
    ),
}
"""The grids of ``--size``."""


ENTRIES: dict[str, Kind] = {
    "label": TEXT,
    "family": one_of(families.PAPER),
    "activation": one_of(activations.ACTIVATIONS),
    "form": one_of(("out", "in")),
    "gain": NUMBER,
    "nominal": NUMBER,
    "n": INTEGER,
    "seeds": INTEGER,
    "seed": INTEGER,
    "converged": BOOLEAN,
    **dict.fromkeys(_MEASURES, maybe(NUMBER)),
}
"""What the report needs of a row."""


def cells(grid: Grid) -> list[Row]:
    """Return the configurations: every family with every activation at every gain."""
    for end in (grid.first_seed, grid.first_seed + grid.seeds):
        key_from_seed(end)
    return [
        {
            "experiment": "jacobian",
            "label": family,
            "family": family,
            "activation": activation,
            "form": "out",
            "gain": nominal / families.get(family).radius_edge,
            "nominal": nominal,
            "n": grid.n,
            "first_seed": grid.first_seed,
            "seeds": grid.seeds,
            "rtol": _RTOL,
            "max_steps": _MAX_STEPS,
        }
        for activation in grid.activations
        for nominal in grid.gains
        for family in families.PAPER
    ]


def measure(cell: Row) -> list[Row]:
    """Return a row for each draw of W and x."""
    first = cell["first_seed"]
    return [_draw_once(cell, seed) for seed in range(first, first + cell["seeds"])]


def core_hours(configurations: list[Row]) -> float:
    """Return about how many hours of one core the cells take."""
    # Eigenvalues take some 25 n³ operations, singular values 5, at a fraction of the peak.
    return sum(cell["seeds"] * 30.0 * cell["n"] ** 3 / 1e10 for cell in configurations) / 3600


def render(folder: Path, rows: list[Row]) -> str:
    """Write figure and table from the rows, and return the table."""
    verdicts = [
        claims.fluctuates_most(_log_lengths(rows, activation), others=("orthogonal", "goe"))
        for activation in _activations(rows)
    ]
    named = dict(zip(_activations(rows), verdicts, strict=True))
    text = f"{_table(rows)}\n\n{report.claims_table(verdicts, list(named))}"
    _figure(folder, rows)
    report.write_table(folder, text)
    return text


def _draw_once(cell: Row, seed: int) -> Row:
    n = cell["n"]
    phi = activations.resolve(cell["activation"])
    sample: Any = getattr(deq_init.numpy, cell["family"])
    w = sample((n, n), cell["gain"], seed=seed, dtype=np.float64)
    x = np.random.default_rng(seed).standard_normal((1, n))
    # Of length √n in each draw, so that what varies is due to W and to the direction alone.
    x *= n**0.5 / np.linalg.norm(x)
    found = fixed_point.solve(
        xp,
        lambda z: phi.function(z @ w.T) + x,
        np.zeros((1, n)),
        rtol=cell["rtol"],
        max_steps=cell["max_steps"],
    )
    z = found.value[0]
    converged = bool(found.converged[0])
    row = {"seed": seed, "converged": converged, "solver_steps": int(found.steps[0])}
    if not converged:
        return {**row, "length": None, "norm": None, "radius": None}
    jacobian = phi.derivative(w @ z)[:, None] * w
    return {
        **row,
        "length": float(z @ z / n),
        "norm": float(np.linalg.norm(jacobian, 2)),
        "radius": float(abs(np.linalg.eigvals(jacobian)).max()),
    }


def _activations(rows: list[Row]) -> list[str]:
    # Rows are in the order in which cells were finished.
    found = {row["activation"] for row in rows}
    return [name for name in activations.ACTIVATIONS if name in found]


def _log_lengths(rows: list[Row], activation: str) -> claims.Runs:
    own = [row for row in rows if row["activation"] == activation]
    lost = {row["nominal"] for row in own if row["length"] is None}
    kept = [row for row in own if row["nominal"] not in lost]
    return claims.runs_of(kept, lambda row: np.log(row["length"]), lambda row: False)


def _groups(rows: list[Row]) -> dict[tuple[str, str, float], list[Row]]:
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["activation"], row["family"], row["nominal"]), []).append(row)
    names = _activations(rows)
    order = sorted(groups, key=lambda k: (names.index(k[0]), families.PAPER.index(k[1]), k[2]))
    return {key: groups[key] for key in order}


def _predicted(row: Row, gain: float) -> dict[str, float]:
    field = theory.mean_field(row["family"], gain, row["activation"], form=row["form"])
    return {
        "length": field.length,
        "norm": field.jacobian_norm,
        "radius": field.jacobian_spectral_radius,
    }


def _numbers(group: list[Row], measured: str) -> np.ndarray:
    return np.array([row[measured] for row in group if row["converged"]], float)


def _table(rows: list[Row]) -> str:
    header = [
        "φ, family",
        "gain",
        "length",
        "theory",
        "norm",
        "theory",
        "radius",
        "theory",
        "found",
    ]
    lines = []
    for (activation, family, _), group in _groups(rows).items():
        predicted = _predicted(group[0], group[0]["gain"])
        line = [f"{activation}, {family}", f"{group[0]['gain']:g}"]
        for measured in _MEASURES:
            values = _numbers(group, measured)
            line.append(_mean_and_deviation(values))
            line.append(f"{predicted[measured]:.3f}")
        lines.append([*line, f"{np.mean([row['converged'] for row in group]):.2f}"])
    n, seeds = rows[0]["n"], rows[0]["seeds"]
    return (
        f"# Length and Jacobian of the DEQ z = φ(Wz) + x, n = {n}, {seeds} draws\n\n"
        f"{report.markdown_table(header, lines)}\n\n"
        "Mean ± standard deviation over draws of W and x, which is uniform with |x|² = n. GOE is "
        "at half the gain of the others, which is equal radius of W. Theory: mean field, in the "
        f"limit of large n. found: share of draws whose fixed point was found, to {_RTOL:g} in "
        f"{_MAX_STEPS} steps of Anderson acceleration. In the claim, the gain is that of the "
        "others, and spreads are those of log |z*|²."
    )


def _mean_and_deviation(values: np.ndarray) -> str:
    if not len(values):
        return "-"
    return f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}"


def _figure(folder: Path, rows: list[Row]) -> None:
    names = _activations(rows)
    figure, panels = report.new_figure(len(_MEASURES), len(names))
    groups = _groups(rows)
    for line, activation in zip(np.atleast_2d(panels), names, strict=True):
        for axes, (measured, label) in zip(line, _MEASURES.items(), strict=True):
            for family in families.PAPER:
                own = {
                    nominal: group
                    for (name, other, nominal), group in groups.items()
                    if (name, other) == (activation, family)
                }
                _panel(axes, family, own, measured)
            axes.set(xlabel="gain (GOE: twice that of W)", ylabel=label, title=activation)
    panels.flat[0].legend(fontsize=8)
    report.save_figure(folder, figure)


def _panel(axes: Any, family: str, groups: dict[float, list[Row]], measured: str) -> None:
    colour = report.COLOURS[family]
    nominals = np.array(list(groups))
    values = [_numbers(group, measured) for group in groups.values()]
    for nominal, numbers in zip(nominals, values, strict=True):
        axes.plot([nominal] * len(numbers), numbers, ".", ms=3, alpha=0.4, color=colour)
    kept = [len(numbers) > 0 for numbers in values]
    bands = np.array([np.quantile(v, (0.16, 0.5, 0.84)) for v in values if len(v)])
    if len(bands):
        axes.fill_between(nominals[kept], bands[:, 0], bands[:, 2], color=colour, alpha=0.2)
        axes.plot(nominals[kept], bands[:, 1], "o", ms=4, color=colour, label=f"{family}, measured")
    fine = np.linspace(nominals[0], nominals[-1], 25)
    example = next(iter(groups.values()))[0]
    edge = families.get(family).radius_edge
    curve = [_predicted(example, gain / edge)[measured] for gain in fine]
    axes.plot(fine, curve, color=colour, label=f"{family}, theory")
