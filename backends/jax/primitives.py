"""The protocol in JAX's words. The draws are ``jax.random``'s own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


class Primitives:
    """JAX arrays."""

    def transpose(self, x: jax.Array) -> jax.Array:
        """Transpose."""
        return x.T

    def tril(self, x: jax.Array, k: int = 0) -> jax.Array:
        """Lower triangle."""
        return jnp.tril(x, k)

    def triu(self, x: jax.Array, k: int = 0) -> jax.Array:
        """Upper triangle."""
        return jnp.triu(x, k)

    def diagonal(self, x: jax.Array) -> jax.Array:
        """Main diagonal."""
        return jnp.diagonal(x)

    def eye_like(self, x: jax.Array, rows: int, columns: int) -> jax.Array:
        """Ones on the diagonal."""
        return jnp.eye(rows, columns, dtype=x.dtype)

    def sqrt(self, x: jax.Array) -> jax.Array:
        """Square root."""
        return jnp.sqrt(x)

    def where(self, condition: jax.Array, x: Any, y: Any) -> jax.Array:
        """Choice by entry."""
        return jnp.where(condition, x, y)

    def column_sums(self, x: jax.Array) -> jax.Array:
        """Sum over the rows."""
        return jnp.sum(x, axis=0)

    def concatenate(self, arrays: Sequence[jax.Array], axis: int) -> jax.Array:
        """Arrays joined."""
        return jnp.concatenate(arrays, axis)

    def solve_upper(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Triangular solve."""
        return jax.scipy.linalg.solve_triangular(a, b)

    def spectral_norm(self, w: jax.Array, symmetric: bool) -> jax.Array:
        """Largest singular value, by the full decomposition."""
        if symmetric:
            return self.spectral_radius(w, symmetric)
        return jnp.linalg.svd(w, compute_uv=False)[0]

    def spectral_radius(self, w: jax.Array, symmetric: bool) -> jax.Array:
        """Largest modulus of an eigenvalue, by the full decomposition."""
        solve = jnp.linalg.eigvalsh if symmetric else jnp.linalg.eigvals
        return jnp.abs(solve(w)).max()


xp = Primitives()
