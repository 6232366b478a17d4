"""Random, orthogonal and GOE initializers for deep equilibrium and other weight-tied models.

Import the adapter of the framework in use: ``deq_init.torch``, ``deq_init.jax``,
``deq_init.keras`` or ``deq_init.numpy``. This package itself imports none of the frameworks.
"""

__version__ = "0.1.0"
