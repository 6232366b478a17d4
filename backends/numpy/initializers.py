"""NumPy's idiom: a function from a shape to a new array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deq_init import axes, draws, scale
from deq_init import plan as plans
from deq_init.errors import DTypeError
from deq_init.numpy import primitives


def random(
    shape: Sequence[int],
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    seed: int | np.random.Generator | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Return a matrix of i.i.d. normal entries with variance gain²/fan_in.

    Parameters
    ----------
    shape : sequence of int
        (out, in, ...), at least two axes; those after the first are flattened to columns, unless
        they are named.
    gain : float, default 1.0
        Square root of the paper's V.
    spectral_norm, spectral_radius : float, optional
        Instead of gain: largest singular value, or largest modulus of an eigenvalue, that the
        sampled matrix shall have (relative error 1e-5 in float32).
    blocks : int or (int, int), optional
        Make the array of so many independent blocks along its first axis (fused QKV:
        ``blocks=3``), or (how many, along which axis). Each block has the scale.
    batch_axes : int or sequence of int, optional
        Each slice along these axes is a matrix of its own, as of experts or scanned layers, with
        the scale and the blocks.
    in_axes, out_axes : int or sequence of int, optional
        Axes that form each matrix's inputs and outputs, flattened in the order given; if only one
        of the two is given, the other is the rest. See :mod:`deq_init.axes`.
    seed : int, numpy.random.Generator or None
        An integer in [0, 2**64) gives the same matrix in every backend; a generator is advanced
        and gives its own normals; None draws fresh entropy. NumPy's global state is not touched.
    dtype : dtype
        float16, bfloat16 (with ml_dtypes), float32 or float64; None for the default. The
        half-precision ones are sampled in float32 and cast last.

    Returns
    -------
    numpy.ndarray of that shape and dtype

    Raises
    ------
    ShapeError, ScaleError, DTypeError, SeedError
        Before anything is drawn.

    See Also
    --------
    deq_init.families : the laws and their edges.

    Examples
    --------
    >>> w = random((512, 512), gain=0.5, seed=0)
    >>> bool(abs(w.std() * 512**0.5 - 0.5) < 0.005)
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return _sample("random", shape, target, blocks, None, seed, dtype, named)


def orthogonal(
    shape: Sequence[int],
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    determinant: int | None = None,
    seed: int | np.random.Generator | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Return gain times a Haar-distributed orthogonal, or semi-orthogonal, matrix.

    Parameters, returns and errors are those of :func:`random`, and

    determinant : {1, -1}, optional
        Determinant of the square matrix that the gain multiplies. For even n, an orthogonal
        matrix of determinant -1 has an eigenvalue of exactly 1: at gain 1 a linear DEQ is then
        singular.

    Examples
    --------
    >>> w = orthogonal((64, 64), seed=0)
    >>> bool(abs(w.T @ w - np.eye(64)).max() < 1e-5)
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return _sample("orthogonal", shape, target, blocks, determinant, seed, dtype, named)


def goe(
    shape: Sequence[int],
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    seed: int | np.random.Generator | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Return a symmetric normal matrix: variance gain²/n, and 2·gain²/n on the diagonal.

    Spectral norm and radius are both near 2·gain. Parameters, returns and errors are those of
    :func:`random`; the matrix must be square.

    Examples
    --------
    >>> w = goe((64, 64), spectral_norm=0.9, seed=0)
    >>> bool((w == w.T).all())
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return _sample("goe", shape, target, blocks, None, seed, dtype, named)


def antisymmetric(
    shape: Sequence[int],
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    seed: int | np.random.Generator | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Return an antisymmetric normal matrix: W = -Wᵀ, variance gain²/n off the diagonal.

    The spectrum is imaginary, spectral norm and radius are both near 2·gain, and I - W is never
    singular. Parameters, returns and errors are those of :func:`random`; the matrix must be square.

    Examples
    --------
    >>> w = antisymmetric((64, 64), gain=0.4, seed=0)
    >>> bool((w == -w.T).all())
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return _sample("antisymmetric", shape, target, blocks, None, seed, dtype, named)


def rescale(
    w: NDArray[Any],
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
) -> NDArray[Any]:
    """Return the matrix times the one factor that gives it this spectral norm or radius.

    Parameters
    ----------
    w : array, shape (out, in, ...)
        A matrix of one of the four floating dtypes; it is not changed.
    spectral_norm, spectral_radius : float
        The target, one of the two.
    batch_axes, in_axes, out_axes : int or sequence of int, optional
        As for :func:`random`; each slice has a factor of its own.

    Raises
    ------
    ShapeError, ScaleError, DTypeError
        Also if the matrix has norm or radius zero, or entries that are not finite, or if its dtype
        does not hold the target or the entries of the result.

    Examples
    --------
    >>> rescale(np.diag([3.0, 1.0]), spectral_norm=0.9).round(12)
    array([[0.9, 0. ],
           [0. , 0.3]])
    """
    target = scale.resolve_target(spectral_norm, spectral_radius)
    if isinstance(w, np.ma.MaskedArray):
        raise DTypeError(
            "expected an array, received a masked one, whose mask a matrix cannot keep. "
            "Pass w.filled(0), or what its masked entries should be."
        )
    w = np.asarray(w)
    compute = plans.compute_dtype(w.dtype.name)
    view = axes.view(w.shape, "out_in", batch_axes, in_axes, out_axes)
    scale.require_square(target.kind, *view.matrix)
    if 0 in w.shape:
        return w.copy()
    stack = w.astype(compute).transpose(view.order)
    matrices = stack.reshape(view.count, *view.matrix)
    with np.errstate(over="ignore"):  # it is an error
        scaled = np.stack([_rescaled(matrix, target, w.dtype.name) for matrix in matrices])
        result = scaled.reshape(stack.shape).transpose(view.inverse).astype(w.dtype, order="C")
    scale.require_finite(target, w.dtype.name, primitives.xp.is_finite(result))
    return result


def _rescaled(matrix: NDArray[Any], target: scale.Scale, dtype: str) -> NDArray[Any]:
    """Return one matrix with the norm or radius of the target."""
    unit, factor = scale.rescaling(primitives.xp, matrix, target, dtype)
    return matrix / unit * factor


def _sample(
    family: str,
    shape: Sequence[int],
    target: scale.Scale,
    blocks: int | tuple[int, int] | None,
    determinant: int | None,
    seed: int | np.random.Generator | None,
    dtype: DTypeLike,
    named: tuple[Any, Any, Any],
) -> NDArray[Any]:
    resolved = primitives.resolve_dtype(np.float32 if dtype is None else dtype)
    plan = plans.plan(family, shape, "out_in", target, blocks, determinant, *named)
    plan = plan.for_dtype(resolved.name)
    compute = plans.compute_dtype(resolved.name)
    source = seed if isinstance(seed, np.random.Generator) else draws.key_from_seed(seed)
    size = (plan.rows, plan.columns)
    with np.errstate(over="ignore", invalid="ignore"):  # it is an error
        w = plan.sample(
            primitives.xp, lambda index: primitives.normals(source, size, compute, index)
        )
    return w.astype(resolved, order="K" if plan.view.ordered else "C", copy=False)
