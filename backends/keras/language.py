"""Training of the DEQ-transformer in Keras."""

from __future__ import annotations

import keras
import numpy as np

from deq_init import language as core
from deq_init.keras.models import DEQTransformer
from deq_init.keras.steps import Trainer
from deq_init.language import Outcome, Settings
from deq_init.training import ADAM


def train(
    settings: Settings,
    family: str,
    gain: float,
    text: np.ndarray,
    validation: np.ndarray,
    vocabulary: int,
    seeds: np.ndarray,
) -> Outcome:
    """Train one model for each seed, one after another; see :func:`deq_init.jax.language.train`.

    The epsilon of Adam is where Keras has it, see :func:`deq_init.keras.training.train_fcn`.
    """

    def model_of(seed: int) -> DEQTransformer:
        return DEQTransformer(
            vocabulary,
            settings.width,
            settings.heads,
            expansion=settings.expansion,
            family=family,
            gain=gain,
            norm=settings.norm,
            method=settings.method,
            rtol=settings.rtol,
            max_steps=settings.max_steps,
            seed=seed,
            dtype="float32",
        )

    first, second, epsilon = ADAM
    optimizer = keras.optimizers.Adam(
        settings.learning_rate, first, second, epsilon, global_clipnorm=settings.clip
    )
    trainer = Trainer(model_of(int(seeds[0])), optimizer)
    held_out = core.sequences(validation, settings)
    words = np.asarray(text, np.int32)
    runs = []
    for seed in map(int, seeds):
        trainer.restart(model_of(seed))
        steps = []
        for begin in core.starts(len(words), settings, seed):
            sequences = words[begin[:, None] + np.arange(settings.length + 1)]
            steps.append(trainer.step(sequences[:, :-1], sequences[:, 1:]))
        # Batches of the training's size: all sequences at once would take that much more memory.
        size = min(settings.batch, len(held_out))
        parts = held_out[: len(held_out) // size * size].reshape(-1, size, held_out.shape[1])
        losses = [trainer.evaluate(part[:, :-1], part[:, 1:])[0] for part in parts]
        perplexity = np.exp(np.mean(losses))
        _, solver_steps, stopped = np.mean(steps, 0)
        runs.append((perplexity, steps[-1][0], solver_steps, stopped))
    return Outcome(*np.array(runs, np.float32).T)
