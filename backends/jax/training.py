"""Training of the reference models in JAX, several seeds at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deq_init.jax import initializers
from deq_init.jax.models import DEQFCN, Params


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

    accuracy: np.ndarray
    loss: np.ndarray
    solver_steps: np.ndarray
    not_converged: np.ndarray


def train_fcn(
    model: DEQFCN,
    state_to_state: initializers.Initializer,
    data: Any,
    orders: np.ndarray,
    seeds: np.ndarray,
    *,
    learning_rate: float,
    momentum: float,
) -> Outcome:
    """Train one model for each seed by SGD with momentum, all of them in one vmapped computation.

    Parameters
    ----------
    model : DEQFCN
        The model.
    state_to_state : Initializer
        Of W.
    data : deq_init.data.Split
        Samples.
    orders : array, shape (seeds, steps, batch), integer
        Which training samples each step of each seed sees.
    seeds : array, shape (seeds,), integer
        Seeds of the parameters.
    learning_rate, momentum : float
        Of SGD; the loss is the mean cross-entropy of a batch.
    """
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    params = jax.vmap(lambda key: model.init(key, state_to_state))(keys)
    arrays = (data.x_train, data.y_train, data.x_test, data.y_test)
    rates = jnp.float32(learning_rate), jnp.float32(momentum)
    outcome = _train(model, params, jnp.asarray(orders), *map(jnp.asarray, arrays), *rates)
    return Outcome(*map(np.asarray, outcome))


@partial(jax.jit, static_argnums=0)
def _train(
    model: DEQFCN,
    params: Params,
    orders: jax.Array,
    x_train: jax.Array,
    y_train: jax.Array,
    x_test: jax.Array,
    y_test: jax.Array,
    learning_rate: jax.Array,
    momentum: jax.Array,
) -> Outcome:
    def loss(params: Params, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        logits, solution = model.apply(params, x)
        log_likelihood = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_likelihood, y[:, None], axis=1)
        return -picked.mean(), (solution.steps, solution.converged)

    def step(state: tuple[Params, Params], samples: jax.Array) -> tuple[Any, Any]:
        params, velocity = state
        gradient: Callable[..., Any] = jax.value_and_grad(loss, has_aux=True)
        (value, (steps, converged)), grads = gradient(params, x_train[samples], y_train[samples])
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, grads)
        params = jax.tree.map(lambda p, v: p - learning_rate * v, params, velocity)
        return (params, velocity), (value, steps, converged)

    def train(params: Params, order: jax.Array) -> Outcome:
        start = (params, jax.tree.map(jnp.zeros_like, params))
        (params, _), (losses, steps, converged) = jax.lax.scan(step, start, order)
        logits, _ = model.apply(params, x_test)
        accuracy = (logits.argmax(1) == y_test).mean()
        return Outcome(accuracy, losses[-1], steps.mean(), (~converged).mean())

    return jax.vmap(train)(params, orders)
