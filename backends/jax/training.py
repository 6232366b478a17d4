"""Training of the reference models in JAX, several seeds at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deq_init.data import Split
from deq_init.jax import initializers
from deq_init.jax.models import DEQFCN, Params
from deq_init.training import ADAM, Outcome, Settings


def train_fcn(
    settings: Settings, family: str, gain: float, data: Split, orders: np.ndarray, seeds: np.ndarray
) -> Outcome:
    """Train one model for each seed, all of them in one compiled computation.

    Parameters
    ----------
    settings : deq_init.training.Settings
        How.
    family, gain
        Of W.
    data : deq_init.data.Split
        Samples.
    orders : array, shape (seeds, steps, batch), integer
        Which training samples each step of each seed sees.
    seeds : array, shape (seeds,), integer
        Seeds of the parameters, in [0, 2**32).

    See Also
    --------
    deq_init.training : settings and outcome.
    """
    model = model_of(settings, data)
    initialize: initializers.Initializer = getattr(initializers, family)(gain)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    params = jax.vmap(lambda key: model.init(key, initialize))(keys)
    arrays = (data.x_train, data.y_train, data.x_test, data.y_test)
    rates = jnp.float32(settings.learning_rate), jnp.float32(settings.momentum)
    how = (model, settings.optimizer, settings.clip)
    outcome = _train(how, params, jnp.asarray(orders), *map(jnp.asarray, arrays), *rates)
    return Outcome(*map(np.asarray, outcome))


def model_of(settings: Settings, data: Split) -> DEQFCN:
    """Return the model that the settings describe, for the data."""
    return DEQFCN(
        inputs=data.x_train.shape[1],
        width=settings.width,
        classes=data.classes,
        rtol=settings.rtol,
        max_steps=settings.max_steps,
        input_gain=settings.input_gain,
        method=settings.method,
    )


@partial(jax.jit, static_argnums=0)
def _train(
    how: tuple[DEQFCN, str, float | None],
    params: Params,
    orders: jax.Array,
    x_train: jax.Array,
    y_train: jax.Array,
    x_test: jax.Array,
    y_test: jax.Array,
    learning_rate: jax.Array,
    momentum: jax.Array,
) -> Outcome:
    model, optimizer, clip = how

    def loss(params: Params, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        logits, solution = model.apply(params, x)
        log_likelihood = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_likelihood, y[:, None], axis=1)
        return -picked.mean(), (solution.steps, solution.converged)

    def sgd(params: Params, velocity: Params, grads: Params, _: jax.Array) -> tuple[Params, Params]:
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, grads)
        return jax.tree.map(lambda p, v: p - learning_rate * v, params, velocity), velocity

    def adam(params: Params, moments: Any, grads: Params, count: jax.Array) -> tuple[Params, Any]:
        first, second, epsilon = ADAM
        m = jax.tree.map(lambda m, g: first * m + (1 - first) * g, moments[0], grads)
        v = jax.tree.map(lambda v, g: second * v + (1 - second) * g * g, moments[1], grads)
        rate = learning_rate * jnp.sqrt(1 - second**count) / (1 - first**count)
        # Epsilon is added to the corrected second moment, as in the paper of Adam.
        least = epsilon * jnp.sqrt(1 - second**count)
        params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + least), params, m, v)
        return params, (m, v)

    update: Callable[..., Any] = sgd if optimizer == "sgd" else adam

    def step(state: tuple[Params, Any], given: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        params, memory = state
        samples, count = given
        gradient: Callable[..., Any] = jax.value_and_grad(loss, has_aux=True)
        (value, (steps, converged)), grads = gradient(params, x_train[samples], y_train[samples])
        if clip is not None:
            grads = clipped(grads, clip)
        params, memory = update(params, memory, grads, count)
        return (params, memory), (value, steps.mean(), (~converged).mean())

    def train(params: Params, order: jax.Array) -> Outcome:
        zeros = jax.tree.map(jnp.zeros_like, params)
        start = (params, zeros if optimizer == "sgd" else (zeros, zeros))
        counts = jnp.arange(1, len(order) + 1, dtype=jnp.float32)
        (params, _), (losses, steps, lost) = jax.lax.scan(step, start, (order, counts))
        logits, _ = model.apply(params, x_test)
        accuracy = (logits.argmax(1) == y_test).mean()
        return Outcome(accuracy, losses[-1], steps.mean(), lost.mean())

    return each_seed(train, params, orders)


def each_seed(train: Callable[..., Any], *arrays: Any) -> Any:
    """Return what a function gives for each seed, the first axis of the arrays."""
    if jax.default_backend() == "cpu":
        # There, a seed that has converged would wait for the slowest at each step.
        return jax.lax.map(lambda seed: train(*seed), arrays)
    return jax.vmap(train)(*arrays)


def clipped(grads: Params, most: float) -> Params:
    """Return the gradients, shortened together to a Euclidean norm of ``most``."""
    length = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
    factor = jnp.minimum(1.0, most / jnp.maximum(length, jnp.finfo(length.dtype).tiny))
    return jax.tree.map(lambda g: factor * g, grads)
