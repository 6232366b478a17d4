"""JAX's idiom: a factory of ``init(key, shape, dtype, out_sharding)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from deq_init import axes, scale
from deq_init import plan as plans
from deq_init.jax import normals, placement, primitives
from deq_init.jax.sampling import sample


class Initializer(Protocol):
    """What the factories return: the signature of ``jax.nn.initializers.Initializer``."""

    def __call__(
        self, key: jax.Array, shape: Sequence[int], dtype: Any = ..., out_sharding: Any = None
    ) -> jax.Array:
        """Return an array of this shape and dtype."""


def random(
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    dtype: Any = None,
) -> Initializer:
    """Build an initializer of i.i.d. normal entries with variance gain²/fan_in.

    Parameters
    ----------
    gain : float, default 1.0
        Square root of the paper's V.
    spectral_norm, spectral_radius : float, optional
        Instead of gain: largest singular value, or largest modulus of an eigenvalue, that the
        sampled matrix shall have (relative error 1e-5 in float32).
    blocks : int or (int, int), optional
        Make the array of so many independent blocks along its last axis (fused QKV:
        ``blocks=3``), or (how many, along which axis). Each block has the scale.
    batch_axes : int or sequence of int, optional
        Each slice along these axes is a matrix of its own, as of experts or scanned layers, with
        the scale and the blocks.
    in_axes, out_axes : int or sequence of int, optional
        Axes that form each matrix's inputs and outputs, flattened in the order given; if only one
        of the two is given, the other is the rest. See :mod:`deq_init.axes`.
    dtype : dtype, optional
        Default dtype of the arrays: float16, bfloat16, float32 or float64; JAX's default float
        dtype if it is not given. Without ``jax_enable_x64``, float64 is float32, as everywhere in
        JAX, with its warning.

    Returns
    -------
    callable
        ``init(key, shape, dtype=..., out_sharding=None)`` for shapes (..., in, out); axes before
        the last are flattened to rows, unless they are named. It may be called under ``jit``,
        ``vmap`` and ``shard_map``; each device computes its own entries of a sharded array at a
        gain. With a Threefry key the normals are ``jax.random.normal(key, shape)``, and
        ``jax.random.key(seed)`` gives the same matrix as ``seed`` in every other backend; a key
        of another implementation gives its own normals.

    Raises
    ------
    ScaleError
        From the factory.
    ShapeError, DTypeError, SeedError, ScaleError
        From the initializer, when it is called or traced, the last for a scale beyond what the
        dtype holds. A spectral radius that fits may be that of entries that do not: that is an
        error too, but under ``jit``, where they are infinite.

    See Also
    --------
    deq_init.families : the laws and their edges.

    Examples
    --------
    >>> w = random(0.5)(jax.random.key(0), (512, 512))
    >>> bool(abs(w.std() * 512**0.5 - 0.5) < 0.005)
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return initializer("random", target, blocks, None, dtype, named)


def orthogonal(
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    determinant: int | None = None,
    dtype: Any = None,
) -> Initializer:
    """Build an initializer of gain times a Haar-distributed (semi-)orthogonal matrix.

    Parameters, returns and errors are those of :func:`random`, and

    determinant : {1, -1}, optional
        Determinant of the square matrix that the gain multiplies. For even n, an orthogonal
        matrix of determinant -1 has an eigenvalue of exactly 1: at gain 1 a linear DEQ is then
        singular.

    Examples
    --------
    >>> w = orthogonal()(jax.random.key(0), (64, 64))
    >>> bool(jnp.allclose(w @ w.T, jnp.eye(64), atol=1e-5))
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return initializer("orthogonal", target, blocks, determinant, dtype, named)


def goe(
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    dtype: Any = None,
) -> Initializer:
    """Build an initializer of GOE matrices: symmetric, variance gain²/n, diagonal 2·gain²/n.

    Spectral norm and radius are both near 2·gain. Parameters, returns and errors are those of
    :func:`random`; the shape must be square.

    Examples
    --------
    >>> w = goe(spectral_norm=0.9)(jax.random.key(0), (64, 64))
    >>> bool((w == w.T).all())
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return initializer("goe", target, blocks, None, dtype, named)


def antisymmetric(
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    dtype: Any = None,
) -> Initializer:
    """Build an initializer of antisymmetric normal matrices: W = -Wᵀ, variance gain²/n.

    The spectrum is imaginary, spectral norm and radius are both near 2·gain, and I - W is never
    singular. Parameters, returns and errors are those of :func:`random`; the shape must be square.

    Examples
    --------
    >>> w = antisymmetric(0.4)(jax.random.key(0), (64, 64))
    >>> bool((w == -w.T).all())
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return initializer("antisymmetric", target, blocks, None, dtype, named)


def rescale(
    w: jax.Array,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
) -> jax.Array:
    """Return the kernel times the one factor that gives it this spectral norm or radius.

    Parameters
    ----------
    w : Array, shape (..., in, out)
        A kernel of one of the four floating dtypes.
    spectral_norm, spectral_radius : float
        The target, one of the two.
    batch_axes, in_axes, out_axes : int or sequence of int, optional
        As for :func:`random`; each slice has a factor of its own.

    Raises
    ------
    ShapeError, ScaleError, DTypeError
        Also if the matrix has norm or radius zero, or entries that are not finite, or if its dtype
        does not hold the target or the entries of the result. Under ``jit``, where values are not
        known, such a matrix gives entries that are not finite.

    Examples
    --------
    >>> rescale(jnp.diag(jnp.array([3.0, 1.0])), spectral_norm=1.5)
    Array([[1.5, 0. ],
           [0. , 0.5]], dtype=float32)
    """
    target = scale.resolve_target(spectral_norm, spectral_radius)
    w = jnp.asarray(w)
    compute = plans.compute_dtype(w.dtype.name)
    view = axes.view(w.shape, "in_out", batch_axes, in_axes, out_axes)
    scale.require_square(target.kind, *view.matrix)
    if 0 in w.shape:
        return w
    stack = w.astype(compute).transpose(view.order)
    matrices = stack.reshape(view.count, *view.matrix)
    scaled = jnp.stack([_rescaled(matrix, target, w.dtype.name) for matrix in matrices])
    result = scaled.reshape(stack.shape).transpose(view.inverse).astype(w.dtype)
    if not isinstance(result, jax.core.Tracer):
        scale.require_finite(target, w.dtype.name, jnp.isfinite(result).all())
    return result


def _rescaled(matrix: jax.Array, target: scale.Scale, dtype: str) -> jax.Array:
    """Return one matrix with the norm or radius of the target."""
    traced = isinstance(matrix, jax.core.Tracer)
    unit, factor = scale.rescaling(primitives.xp, matrix, target, dtype, traced=traced)
    return matrix / unit * factor


def initializer(
    family: str,
    target: scale.Scale,
    blocks: int | tuple[int, int] | None,
    determinant: int | None = None,
    default_dtype: Any = None,
    named: tuple[Any, Any, Any] = (None, None, None),
) -> Initializer:
    """Return the initializer of a family at a scale: what the factories above return."""

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: Any = default_dtype,
        out_sharding: Any = None,
    ) -> jax.Array:
        normals.require_key(key)
        resolved = canonical_dtype(dtype)
        plan = plans.plan(family, shape, "in_out", target, blocks, determinant, *named)
        plan = plan.for_dtype(resolved)
        sharding = placement.canonical(out_sharding)
        w = sample(plan.with_value(1.0), resolved, sharding, key, target.value)
        if plan.may_overflow and not isinstance(w, jax.core.Tracer):
            scale.require_finite(target, resolved, jnp.isfinite(w).all())
        return w

    return init


def canonical_dtype(dtype: Any) -> str:
    """Return the name of the dtype that JAX gives an array for which this one is asked.

    As in JAX's own functions, float64 means float32, with JAX's warning, if it is not enabled; None
    is the default.

    Raises
    ------
    DTypeError
        For any but the four floating ones.
    """
    if dtype is None:
        return jnp.result_type(float).name
    try:
        given = jnp.dtype(dtype)
    except TypeError:
        plans.compute_dtype(dtype)
        raise
    plans.compute_dtype(given.name)
    resolved = jax.dtypes.canonicalize_dtype(given)
    if resolved != given:
        jnp.zeros((), dtype)  # warns, except for Python's own float
    return resolved.name
