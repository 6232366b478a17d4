"""What the models share in JAX: the activations that they name, and checkpoints of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deq_init import equilibrium

Params = dict[str, jax.Array]
Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {
    "linear": lambda h: h,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "hard_tanh": jax.nn.hard_tanh,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "leaky_relu": jax.nn.leaky_relu,
    "softsign": jax.nn.soft_sign,
    "sin": jnp.sin,
}
"""The named activations; ``gelu`` is the exact one, with the error function.

``leaky_relu`` has the slope 0.01 below 0; ``swish`` is ``silu``.
"""


def arrays_of(params: Params) -> dict[str, np.ndarray]:
    """Return the parameters as NumPy arrays; bfloat16 as float32, which holds it exactly."""
    wide = {
        name: value.astype(jnp.float32) if value.dtype == jnp.bfloat16 else value
        for name, value in params.items()
    }
    return {name: np.asarray(value) for name, value in wide.items()}


def params_of(arrays: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Return the parameters of a checkpoint, or raise ModelError; dtypes are kept."""
    widest = jnp.result_type(float).name  # float64 only with x64
    values = equilibrium.checkpoint_arrays(arrays, shapes, dict.fromkeys(shapes, widest))
    return {name: jnp.asarray(values[name]) for name in shapes}
