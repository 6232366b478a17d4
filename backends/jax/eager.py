"""A function and its derivatives compiled, for iterations that run in NumPy around them.

Measurements that depend on values are not traced as a whole: their many small operations would take
seconds to compile for a computation of milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Product = Callable[[Any], Any]


class Compiled:
    """f(values, z) between NumPy arrays of shape (batch, n), compiled once for all values."""

    def __init__(self, f: Callable[[Any, Any], Any]) -> None:
        self._evaluate = jax.jit(f)
        self._linearize = jax.jit(lambda values, z: jax.linearize(lambda z: f(values, z), z)[1])

    def __call__(self, values: Any, z: Any) -> Any:
        """Return f(values, z)."""
        return np.asarray(self._evaluate(values, z))

    def products(self, values: Any, z: Any) -> tuple[Product, Product]:
        """Return products with the Jacobian of f in z and with its transpose."""
        with jax.default_matmul_precision("highest"):
            linear = self._linearize(values, z)

        def jvp(x: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return np.asarray(_apply(linear, x))

        def vjp(x: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return np.asarray(_apply_transpose(linear, x))

        return jvp, vjp


# Linearized functions are pytrees: those of one f compile once, whatever is in them.
@jax.jit
def _apply(linear: Any, x: Any) -> Any:
    return linear(x)


@jax.jit
def _apply_transpose(linear: Any, x: Any) -> Any:
    return jax.linear_transpose(linear, x)(x)[0]
