"""The families as Keras 3 initializers, on the TensorFlow, JAX and PyTorch backends.

Kernels have the layout (..., in, out), as in ``keras.layers.Dense``. Importing this module makes
the strings ``"deq_random"``, ``"deq_orthogonal"``, ``"deq_goe"`` and ``"deq_antisymmetric"`` known
to Keras.
"""

from deq_init.errors import MissingFrameworkError, require

try:
    require("keras", "keras")
except ModuleNotFoundError as error:
    if isinstance(error, MissingFrameworkError) or error.name not in ("tensorflow", "jax", "torch"):
        raise
    raise MissingFrameworkError(
        f"expected {error.name}, the backend that Keras is set to, to be installed, and it is not. "
        f"Install it with: pip install 'deq-init[{error.name}]', or set the environment variable "
        "KERAS_BACKEND to one that is installed."
    ) from None

from deq_init.keras.initializers import GOE, Antisymmetric, Orthogonal, Random
from deq_init.keras.jacobian import (
    fixed_point,
    jacobian_norm,
    jacobian_spectral_radius,
    multiply,
    rescale_jacobian,
)
from deq_init.keras.looped import initial_state
from deq_init.keras.selection import initialize
from deq_init.keras.verdict import check

__all__ = [
    "GOE",
    "Antisymmetric",
    "Orthogonal",
    "Random",
    "check",
    "fixed_point",
    "initial_state",
    "initialize",
    "jacobian_norm",
    "jacobian_spectral_radius",
    "multiply",
    "rescale_jacobian",
]
