"""A function and its derivatives compiled, for iterations that run in NumPy around them.

Measurements that depend on values are not traced as a whole: their many small operations would take
seconds to compile for a computation of milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from deq_init.errors import FunctionError

Product = Callable[[Any], Any]


class Compiled:
    """f(values, z) between NumPy arrays of shape (batch, n), compiled once for all values."""

    def __init__(self, f: Callable[[Any, Any], Any]) -> None:
        self._evaluate = jax.jit(f)
        self._linearize = jax.jit(lambda values, z: linearized(lambda z: f(values, z), z))
        self._pull = jax.jit(lambda values, z: jax.vjp(lambda z: f(values, z), z)[1])

    def __call__(self, values: Any, z: Any) -> Any:
        """Return f(values, z)."""
        return np.asarray(self._evaluate(values, z))

    def products(self, values: Any, z: Any) -> tuple[Product, Product]:
        """Return products with the Jacobian of f in z and with its transpose."""
        forward, reverse = _apply, _apply_transpose
        with jax.default_matmul_precision("highest"):
            linear = self._linearize(values, z)
            if linear is None:
                linear = self._pull(values, z)
                forward, reverse = _apply_pull_transpose, _apply_pull

        def jvp(x: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return np.asarray(forward(linear, x))

        def vjp(x: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return np.asarray(reverse(linear, x))

        return jvp, vjp


def linearized(f: Product, z: Any) -> Product | None:
    """Return products with the Jacobian of f at z, or None if f has a ``jax.custom_vjp``.

    Such an f has no forward mode, which JAX says only when it compiles the products.
    """
    linear: Product = jax.linearize(f, z)[1]
    return None if "custom_lin" in str(jax.make_jaxpr(linear)(z)) else linear


def apply_transpose(pull: Callable[[Any], Any], x: Any) -> Any:
    """Return J x, as the transpose of u -> Jᵀu.

    Raises
    ------
    FunctionError
        If JAX cannot transpose an operation of f's backward pass.
    """
    try:
        return jax.linear_transpose(lambda u: pull(u)[0], x)(x)[0]
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise FunctionError(
            "expected f to be differentiable in forward mode, or its backward pass to be a linear "
            "function that JAX can transpose, received a jax.custom_vjp whose backward pass is "
            f"none ({error}). Write the function with jax.custom_jvp, or measure one that "
            "computes the same without it."
        ) from error


# Linearized functions are pytrees: those of one f compile once, whatever is in them.
@jax.jit
def _apply(linear: Any, x: Any) -> Any:
    return linear(x)


@jax.jit
def _apply_transpose(linear: Any, x: Any) -> Any:
    return jax.linear_transpose(linear, x)(x)[0]


@jax.jit
def _apply_pull(pull: Any, x: Any) -> Any:
    return pull(x)[0]


_apply_pull_transpose = jax.jit(apply_transpose)
