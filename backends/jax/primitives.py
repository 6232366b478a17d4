"""The protocol in JAX's words. The draws are ``jax.random``'s own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from deq_init import spectra
from deq_init.jax import iteration
from deq_init.jax.lapack import normalized, one_by_one


class Primitives:
    """JAX arrays."""

    mutable = False
    lapack_up_to = 1024  # the core's own takes as long to compile as to run there

    def reshape(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Another shape."""
        return x.reshape(shape)

    def transpose(self, x: jax.Array, axes: tuple[int, ...] | None = None) -> jax.Array:
        """Transpose."""
        return x.transpose(axes)

    def tril(self, x: jax.Array) -> jax.Array:
        """Lower triangle."""
        return jnp.tril(x)

    def triu(self, x: jax.Array, k: int = 0) -> jax.Array:
        """Upper triangle."""
        return jnp.triu(x, k)

    def diagonal(self, x: jax.Array) -> jax.Array:
        """Main diagonal."""
        return jnp.diagonal(x)

    def eye_like(self, x: jax.Array, rows: int, columns: int) -> jax.Array:
        """Ones on the diagonal."""
        return jnp.eye(rows, columns, dtype=x.dtype)

    def add_diagonal(self, x: jax.Array, d: Any) -> jax.Array:
        """A new array with d added to the diagonal."""
        return x + self.eye_like(x, x.shape[0], x.shape[1]) * d

    def householder_product(self, v: jax.Array, tau: jax.Array) -> jax.Array:
        """LAPACK's orgqr, or its like on other devices."""
        return _householder_product(v, tau)

    def sign(self, x: jax.Array) -> jax.Array:
        """Sign, entry by entry."""
        return jnp.sign(x)

    def copysign(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Lengths with the signs of y."""
        return jnp.copysign(x, y)

    def column_lengths(self, x: jax.Array) -> jax.Array:
        """Euclidean length of each column."""
        return _column_lengths(x)

    def product(self, x: jax.Array) -> jax.Array:
        """Product of the entries."""
        return jnp.prod(x)

    def concatenate(self, arrays: Sequence[jax.Array], axis: int) -> jax.Array:
        """Arrays joined."""
        return jnp.concatenate(arrays, axis)

    def solve_upper(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Triangular solve."""
        return _solve_triangular(a, b)

    def rounded(self, x: jax.Array, dtype: str) -> jax.Array:
        """Values of a half-precision dtype."""
        return x.astype(dtype).astype(x.dtype)

    def normalized(self, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The matrix over a power of two, and that."""
        return normalized(w)

    def symmetric_norm(self, w: jax.Array) -> jax.Array:
        """Largest modulus of an eigenvalue of a symmetric matrix."""
        return _norm(w, True, _symmetric_norm)

    def spectral_norm(self, w: jax.Array) -> jax.Array:
        """Largest singular value."""
        return _norm(w, False, _spectral_norm)

    def spectral_radius(self, w: jax.Array) -> jax.Array:
        """Largest modulus of an eigenvalue."""
        if len(w) < spectra.RADIUS_WORTHWHILE_COMPILED:
            return _largest_eigenvalue(w)
        with jax.default_matmul_precision("highest"):
            estimate = spectra.matrix_radius(iteration.xp, w, _start(w), compiled=True)
        return _value_or(estimate, _largest_eigenvalue, w)


xp = Primitives()


def _column_lengths(x: jax.Array) -> jax.Array:
    """Return column lengths, summed by 32 and then over these: float64 may not be there."""
    squares = jnp.pad(x * x, ((0, -x.shape[0] % 32), (0, 0)))
    return jnp.sqrt(squares.reshape(-1, 32, x.shape[1]).sum(axis=1).sum(axis=0))


def _norm(w: jax.Array, symmetric: bool, exact: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Return the norm: by decomposition if the matrix is small, or Lanczos does not converge."""
    if min(w.shape) < spectra.WORTHWHILE:
        return exact(w)
    with jax.default_matmul_precision("highest"):
        estimate = spectra.matrix_norm(iteration.xp, w, _start(w), symmetric=symmetric)
    return _value_or(estimate, exact, w)


_householder_product = one_by_one(lambda v, tau: jax.lax.linalg.householder_product(v, tau))
_solve_triangular = one_by_one(lambda a, b: jax.scipy.linalg.solve_triangular(a, b))
_symmetric_norm = one_by_one(lambda w: jnp.abs(jnp.linalg.eigvalsh(w)).max())
_spectral_norm = one_by_one(lambda w: jnp.linalg.svd(w, compute_uv=False).max())
_largest_eigenvalue = one_by_one(lambda w: jnp.abs(jnp.linalg.eigvals(w)).max())


def _start(w: jax.Array) -> jax.Array:
    """Return a row of normals, always the same."""
    return jax.random.normal(jax.random.key(0), (1, w.shape[1]), w.dtype)


def _value_or(
    estimate: spectra.Estimate, exact: Callable[[jax.Array], jax.Array], w: jax.Array
) -> jax.Array:
    """Return the estimate if it converged, else the exact value."""
    return jax.lax.cond(estimate.converged[0], lambda w: estimate.value[0], exact, w)
