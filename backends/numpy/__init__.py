"""The families in NumPy, and the reference for the other backends.

Arrays have the layout (out, in) and act as ``W @ z``.
"""

from deq_init.numpy.initializers import antisymmetric, goe, orthogonal, random, rescale

__all__ = ["antisymmetric", "goe", "orthogonal", "random", "rescale"]
