"""Training of the reference models in Keras, one seed after the other."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from deq_init.data import Split
from deq_init.keras.models import DEQFCN
from deq_init.keras.steps import Trainer
from deq_init.training import Outcome, Settings


def train_fcn(
    settings: Settings, family: str, gain: float, data: Split, orders: np.ndarray, seeds: np.ndarray
) -> Outcome:
    """Train one model for each seed, on the backend that Keras is set to.

    Parameters
    ----------
    settings : deq_init.training.Settings
        How; ``method`` is "plain" or "anderson".
    family, gain
        Of W.
    data : deq_init.data.Split
        Samples.
    orders : array, shape (seeds, steps, batch), integer
        Which training samples each step of each seed sees.
    seeds : array, shape (seeds,), integer
        Seeds of the parameters.

    Raises
    ------
    SolverError
        For ``method="batch"``, which JAX alone has.

    Notes
    -----
    Keras's Adam adds epsilon to the root of the second moment before its bias is corrected, where
    the others add it after: at the first step that is an epsilon 32 times as large.

    See Also
    --------
    deq_init.training : settings and outcome.
    """
    options: dict[str, Any] = {
        "method": settings.method,
        "rtol": settings.rtol,
        "max_steps": settings.max_steps,
        "input_gain": settings.input_gain,
    }

    def model_of(seed: int) -> DEQFCN:
        return DEQFCN(
            data.x_train.shape[1],
            settings.width,
            data.classes,
            family=family,
            gain=gain,
            seed=seed,
            dtype="float32",
            **options,
        )

    trainer = Trainer(model_of(int(seeds[0])), _optimizer(settings))
    runs = []
    for order, seed in zip(orders, seeds, strict=True):
        trainer.restart(model_of(int(seed)))
        steps = [trainer.step(data.x_train[batch], data.y_train[batch]) for batch in order]
        _, accuracy = trainer.evaluate(data.x_test, data.y_test)
        _, solver_steps, stopped = np.mean(steps, 0)
        runs.append((accuracy, steps[-1][0], solver_steps, stopped))
    return Outcome(*np.array(runs, np.float32).T)


def _optimizer(settings: Settings) -> keras.optimizers.Optimizer:
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(
            settings.learning_rate, settings.momentum, global_clipnorm=settings.clip
        )
    return keras.optimizers.Adam(
        settings.learning_rate, epsilon=1e-8, global_clipnorm=settings.clip
    )
