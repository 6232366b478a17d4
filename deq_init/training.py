"""What a training run of the reference model is: its settings and outcome, for every backend.

Each backend has ``train_fcn(settings, family, gain, data, orders, seeds) -> Outcome`` in its module
``training``, such as :func:`deq_init.jax.training.train_fcn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from deq_init.errors import ModelError

ADAM = (0.9, 0.999, 1e-8)
"""Decay of Adam's two moments, and its epsilon."""


@dataclass(frozen=True)
class Settings:
    """How the fully-connected DEQ z* = tanh(z* W) + x U is trained.

    Attributes
    ----------
    width, batch, epochs : int
        Size of z, samples a step, passes over the training samples.
    optimizer : {"sgd", "adam"}
        SGD with momentum, or Adam (0.9, 0.999, epsilon 1e-8).
    learning_rate, momentum : float
        The momentum is SGD's. The loss is the mean cross-entropy of a batch.
    clip : float, optional
        Largest Euclidean norm of all gradients together; longer ones are shortened to it.
    method : {"batch", "plain", "anderson"}
        Iteration of the batch as a whole (JAX alone), or of each sample for itself, plain or
        accelerated. Without convergence, the batch's last iterate is kept, or each sample's best.
    rtol, max_steps : float, int
        Tolerance and step cap from z = 0, forward and adjoint.
    input_gain : float
        Entries of U have standard deviation input_gain / sqrt(features).
    """

    width: int = 48
    batch: int = 50
    epochs: int = 3
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.02
    momentum: float = 0.9
    clip: float | None = None
    method: Literal["batch", "plain", "anderson"] = "batch"
    rtol: float = 1e-3
    max_steps: int = 40
    input_gain: float = 0.3

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adam"):
            raise ModelError(
                f"expected optimizer 'sgd' or 'adam', received {self.optimizer!r}. Pass 'sgd'."
            )


class Outcome(NamedTuple):
    """What training gave, one entry for each seed.

    Attributes
    ----------
    accuracy : array, shape (seeds,)
        Share of test samples classified right.
    loss : array, shape (seeds,)
        Training loss at the last step.
    solver_steps : array, shape (seeds,)
        Mean steps of the forward solves during training.
    not_converged : array, shape (seeds,)
        Share of the forward solves that stopped at the step cap.
    """

    accuracy: Any
    loss: Any
    solver_steps: Any
    not_converged: Any


def shuffled(samples: int, batch: int, epochs: int, seed: int) -> np.ndarray:
    """Return the training samples of each step: every epoch a new shuffle, the rest dropped.

    Parameters
    ----------
    samples, batch, epochs : int
        How many training samples there are, how many a step sees, and how often all are seen.
    seed : int
        Of the shuffles.

    Returns
    -------
    array, shape (steps, batch), int64

    Examples
    --------
    >>> shuffled(5, 2, 2, seed=0).shape
    (4, 2)
    """
    rng = np.random.default_rng(seed)
    steps = samples // batch
    kept = [rng.permutation(samples)[: steps * batch] for _ in range(epochs)]
    return np.concatenate(kept).reshape(-1, batch)
