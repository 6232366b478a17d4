"""The families as PyTorch initializers, in the idiom of ``torch.nn.init``.

Weights have the layout (out, in, ...), as in ``torch.nn.Linear`` and ``torch.nn.Conv2d``.
"""

from deq_init.errors import require

require("torch", "torch")

from deq_init.torch.initializers import antisymmetric_, goe_, orthogonal_, random_, rescale_  # noqa: E402
from deq_init.torch.jacobian import (  # noqa: E402
    fixed_point,
    jacobian_norm,
    jacobian_spectral_radius,
    multiply_,
    rescale_jacobian_,
)
from deq_init.torch.looped import initial_state  # noqa: E402
from deq_init.torch.modules import initialize_  # noqa: E402
from deq_init.torch.verdict import check  # noqa: E402

__all__ = [
    "antisymmetric_",
    "check",
    "fixed_point",
    "goe_",
    "initial_state",
    "initialize_",
    "jacobian_norm",
    "jacobian_spectral_radius",
    "multiply_",
    "orthogonal_",
    "random_",
    "rescale_",
    "rescale_jacobian_",
]
