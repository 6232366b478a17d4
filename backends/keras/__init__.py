"""The families as Keras 3 initializers, on the TensorFlow, JAX and PyTorch backends.

Kernels have the layout (..., in, out), as in ``keras.layers.Dense``. Importing this module makes
the strings ``"deq_random"``, ``"deq_orthogonal"`` and ``"deq_goe"`` known to Keras.
"""

from deq_init.errors import missing_framework

try:
    import keras  # noqa: F401
except ImportError as error:
    # Keras imports its backend: an installed Keras may still miss that.
    if error.name in (None, "keras"):
        raise missing_framework("keras", "keras") from None
    raise

from deq_init.keras.initializers import GOE, Orthogonal, Random

__all__ = ["GOE", "Orthogonal", "Random"]
