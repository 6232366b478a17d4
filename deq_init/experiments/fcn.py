"""The fully-connected DEQ trained from different initializations of W, on digits and on MNIST.

The base setting is one in which the initialization shows: SGD with momentum and no gradient
clipping, plain iteration with the last iterate kept, and a small network. The other regimes are
there to say which of them hide it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from deq_init import data, families, training
from deq_init.errors import ModelError, SeedError, require
from deq_init.experiments.entries import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    Kind,
    mapping,
    maybe,
    one_of,
)
from deq_init.experiments.results import Row
from deq_init.training import Settings

Name = Literal["digits", "mnist"]
Backend = Literal["jax", "torch", "keras"]
BACKENDS: tuple[Backend, ...] = ("jax", "torch", "keras")

FAILED_BELOW = 0.8
"""A run has failed if its test accuracy is below this, or not a number."""

SETTINGS: dict[str, Settings] = {
    "digits": Settings(width=48, batch=50, epochs=3, learning_rate=0.02),
    "mnist": Settings(width=100, batch=100, epochs=1, learning_rate=0.006),
}
"""The base setting of each data set."""

REGIMES: dict[str, dict[str, Any]] = {
    "base": {},
    "adam": {"optimizer": "adam", "learning_rate": 0.002},
    "anderson": {"method": "anderson"},
    "clipping": {"clip": 3.0},
    "20 steps": {"max_steps": 20},
    "width 256": {"width": 256},
}
"""What each regime changes of the base setting."""

_SAMPLES = {"digits": (1400, 64), "mnist": (60000, 784)}
# Fitted to the small sizes in JAX: operations a second of a core, and seconds of a training step.
_CORE_FLOPS, _STEP_SECONDS = 5e10, 6e-4


@dataclass(frozen=True)
class Grid:
    """What is run.

    Attributes
    ----------
    gains : tuple of float
        Of W; GOE is run at half of each, too, which is equal radius.
    seeds, first_seed : int
        Seeds of the parameters: how many, and the first.
    orders : int, optional
        Orders of the data, shared by all seeds and crossed with them. None: each seed has its own,
        which all families share.
    epochs : int
        Passes over the training samples.
    regimes : tuple of str
        Out of :data:`REGIMES`.
    backend : {"jax", "torch", "keras"}
        What trains. In PyTorch and Keras each sample is solved for itself, not the batch.
    """

    gains: tuple[float, ...]
    seeds: int
    orders: int | None
    epochs: int
    first_seed: int = 0
    regimes: tuple[str, ...] = ("base",)
    backend: Backend = "jax"


_ALL = tuple(REGIMES)
_TENTHS = tuple(round(0.1 * k, 1) for k in range(6, 19))

GRIDS: dict[tuple[str, str], Grid] = {
    ("digits", "small"): Grid((0.6, 0.9, 1.2, 1.3), seeds=24, orders=None, epochs=3),
    ("digits", "full"): Grid(_TENTHS, seeds=256, orders=None, epochs=3, regimes=_ALL),
    ("mnist", "small"): Grid((0.6, 1.0, 1.2, 1.4, 1.6), seeds=8, orders=2, epochs=1),
    ("mnist", "full"): Grid(_TENTHS, seeds=32, orders=4, epochs=3, regimes=_ALL),
}
"""The grids of ``--size``."""


LABELS = tuple(f"{family}{half}" for family in families.PAPER for half in ("", ", half gain"))
RUN: dict[str, Kind] = {
    "backend": one_of(BACKENDS),
    "label": one_of(LABELS),
    "family": one_of(families.PAPER),
    "gain": NUMBER,
    "nominal": NUMBER,
    "seeds": INTEGER,
    "seed": INTEGER,
    "failed": BOOLEAN,
    "loss": maybe(NUMBER),
    "solver_steps": maybe(NUMBER),
    "not_converged": maybe(NUMBER),
}
"""What the report of any training needs of a row."""

ENTRIES: dict[str, Kind] = {
    **RUN,
    "regime": one_of(REGIMES),
    "order": maybe(INTEGER),
    "accuracy": maybe(NUMBER),
    "solver_steps": NUMBER,
    "not_converged": NUMBER,
    "settings": mapping(
        {
            "width": INTEGER,
            "batch": INTEGER,
            "epochs": INTEGER,
            "optimizer": one_of(("sgd", "adam")),
            "learning_rate": NUMBER,
            "momentum": NUMBER,
            "clip": maybe(NUMBER),
            "method": one_of(("batch", "plain", "anderson")),
            "rtol": NUMBER,
            "max_steps": INTEGER,
        }
    ),
}
"""What the report needs of a row."""


def cells(name: Name, grid: Grid) -> list[Row]:
    """Return the configurations: each family at each gain, in each regime and order."""
    require_seeds(grid.first_seed, grid.seeds)
    return [
        {
            "experiment": name,
            "backend": grid.backend,
            "regime": regime,
            "label": label,
            "family": family,
            "gain": gain,
            "nominal": nominal,
            "first_seed": grid.first_seed,
            "seeds": grid.seeds,
            "order": order,
            "settings": asdict(_settings(name, grid, regime)),
        }
        for regime in grid.regimes
        for nominal in grid.gains
        for label, family, gain in families_at(nominal)
        for order in (range(grid.orders) if grid.orders else [None])
    ]


def families_at(nominal: float) -> list[tuple[str, str, float]]:
    """Return label, family and gain of every family at a gain, and of GOE at half of it."""
    found = []
    for family in families.PAPER:
        found.append((family, family, nominal))
        if families.get(family).radius_edge == 2:
            found.append((f"{family}, half gain", family, nominal / 2))
    return found


def measure(cell: Row) -> list[Row]:
    """Train the seeds of a cell and return a row for each."""
    settings = Settings(**cell["settings"])
    split = _split(cell["experiment"])
    train = require(f"deq_init.{cell['backend']}.training", cell["backend"]).train_fcn
    seeds = np.arange(cell["first_seed"], cell["first_seed"] + cell["seeds"])
    shuffles = [seed if cell["order"] is None else cell["order"] for seed in seeds]
    samples = len(split.x_train)
    orders = np.stack(
        [training.shuffled(samples, settings.batch, settings.epochs, int(s)) for s in shuffles]
    )
    outcome = train(settings, cell["family"], cell["gain"], split, orders, seeds)
    return [
        {
            "seed": int(seed),
            "accuracy": outcome.accuracy[i],
            "failed": not outcome.accuracy[i] >= FAILED_BELOW,
            "loss": outcome.loss[i],
            "solver_steps": outcome.solver_steps[i],
            "not_converged": outcome.not_converged[i],
        }
        for i, seed in enumerate(seeds)
    ]


def require_ready(name: Name, grid: Grid) -> None:
    """Raise what the first cell would: a missing framework, or data that cannot be had."""
    require_backend(grid.backend)
    if name == "mnist":
        data.find_mnist()
    else:
        require("sklearn.datasets", "experiments")


def require_backend(backend: Backend) -> None:
    """Raise MissingFrameworkError if what trains is not installed."""
    if backend == "keras":
        # Keras has one backend for a process; JAX is the one that this package's default is, too.
        os.environ.setdefault("KERAS_BACKEND", "jax")
    require(backend, backend)


def require_seeds(first: int, count: int) -> None:
    """Raise SeedError for seeds that not every backend has: those are in [0, 2**32)."""
    if not 0 <= first <= first + count <= 2**32:
        raise SeedError(
            f"expected seeds in [0, 2**32), received {count} from {first} on. Pass e.g. "
            "--first-seed 0."
        )


def require_regimes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the base regime and those named, or all of them if none is.

    Raises
    ------
    ModelError
        For an unknown one.
    """
    for name in names:
        if name not in REGIMES:
            raise ModelError(
                f"expected a regime out of {', '.join(map(repr, REGIMES))}, received {name!r}. "
                "Pass e.g. --regimes adam '20 steps'."
            )
    return tuple(dict.fromkeys(["base", *(names or REGIMES)]))


def core_hours(configurations: Sequence[Row]) -> float:
    """Return about how many hours of one core the cells take in JAX on a CPU."""
    total = 0.0
    for cell in configurations:
        settings = Settings(**cell["settings"])
        samples, features = _SAMPLES[cell["experiment"]]
        steps = settings.epochs * samples // settings.batch
        # Forward and adjoint take about 20 iterations each, and 6 products with the input's map.
        products = 40 * settings.width**2 + 6 * features * settings.width
        flops = 2.0 * settings.batch * products
        total += cell["seeds"] * steps * (flops / _CORE_FLOPS + _STEP_SECONDS)
    return total / 3600


def _settings(name: str, grid: Grid, regime: str) -> Settings:
    base = replace(SETTINGS[name], epochs=grid.epochs)
    if grid.backend != "jax":
        base = replace(base, method="plain")
    return replace(base, **REGIMES[regime])


@lru_cache(maxsize=1)
def _split(name: str) -> data.Split:
    if name == "digits":
        return data.digits()
    split = data.mnist()
    # One mean and deviation for all pixels: those at the edge hardly vary.
    mean, deviation = split.x_train.mean(), split.x_train.std()
    x_train, x_test = ((x - mean) / deviation for x in (split.x_train, split.x_test))
    return replace(split, x_train=x_train, x_test=x_test)
