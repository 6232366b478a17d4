"""The protocol in the words of ``keras.ops``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deq_init import draws, families
from deq_init.numpy import primitives as numpy_primitives


class Primitives:
    """Tensors of the Keras backend in use, traced ones included."""

    def transpose(self, x: Any) -> Any:
        """Transpose."""
        return ops.transpose(x)

    def tril(self, x: Any, k: int = 0) -> Any:
        """Lower triangle."""
        return ops.tril(x, k)

    def triu(self, x: Any, k: int = 0) -> Any:
        """Upper triangle."""
        return ops.triu(x, k)

    def diagonal(self, x: Any) -> Any:
        """Main diagonal."""
        return ops.diagonal(x)

    def eye_like(self, x: Any, rows: int, columns: int) -> Any:
        """Ones on the diagonal."""
        return ops.eye(rows, columns, dtype=x.dtype)

    def sqrt(self, x: Any) -> Any:
        """Square root."""
        return ops.sqrt(x)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Choice by entry."""
        return ops.where(condition, x, y)

    def column_sums(self, x: Any) -> Any:
        """Sum over the rows."""
        return ops.sum(x, axis=0)

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Tensors joined."""
        return ops.concatenate(arrays, axis)

    def solve_upper(self, a: Any, b: Any) -> Any:
        """Triangular solve."""
        return ops.solve_triangular(a, b)

    def spectral_norm(self, w: Any, symmetric: bool) -> Any:
        """Largest singular value, by the full decomposition in float64 where there is one."""
        if symmetric:
            return self.spectral_radius(w, symmetric)
        return ops.cast(ops.max(ops.svd(_widest(w), compute_uv=False)), w.dtype)

    def spectral_radius(self, w: Any, symmetric: bool) -> Any:
        """Largest modulus of an eigenvalue, by the full decomposition in the widest dtype."""
        solve = ops.eigh if symmetric else ops.eig
        return ops.cast(ops.max(ops.abs(solve(_widest(w))[0])), w.dtype)


def _widest(w: Any) -> Any:
    """Return the matrix in float64, except on JAX, which may not have it."""
    return w if keras.backend.backend() == "jax" else ops.cast(w, "float64")


xp = Primitives()


def realize(plan: families.Plan, g: Any, value: float) -> Any:
    """Return the matrix of the normals g, as ``plan.with_value(value).realize`` does."""
    return plan.with_value(value).realize(xp, g)


if keras.backend.backend() == "jax":
    import jax

    # Operation by operation, JAX would compile each one anew for every shape.
    realize = jax.jit(realize, static_argnums=0)


def normals(seed: Any, rows: int, columns: int, dtype: str) -> Any:
    """Return standard normals of shape (rows, columns).

    Parameters
    ----------
    seed : int or keras.random.SeedGenerator
        An integer means the same normals in every backend, see :mod:`deq_init.draws`; a seed
        generator is advanced and gives the normals of ``keras.random.normal``.
    rows, columns : int
        Shape.
    dtype : {"float32", "float64"}
        Dtype.
    """
    if isinstance(seed, keras.random.SeedGenerator):
        return keras.random.normal((rows, columns), dtype=dtype, seed=seed)
    if keras.backend.backend() == "jax":
        # Raw key data, so that all 64 bits count whether or not jax_enable_x64 is set.
        data = jax.numpy.array(draws.key_from_seed(seed), jax.numpy.uint32)
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        return jax.random.normal(key, (rows, columns), dtype)
    return ops.convert_to_tensor(numpy_primitives.normals(seed, rows, columns, dtype), dtype)
