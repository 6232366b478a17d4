"""The activations that models know by name, in PyTorch's words."""

from __future__ import annotations

from collections.abc import Callable

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
}
"""The named activations; ``gelu`` is the exact one, with the error function."""
