"""The activations that models know by name, in PyTorch's words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "linear": nn.Identity(),
    "tanh": torch.tanh,
    "relu": torch.relu,
    "hard_tanh": functional.hardtanh,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "swish": functional.silu,
    "mish": functional.mish,
    "softplus": partial(functional.softplus, threshold=40.0),  # 20 is seen in float64
    "sigmoid": torch.sigmoid,
    "elu": functional.elu,
    "selu": functional.selu,
    "leaky_relu": functional.leaky_relu,
    "softsign": functional.softsign,
    "sin": torch.sin,
}
"""The named activations; ``gelu`` is the exact one, with the error function.

``leaky_relu`` has the slope 0.01 below 0; ``swish`` is ``silu``.
"""
