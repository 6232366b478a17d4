"""The activations that models name, in JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]
Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {
    "linear": lambda h: h,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "hard_tanh": jax.nn.hard_tanh,
    "gelu": partial(jax.nn.gelu, approximate=False),
}
"""The named activations; ``gelu`` is the exact one, with the error function."""
