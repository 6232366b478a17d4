"""A Keras reference model's weights, fixed point, loss and gradients, on the backend in use.

In the process: ``measure(build(...), samples(...), labels(...))``. In a process of its own, with
KERAS_BACKEND set (and JAX_ENABLE_X64=1 for float64): ``python keras_parity.py REQUEST OUT.npz``,
with a request as JSON:
``{"model": "DEQFCN", "arguments": {"inputs": 5, ...}, "dtype": "float64", "batch": 4}``, and with
``"load"`` or ``"save"`` a checkpoint to take the weights from, or to write them to. The arrays in
the file are ``z``, ``loss``, ``weights/NAME`` and ``gradients/NAME``, kernels (in, out).
"""

import functools
import json
import sys

import keras
import numpy as np
from keras import ops

from deq_init import checkpoint
from deq_init.keras import models

LENGTH = 6


def samples(model, arguments, dtype, batch):
    """Inputs of a model: normal vectors, or tokens."""
    generator = np.random.default_rng(3)
    if model == "DEQFCN":
        return generator.standard_normal((batch, arguments["inputs"])).astype(dtype)
    return generator.integers(0, arguments["vocabulary"], (batch, LENGTH))


def labels(model, arguments, batch):
    """Classes, one for each sample, or for each token."""
    if model == "DEQFCN":
        return np.arange(batch) % arguments["classes"]
    return np.arange(batch * LENGTH).reshape(batch, LENGTH) % arguments["vocabulary"]


def build(model, arguments, dtype):
    """The model, in that dtype."""
    return getattr(models, model)(**arguments, dtype=dtype)


def loss_of(logits, classes):
    """Mean cross-entropy."""
    picked = ops.take_along_axis(ops.log_softmax(logits), ops.expand_dims(classes, -1), -1)
    # Not ops.mean, which may round float64 to float32.
    return -ops.sum(picked) / float(np.prod(classes.shape))


def measure(model, x, classes, traced=False, loss=loss_of):
    """Fixed point, loss, gradients by name, and the solution; traced as the backend does."""
    x, classes = ops.convert_to_tensor(x), ops.convert_to_tensor(classes.astype("int32"))
    value, z, status, gradients = _differentiated(model, loss, traced)(x, classes)
    arrays = [np.asarray(ops.convert_to_numpy(ops.convert_to_tensor(g))) for g in gradients]
    return {
        "z": np.asarray(ops.convert_to_numpy(ops.stop_gradient(z))),
        "loss": float(ops.convert_to_numpy(ops.stop_gradient(value))),
        "gradients": dict(zip(model.kernels, arrays, strict=True)),
        "residual": ops.convert_to_numpy(status[0]),
        "steps": ops.convert_to_numpy(status[1]),
        "converged": ops.convert_to_numpy(status[2]),
    }


# Traced once for a model and a loss.
@functools.lru_cache(maxsize=1)
def _differentiated(model, loss, traced):
    def run(x, classes):
        logits, solution = model.solve(x)
        status = (solution.residual, solution.steps, solution.converged)
        return loss(logits, classes), solution.value, status

    return _differentiate(run, list(model.kernels.values()), traced)


if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    def _differentiate(run, variables, traced):
        def both(x, classes):
            with tf.GradientTape() as tape:
                loss, z, status = run(x, classes)
            values = [variable.value for variable in variables]
            return loss, z, status, tape.gradient(loss, values)

        return tf.function(both, autograph=False) if traced else both

elif keras.backend.backend() == "jax":
    import jax

    QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}

    def _differentiate(run, variables, traced):
        def loss_and_rest(values, x, classes):
            with keras.StatelessScope(zip(variables, values, strict=True)):
                loss, *rest = run(x, classes)
            return loss, rest

        function = jax.value_and_grad(loss_and_rest, has_aux=True)
        if traced:
            function = jax.jit(function, compiler_options=QUICK)

        def both(x, classes):
            values = [variable.value for variable in variables]
            (loss, (z, status)), gradients = function(values, x, classes)
            return loss, z, status, gradients

        return both

else:
    import torch

    def _differentiate(run, variables, traced):
        def both(x, classes):
            loss, z, status = run(x, classes)
            values = [variable.value for variable in variables]
            return loss, z, status, torch.autograd.grad(loss, values)

        return both


def main(request, out):
    request = json.loads(request)
    name, arguments = request["model"], request["arguments"]
    dtype, batch = request["dtype"], request["batch"]
    model = build(name, arguments, dtype)
    if "load" in request:
        model.from_arrays(checkpoint.load(request["load"]))
    if "save" in request:
        checkpoint.save(request["save"], model.to_arrays())
    x = samples(name, arguments, dtype, batch)
    found = measure(model, x, labels(name, arguments, batch))
    arrays = {"z": found["z"], "loss": found["loss"]}
    for kind, by_name in (("weights", model.to_arrays()), ("gradients", found["gradients"])):
        arrays |= {f"{kind}/{key}": value for key, value in by_name.items()}
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
