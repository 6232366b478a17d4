"""PyTorch's idiom: in place, under ``no_grad``, the tensor returned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deq_init import draws, scale
from deq_init import plan as plans
from deq_init.errors import DTypeError, SeedError
from deq_init.torch import primitives

_NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


def random_(
    w: Tensor,
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill the tensor with i.i.d. normal entries of variance gain²/fan_in.

    Parameters
    ----------
    w : Tensor, shape (out, in, ...)
        float16, bfloat16, float32 or float64, on any device; axes after the first are flattened
        to columns. A meta tensor is left alone, as in ``torch.nn.init``.
    gain : float, default 1.0
        Square root of the paper's V.
    spectral_norm, spectral_radius : float, optional
        Instead of gain: largest singular value, or largest modulus of an eigenvalue, that the
        sampled matrix shall have (relative error 1e-5 in float32).
    blocks : int or (int, int), optional
        Make the tensor of so many independent blocks along its first axis (fused QKV:
        ``blocks=3``), or (how many, along which axis). Each block has the scale.
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

    See Also
    --------
    deq_init.families : the laws and their edges.

    Examples
    --------
    >>> w = random_(torch.empty(512, 512), gain=0.5, seed=0)
    >>> abs(w.std().item() * 512**0.5 - 0.5) < 0.005
    True
    """
    target = scale.resolve(gain, spectral_norm, spectral_radius)
    return _fill("random", w, target, blocks, None, seed, generator)


def orthogonal_(
    w: Tensor,
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
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
    return _fill("orthogonal", w, target, blocks, determinant, seed, generator)


def goe_(
    w: Tensor,
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
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
    return _fill("goe", w, target, blocks, None, seed, generator)


def antisymmetric_(
    w: Tensor,
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
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
    return _fill("antisymmetric", w, target, blocks, None, seed, generator)


@torch.no_grad()
def rescale_(
    w: Tensor,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
) -> Tensor:
    """Multiply the tensor by the one factor that gives it this spectral norm or radius.

    Parameters
    ----------
    w : Tensor, shape (out, in, ...)
        A weight of one of the four floating dtypes.
    spectral_norm, spectral_radius : float
        The target, one of the two.

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
    compute = getattr(torch, plans.compute_dtype(_dtype_name(w)))
    rows, columns = plans.matrix_shape(w.shape, "out_in")
    scale.require_square(target.kind, rows, columns)
    if w.is_meta or w.numel() == 0:
        return w
    matrix = w.detach().to(compute).reshape(rows, columns)
    measured = math.nan  # LAPACK does not return on every matrix that is not finite
    if matrix.isfinite().all():
        measured = float(scale.measure(primitives.Primitives(w.device), matrix, target.kind))
    return w.copy_((matrix * scale.factor(target, measured)).reshape(w.shape))


@torch.no_grad()
def _fill(
    family: str,
    w: Tensor,
    target: scale.Scale,
    blocks: int | tuple[int, int] | None,
    determinant: int | None,
    seed: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    compute = plans.compute_dtype(_dtype_name(w))
    plan = plans.plan(family, w.shape, "out_in", target, blocks, determinant)
    if seed is not None and generator is not None:
        raise SeedError(
            f"expected a seed or a generator, received both: seed={seed!r} and {generator!r}. "
            "Pass the seed for the same matrix in every backend, or the generator for PyTorch's "
            "own random numbers."
        )
    key = None if seed is None else draws.key_from_seed(seed)
    if w.is_meta:
        return w
    if torch.is_autocast_enabled(w.device.type):
        with torch.autocast(w.device.type, enabled=False):
            return w.copy_(_sample(plan, key, generator, compute, w.device))
    return w.copy_(_sample(plan, key, generator, compute, w.device))


def _sample(
    plan: plans.Plan,
    key: draws.Key | None,
    generator: torch.Generator | None,
    dtype: str,
    device: torch.device,
) -> Tensor:
    size = (plan.rows, plan.columns)
    return plan.sample(
        primitives.Primitives(device),
        lambda block: primitives.normals(key, generator, size, dtype, device, block),
    )


def _dtype_name(w: Tensor) -> str:
    if not isinstance(w, Tensor):
        raise DTypeError(
            f"expected a torch.Tensor, received {type(w).__name__}. "
            "Pass the weight itself, e.g. layer.weight."
        )
    return _NAMES.get(w.dtype) or str(w.dtype).removeprefix("torch.")
