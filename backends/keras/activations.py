"""The activations that models name, in Keras."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Activation = Callable[[Any], Any]

# The backend's own where there are any: in float64, Keras's are accurate to float32 on some.
if keras.backend.backend() == "jax":
    from deq_init.jax.models import ACTIVATIONS
elif keras.backend.backend() == "torch":
    from deq_init.torch.models import ACTIVATIONS
else:

    def _gelu(h: Any) -> Any:
        return 0.5 * h * (1 + ops.erf(h / math.sqrt(2)))

    ACTIVATIONS: dict[str, Activation] = {  # type: ignore[no-redef]
        "linear": lambda h: h,
        "tanh": ops.tanh,
        "relu": ops.relu,
        "hard_tanh": ops.hard_tanh,
        "gelu": _gelu,
        "silu": ops.silu,
        "swish": ops.silu,
        "mish": lambda h: h * ops.tanh(ops.softplus(h)),
        "softplus": ops.softplus,
        "sigmoid": ops.sigmoid,
        "elu": ops.elu,
        "selu": ops.selu,
        "leaky_relu": lambda h: ops.maximum(h, 0.01 * h),  # Keras's has the slope 0.2
        "softsign": lambda h: h / (1 + ops.abs(h)),
        "sin": ops.sin,
    }
