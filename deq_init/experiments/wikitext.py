"""The DEQ-transformer trained on WikiText from different initializations of its block.

Adam without clipping and plain iteration, at a learning rate at which
training is not quite safe: at a lower one all initializations come out alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deq_init import data, vocabulary
from deq_init.errors import require
from deq_init.experiments.entries import INTEGER, NUMBER, TEXT, Kind, mapping, maybe, one_of
from deq_init.experiments.fcn import RUN, Backend, families_at, require_backend, require_seeds
from deq_init.experiments.results import Row
from deq_init.language import Settings
from deq_init.transformer import Norm

_SECONDS = 4e-2  # of a core for a step of one seed at the small size, measured with JAX


@dataclass(frozen=True)
class Grid:
    """What is run.

    Attributes
    ----------
    gains : tuple of float
        Of the block's matrices; GOE is run at half of each, too, which is equal radius.
    seeds, first_seed : int
        Seeds of the parameters and of the order of the text: how many, and the first.
    norms : tuple of {"post", "pre", "none"}
        Where the block has layer normalization.
    text : {"2", "103"}
        WikiText-2 or WikiText-103.
    train, valid : {"train", "valid", "test"}
        The parts that are trained on and that the perplexity is of.
    vocabulary : int
        Words, the most frequent ones of the training text; all others are ``<unk>``.
    settings : deq_init.language.Settings
        Of training; its norm is replaced by each of ``norms``.
    learning_rate, steps : float, int, optional
        In place of those of ``settings``.
    backend : {"jax", "torch", "keras"}
        What trains.
    """

    gains: tuple[float, ...]
    seeds: int
    text: Literal["2", "103"]
    train: Literal["train", "valid", "test"]
    valid: Literal["train", "valid", "test"]
    vocabulary: int
    settings: Settings
    first_seed: int = 0
    norms: tuple[Norm, ...] = ("post",)
    learning_rate: float | None = None
    steps: int | None = None
    backend: Backend = "jax"


GRIDS: dict[str, Grid] = {
    # The smaller WikiText's test text is as long as is needed, and a small download.
    "small": Grid((0.1, 0.3, 1.0), 8, "2", "test", "valid", 1000, Settings()),
    "full": Grid(
        (0.1, 0.3, 1.0),
        8,
        "103",
        "train",
        "valid",
        20000,
        Settings(width=256, heads=8, length=64, batch=64, steps=20000, learning_rate=0.001),
    ),
}
"""The grids of ``--size``."""


ENTRIES: dict[str, Kind] = {
    **RUN,
    "text": TEXT,
    "train": TEXT,
    "valid": TEXT,
    "vocabulary": INTEGER,
    "baseline": NUMBER,
    "perplexity": maybe(NUMBER),
    "settings": mapping(
        {
            "width": INTEGER,
            "heads": INTEGER,
            "expansion": INTEGER,
            "norm": one_of(("post", "pre", "none")),
            "length": INTEGER,
            "batch": INTEGER,
            "steps": INTEGER,
            "learning_rate": NUMBER,
            "clip": maybe(NUMBER),
            "method": TEXT,
            "rtol": NUMBER,
            "max_steps": INTEGER,
        }
    ),
}
"""What the report needs of a row."""


def cells(grid: Grid) -> list[Row]:
    """Return the configurations: each family at each gain, with each normalization."""
    require_seeds(grid.first_seed, grid.seeds)
    changed = {"learning_rate": grid.learning_rate, "steps": grid.steps}
    changed = {name: value for name, value in changed.items() if value is not None}
    return [
        {
            "experiment": "wikitext",
            "backend": grid.backend,
            "label": label,
            "family": family,
            "gain": gain,
            "nominal": nominal,
            "first_seed": grid.first_seed,
            "seeds": grid.seeds,
            "text": grid.text,
            "train": grid.train,
            "valid": grid.valid,
            "vocabulary": grid.vocabulary,
            "settings": {**asdict(grid.settings), **changed, "norm": norm},
        }
        for norm in grid.norms
        for nominal in grid.gains
        for label, family, gain in families_at(nominal)
    ]


def measure(cell: Row) -> list[Row]:
    """Train the seeds of a cell and return a row for each.

    A run has failed if its perplexity is above that of the words' frequencies alone, or not a
    number.
    """
    settings = Settings(**cell["settings"])
    train = require(f"deq_init.{cell['backend']}.language", cell["backend"]).train
    text, valid, words = _texts(cell["text"], cell["train"], cell["valid"], cell["vocabulary"])
    seeds = np.arange(cell["first_seed"], cell["first_seed"] + cell["seeds"])
    outcome = train(settings, cell["family"], cell["gain"], text, valid, words, seeds)
    baseline = frequencies_perplexity(text, valid, words)
    return [
        {
            "seed": int(seed),
            "perplexity": outcome.perplexity[i],
            "baseline": baseline,
            "failed": not outcome.perplexity[i] <= baseline,
            "loss": outcome.loss[i],
            "solver_steps": outcome.solver_steps[i],
            "not_converged": outcome.not_converged[i],
        }
        for i, seed in enumerate(seeds)
    ]


def frequencies_perplexity(text: NDArray[Any], valid: NDArray[Any], words: int) -> float:
    """Return the perplexity of a text under the frequencies of words in another.

    Parameters
    ----------
    text, valid : array, shape (words,), integer
        The text that is counted, where each word is given one more occurrence, and the other.
    words : int
        Size of the vocabulary.

    Examples
    --------
    >>> frequencies_perplexity(np.array([0, 1]), np.array([0, 1, 1]), 2)
    2.0
    """
    counts = np.bincount(text, minlength=words) + 1.0
    return float(np.exp(-np.log(counts / counts.sum())[valid].mean()))


def require_ready(grid: Grid) -> None:
    """Raise what the first cell would: a missing framework, or data that cannot be had."""
    require_backend(grid.backend)
    data.wikitext(grid.text, grid.train)
    data.wikitext(grid.text, grid.valid)


def core_hours(configurations: Sequence[Row]) -> float:
    """Return about how many hours of one core the cells take in JAX on a CPU."""
    small = GRIDS["small"].settings
    total = 0.0
    for cell in configurations:
        settings = Settings(**cell["settings"])
        tokens = settings.batch * settings.length / (small.batch * small.length)
        # Half of the small size's time is the block's, half the readout's.
        block = (settings.width / small.width) ** 2
        readout = settings.width / small.width * cell["vocabulary"] / GRIDS["small"].vocabulary
        total += cell["seeds"] * settings.steps * _SECONDS * tokens * (block + readout) / 2
    return total / 3600


@lru_cache(maxsize=1)
def _texts(
    name: Any, train: Any, valid: Any, size: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Return the two texts as indices, and the size of the vocabulary."""
    words = data.wikitext(name, train)
    known = vocabulary.build(words, size=size)
    return known.encode(words), known.encode(data.wikitext(name, valid)), len(known)
