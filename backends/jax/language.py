"""Training of the DEQ-transformer in JAX, several seeds at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deq_init import language as core
from deq_init.jax.models import DEQTransformer, Params
from deq_init.jax.training import clipped, each_seed
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
    """Train one model for each seed, all of them in one compiled computation.

    Parameters
    ----------
    settings : deq_init.language.Settings
        How.
    family, gain
        Of the state-to-state matrices.
    text, validation : array, shape (words,), integer
        Words as indices into the vocabulary.
    vocabulary : int
        Its size.
    seeds : array, shape (seeds,), integer
        Seeds of the parameters, in [0, 2**32), and of the order of the text.

    See Also
    --------
    deq_init.language : settings and outcome.
    """
    model = DEQTransformer(
        vocabulary,
        settings.width,
        settings.heads,
        settings.expansion,
        settings.norm,
        method=settings.method,
        rtol=settings.rtol,
        max_steps=settings.max_steps,
    )
    starts = np.stack([core.starts(len(text), settings, int(seed)) for seed in seeds])
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    params = jax.vmap(lambda key: model.init(key, family, gain))(keys)
    held_out = core.sequences(validation, settings)
    rate = jnp.float32(settings.learning_rate)
    arrays = map(jnp.asarray, (starts, text.astype(np.int32), held_out))
    how = (model, settings.length, settings.batch, settings.clip)
    return Outcome(*map(np.asarray, _train(how, params, rate, *arrays)))


@partial(jax.jit, static_argnums=0)
def _train(
    how: tuple[DEQTransformer, int, int, float | None],
    params: Params,
    rate: jax.Array,
    starts: jax.Array,
    text: jax.Array,
    held_out: jax.Array,
) -> Outcome:
    model, length, batch, clip = how
    first, second, epsilon = ADAM

    def loss(params: Params, sequences: jax.Array) -> tuple[jax.Array, Any]:
        logits, solution = model.apply(params, sequences[:, :-1])
        likelihoods = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(likelihoods, sequences[:, 1:, None], axis=2)
        return -picked.mean(), (solution.steps, solution.converged)

    def step(state: Any, given: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        params, m, v = state
        begin, count = given
        sequences = text[begin[:, None] + jnp.arange(length + 1)]
        gradient: Callable[..., Any] = jax.value_and_grad(loss, has_aux=True)
        (value, (steps, converged)), grads = gradient(params, sequences)
        if clip is not None:
            grads = clipped(grads, clip)
        m = jax.tree.map(lambda m, g: first * m + (1 - first) * g, m, grads)
        v = jax.tree.map(lambda v, g: second * v + (1 - second) * g * g, v, grads)
        scales = 1 - first**count, 1 - second**count

        def update(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            return p - rate * (m / scales[0]) / (jnp.sqrt(v / scales[1]) + epsilon)

        params = jax.tree.map(update, params, m, v)
        return (params, m, v), (value, steps.mean(), (~converged).mean())

    def train(params: Params, starts: jax.Array) -> Outcome:
        zeros = jax.tree.map(jnp.zeros_like, params)
        counts = jnp.arange(1.0, len(starts) + 1)
        state, (losses, steps, stopped) = jax.lax.scan(
            step, (params, zeros, zeros), (starts, counts)
        )
        # Batches of the training's size: all sequences at once would take that much more memory.
        size = min(batch, len(held_out))
        parts = held_out[: len(held_out) // size * size].reshape(-1, size, length + 1)
        nll = jax.lax.map(lambda part: loss(state[0], part)[0], parts).mean()
        return Outcome(jnp.exp(nll), losses[-1], steps.mean(), stopped.mean())

    return each_seed(train, params, starts)
