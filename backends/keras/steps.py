"""Steps of training the reference models, compiled once for all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from deq_init.keras.base import Equilibrium

_cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Trainer:
    """A model and its optimizer.

    Parameters
    ----------
    model : Equilibrium
        Computes logits; the loss is their mean cross-entropy.
    optimizer : keras.optimizers.Optimizer
        Of its own, not built yet.
    """

    def __init__(self, model: Equilibrium, optimizer: keras.optimizers.Optimizer) -> None:
        optimizer.build(model.trainable_variables)
        self.model, self.optimizer = model, optimizer
        self._fresh = [np.array(ops.convert_to_numpy(v)) for v in optimizer.variables]
        self._step, self._evaluate = _compiled(model, optimizer)

    def restart(self, model: Equilibrium) -> None:
        """Begin anew, with the parameters of another model."""
        self.model.from_arrays(model.to_arrays())
        for variable, value in zip(self.optimizer.variables, self._fresh, strict=True):
            variable.assign(value)

    def step(self, x: Any, y: Any) -> list[float]:
        """Train on a batch; return its loss, mean solver steps and share that did not converge."""
        return _numbers(self._step(ops.convert_to_tensor(x), ops.convert_to_tensor(y)))

    def evaluate(self, x: Any, y: Any) -> list[float]:
        """Return loss and accuracy on a batch."""
        return _numbers(self._evaluate(ops.convert_to_tensor(x), ops.convert_to_tensor(y)))


def _numbers(found: Sequence[Any]) -> list[float]:
    return [float(ops.convert_to_numpy(ops.stop_gradient(x))) for x in found]


def _loss(model: Equilibrium, x: Any, y: Any) -> tuple[Any, tuple[Any, Any]]:
    logits, solution = model.solve(x)
    steps = ops.mean(ops.cast(solution.steps, "float32"))
    stopped = ops.mean(ops.cast(ops.logical_not(solution.converged), "float32"))
    return _cross_entropy(y, logits), (steps, stopped)


def _quality(model: Equilibrium, x: Any, y: Any) -> tuple[Any, Any]:
    logits = model(x)
    right = ops.argmax(logits, -1) == ops.cast(y, "int32")
    return _cross_entropy(y, logits), ops.mean(ops.cast(right, "float32"))


if keras.backend.backend() == "jax":
    import jax

    def _compiled(model: Equilibrium, optimizer: keras.optimizers.Optimizer) -> Any:
        """Return a step and an evaluation, as functions of a batch."""

        def stateless(function: Any) -> Any:
            def call(values: Any, x: Any, y: Any) -> Any:
                with keras.StatelessScope(zip(model.variables, values, strict=True)):
                    return function(model, x, y)

            return call

        @jax.jit
        def update(values: Any, memory: Any, x: Any, y: Any) -> Any:
            gradient = jax.value_and_grad(stateless(_loss), has_aux=True)
            (loss, rest), grads = gradient(values, x, y)
            return optimizer.stateless_apply(memory, grads, values), (loss, *rest)

        def step(x: Any, y: Any) -> Any:
            variables = [*model.variables, *optimizer.variables]
            values = [variable.value for variable in variables]
            count = len(model.variables)
            after, found = update(values[:count], values[count:], x, y)
            for variable, value in zip(variables, [*after[0], *after[1]], strict=True):
                variable.assign(value)
            return found

        quality = jax.jit(stateless(_quality))
        return step, lambda x, y: quality([v.value for v in model.variables], x, y)

elif keras.backend.backend() == "torch":
    import torch

    def _compiled(model: Equilibrium, optimizer: keras.optimizers.Optimizer) -> Any:
        """Return a step and an evaluation, as functions of a batch."""
        variables = model.trainable_variables

        def step(x: Any, y: Any) -> Any:
            loss, rest = _loss(model, x, y)
            grads = torch.autograd.grad(loss, [variable.value for variable in variables])
            with torch.no_grad():
                optimizer.apply(grads, variables)
            return loss, *rest

        return step, torch.no_grad()(partial(_quality, model))

else:
    import tensorflow as tf

    def _compiled(model: Equilibrium, optimizer: keras.optimizers.Optimizer) -> Any:
        """Return a step and an evaluation, as functions of a batch."""
        variables = model.trainable_variables

        @tf.function(autograph=False)  # type: ignore[untyped-decorator]
        def step(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                loss, rest = _loss(model, x, y)
            grads = tape.gradient(loss, [variable.value for variable in variables])
            optimizer.apply(grads, variables)
            return loss, *rest

        return step, tf.function(partial(_quality, model), autograph=False)
