"""The families as PyTorch initializers, in the idiom of ``torch.nn.init``.

Weights have the layout (out, in, ...), as in ``torch.nn.Linear`` and ``torch.nn.Conv2d``.
"""

from deq_init.errors import missing_framework

try:
    import torch  # noqa: F401
except ImportError:
    raise missing_framework("torch", "torch") from None

from deq_init.torch.initializers import goe_, orthogonal_, random_, rescale_

__all__ = ["goe_", "orthogonal_", "random_", "rescale_"]
