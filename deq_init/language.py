"""What a training run of the DEQ-transformer is: its settings and outcome, for every backend.

Each backend has ``train(settings, family, gain, data, seeds) -> Outcome`` in its module
``language``, such as :func:`deq_init.jax.language.train`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deq_init.errors import DataError
from deq_init.fixed_point import Method
from deq_init.transformer import Norm


@dataclass(frozen=True)
class Settings:
    """How the DEQ-transformer is trained on running text, to predict each next word.

    Attributes
    ----------
    width, heads, expansion, norm
        Of the model, see :mod:`deq_init.transformer`.
    length, batch, steps : int
        Words of a sequence, sequences a step, steps.
    learning_rate : float
        Of Adam, constant.
    clip : float, optional
        Largest Euclidean norm of all gradients together; longer ones are shortened to it.
    method, rtol, max_steps
        Of the solver, forward and adjoint; the best iterate is kept, converged or not.
    validation : int
        Sequences that the perplexity is measured on, the first of the validation text.
    """

    width: int = 64
    heads: int = 4
    expansion: int = 2
    norm: Norm = "post"
    length: int = 32
    batch: int = 16
    steps: int = 300
    learning_rate: float = 0.005
    clip: float | None = None
    method: Method = "plain"
    rtol: float = 1e-3
    max_steps: int = 30
    validation: int = 256


class Outcome(NamedTuple):
    """What training gave, one entry for each seed.

    Attributes
    ----------
    perplexity : array, shape (seeds,)
        Exponential of the mean negative log-likelihood of a word of the validation sequences.
    loss : array, shape (seeds,)
        Mean negative log-likelihood of the last training batch.
    solver_steps : array, shape (seeds,)
        Mean steps of the forward solves during training.
    not_converged : array, shape (seeds,)
        Share of the forward solves that stopped at the step cap.
    """

    perplexity: Any
    loss: Any
    solver_steps: Any
    not_converged: Any


def starts(words: int, settings: Settings, seed: int) -> NDArray[np.int64]:
    """Return where in a text of so many words each sequence of each step begins.

    Parameters
    ----------
    words : int
        Length of the training text.
    settings : Settings
        Sequences have ``length`` words, and the next one for the last to predict.
    seed : int
        Of the choice.

    Returns
    -------
    array, shape (steps, batch), int64

    Raises
    ------
    DataError
        If the text is shorter than a sequence.
    """
    last = words - settings.length
    if last < 1:
        raise DataError(
            f"expected a text of more than {settings.length} words, received {words}. "
            "Take more of it, or shorter sequences."
        )
    rng = np.random.default_rng(seed)
    return rng.integers(0, last, (settings.steps, settings.batch))


def sequences(text: NDArray[Any], settings: Settings) -> NDArray[np.int32]:
    """Return the first validation sequences, shape (validation, length + 1), one after another."""
    size = settings.length + 1
    count = min(settings.validation, len(text) // size)
    if count < 1:
        raise DataError(
            f"expected a validation text of {size} words at least, received {len(text)}. "
            "Take more of it, or shorter sequences."
        )
    return np.asarray(text[: count * size], np.int32).reshape(count, size)
