"""PyTorch's idiom: in place, under ``no_grad``, the tensor returned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deq_init import scale
from deq_init.torch import filling


def random_(
    w: Tensor,
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill the tensor with i.i.d. normal entries of variance gain²/fan_in.

    Parameters
    ----------
    w : Tensor, shape (out, in, ...)
        float16, bfloat16, float32 or float64, on any device, of any strides; axes after the first
        are flattened to columns, unless they are named. May be a DTensor. A meta tensor is left
        alone, as in ``torch.nn.init``.
    gain : float, default 1.0
        Square root of the paper's V.
    spectral_norm, spectral_radius : float, optional
        Instead of gain: largest singular value, or largest modulus of an eigenvalue, that the
        sampled matrix shall have (relative error 1e-5 in float32).
    blocks : int or (int, int), optional
        Make the tensor of so many independent blocks along its first axis (fused QKV:
        ``blocks=3``), or (how many, along which axis). Each block has the scale.
    batch_axes : int or sequence of int, optional
        Each slice along these axes is a matrix of its own, as of experts or scanned layers, with
        the scale and the blocks.
    in_axes, out_axes : int or sequence of int, optional
        Axes that form each matrix's inputs and outputs, flattened in the order given; if only one
        of the two is given, the other is the rest. See :mod:`deq_init.axes`.
    seed : int, optional
        An integer in [0, 2**64): the same matrix as in every other backend.
    generator : torch.Generator, optional
        Without a seed, PyTorch's own random numbers: this generator's, or the global one's, which
        ``torch.manual_seed`` sets.

    Returns
    -------
    Tensor
        ``w`` itself.

    Raises
    ------
    ShapeError, ScaleError, DTypeError, SeedError
        The tensor is then as it was.
    WeightError
        For a weight that is computed from others, as a parametrized one is; for a lazy, sparse,
        nested, quantized or inference tensor, or one whose entries share memory; and for a DTensor
        that is partial or a copy of shards. A computed weight is told by its ``grad_fn``: one that
        was read under ``no_grad``, or that a hook of ``torch.nn.utils.spectral_norm`` or torchdeq's
        ``apply_norm`` keeps as a plain tensor, looks like any other, and what is written to it is
        lost. :func:`initialize_` recognizes these.

    See Also
    --------
    deq_init.families : the laws and their edges.
    initialize_ : all weights of a module.

    Notes
    -----
    *DTensor.* With a seed, each rank fills its shard with its part of the matrix that the unsharded
    call gives. At a gain, random, GOE and antisymmetric ones take no communication and no memory
    beyond the shard. Orthogonal ones, and a spectral norm or radius, are computed in full on every
    rank, which needs memory for the whole matrix (of each block that the shard meets). Without a
    seed, all ranks of the mesh have to call: its first rank draws one and broadcasts it.

    *Convolutions.* The weight (out, in/groups, ...) is a matrix of out rows and
    in/groups · receptive field columns. Only ``blocks=groups`` makes the matrix of each group one
    of its own; that of a depthwise kernel has as many columns as the kernel has entries. A
    transposed convolution's weight (in, out/groups, ...) needs its axes named: ``out_axes=1`` at
    stride 1; ``in_axes=0`` if the stride is the kernel's size.

    *torch.compile* takes the call as one step, with ``fullgraph`` too, other than for a generator
    or a DTensor.

    Examples
    --------
    >>> w = random_(torch.empty(512, 512), gain=0.5, seed=0)
    >>> abs(w.std().item() * 512**0.5 - 0.5) < 0.005
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return filling.fill("random", w, target, blocks, None, seed, generator, named)


def orthogonal_(
    w: Tensor,
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    determinant: int | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill the tensor with gain times a Haar-distributed (semi-)orthogonal matrix.

    Parameters, returns and errors are those of :func:`random_`, and

    determinant : {1, -1}, optional
        Determinant of the square matrix that the gain multiplies. For even n, an orthogonal
        matrix of determinant -1 has an eigenvalue of exactly 1: at gain 1 a linear DEQ is then
        singular.

    Examples
    --------
    >>> w = orthogonal_(torch.empty(64, 64), seed=0)
    >>> torch.allclose(w @ w.T, torch.eye(64), atol=1e-5)
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return filling.fill("orthogonal", w, target, blocks, determinant, seed, generator, named)


def goe_(
    w: Tensor,
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill the square tensor with a GOE matrix: symmetric, variance gain²/n, diagonal 2·gain²/n.

    Spectral norm and radius are both near 2·gain. Parameters, returns and errors are those of
    :func:`random_`.

    Examples
    --------
    >>> w = goe_(torch.empty(64, 64), spectral_norm=0.9, seed=0)
    >>> torch.equal(w, w.T)
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return filling.fill("goe", w, target, blocks, None, seed, generator, named)


def antisymmetric_(
    w: Tensor,
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill the square tensor with an antisymmetric normal matrix: W = -Wᵀ, variance gain²/n.

    The spectrum is imaginary, spectral norm and radius are both near 2·gain, and I - W is never
    singular. Parameters, returns and errors are those of :func:`random_`.

    Examples
    --------
    >>> w = antisymmetric_(torch.empty(64, 64), gain=0.4, seed=0)
    >>> torch.equal(w, -w.T)
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    named = (batch_axes, in_axes, out_axes)
    return filling.fill("antisymmetric", w, target, blocks, None, seed, generator, named)


def rescale_(
    w: Tensor,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    batch_axes: int | Sequence[int] | None = None,
    in_axes: int | Sequence[int] | None = None,
    out_axes: int | Sequence[int] | None = None,
) -> Tensor:
    """Multiply the tensor by the one factor that gives it this spectral norm or radius.

    Parameters
    ----------
    w : Tensor, shape (out, in, ...)
        A weight of one of the four floating dtypes.
    spectral_norm, spectral_radius : float
        The target, one of the two.
    batch_axes, in_axes, out_axes : int or sequence of int, optional
        As for :func:`random_`; each slice has a factor of its own.

    Returns
    -------
    Tensor
        ``w`` itself.

    Raises
    ------
    ShapeError, ScaleError, DTypeError
        Also if the matrix has norm or radius zero, or entries that are not finite. The tensor is
        then as it was.

    Examples
    --------
    >>> rescale_(torch.diag(torch.tensor([3.0, 1.0])), spectral_norm=0.9)
    tensor([[0.9000, 0.0000],
            [0.0000, 0.3000]])
    """
    target = scale.resolve_target(spectral_norm, spectral_radius)
    return filling.rescale(w, target, (batch_axes, in_axes, out_axes))
