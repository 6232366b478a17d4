"""Fill a tensor as a plan says: whole, sharded, or inside a compiled function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from deq_init import draws, regions, scale
from deq_init import plan as plans
from deq_init.errors import DTypeError, SeedError, WeightError
from deq_init.torch import primitives

_NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}

_PLAIN = (Tensor, torch.nn.Parameter)


@torch.no_grad()
def fill(
    family: str,
    w: Tensor,
    target: scale.Scale,
    blocks: int | tuple[int, int] | None,
    determinant: int | None,
    seed: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Check a request, fill the tensor and return it: see :func:`deq_init.torch.random_`."""
    require_writable(w)
    plans.compute_dtype(dtype_name(w))
    # Dynamo warns of a cache when it traces one.
    plan_for = plans.uncached_plan if torch.compiler.is_compiling() else plans.plan
    plan = plan_for(family, tuple(w.shape), "out_in", target, blocks, determinant)
    key = require_key(seed, generator)
    if not torch.compiler.is_compiling():
        write(plan, w, key, generator)
    elif generator is not None or is_sharded(w):
        _disabled(write)(plan, w, key, generator)
    else:
        _fill_compiled(
            w,
            plan.family.name,
            target.kind,
            target.value,
            plan.blocks,
            plan.axis,
            determinant,
            None if key is None else list(key),
        )
    return w


@torch.no_grad()
def rescale(w: Tensor, target: scale.Scale) -> Tensor:
    """Check a request, rescale the tensor and return it: see :func:`deq_init.torch.rescale_`."""
    require_writable(w)
    plans.compute_dtype(dtype_name(w))
    scale.require_square(target.kind, *plans.matrix_shape(w.shape, "out_in"))
    if not torch.compiler.is_compiling():
        multiply(w, target)
    elif is_sharded(w):
        _disabled(multiply)(w, target)
    else:
        _rescale_compiled(w, target.kind, target.value)
    return w


def write(
    plan: plans.Plan, w: Tensor, key: draws.Key | None, generator: torch.Generator | None
) -> None:
    """Fill a tensor that has been checked, under ``no_grad``."""
    if has_no_data(w):
        return
    parts = None
    own = w
    if is_sharded(w):
        from deq_init.torch import sharding

        parts = sharding.parts(w)
        if key is None:
            key = sharding.agreed_key(w, generator)
        own = sharding.local(w)
        if own.numel() == 0:
            return
    compute = plans.compute_dtype(dtype_name(w))
    plan = plan.for_dtype(dtype_name(w))
    size = (plan.rows, plan.columns)

    def normals(block: int | None) -> Any:
        return primitives.normals(key, generator, size, compute, own.device, block)

    def sample() -> Tensor:
        xp = primitives.Primitives(own.device)
        if parts is None:
            return plan.sample(xp, normals)
        return regions.sample(plan, xp, normals, parts)

    if torch.is_autocast_enabled(own.device.type):
        with torch.autocast(own.device.type, enabled=False):
            own.copy_(sample())
    else:
        own.copy_(sample())


@torch.no_grad()
def multiply(w: Tensor, target: scale.Scale) -> None:
    """Rescale a tensor that has been checked."""
    if w.numel() == 0 or has_no_data(w):
        return
    full = own = w
    if is_sharded(w):
        from deq_init.torch import sharding

        full, own = sharding.full(w), sharding.local(w)
    compute = getattr(torch, plans.compute_dtype(dtype_name(w)))
    matrix = full.detach().to(compute).reshape(plans.matrix_shape(w.shape, "out_in"))
    measured = math.nan  # LAPACK does not return on every matrix that is not finite
    if matrix.isfinite().all():
        measured = float(scale.measure(primitives.Primitives(matrix.device), matrix, target.kind))
    own.copy_(own.to(compute) * scale.factor(target, measured))


def _disabled(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function as one that breaks the graph and runs uncompiled."""
    return torch.compiler.disable(torch.no_grad()(function))  # type: ignore[no-untyped-call]


@torch.library.custom_op(
    "deq_init::fill_",
    mutates_args=("w",),
    schema="(Tensor(a0!) w, str family, str kind, float value, SymInt? blocks, SymInt axis, "
    "SymInt? determinant, SymInt[]? key) -> ()",
)
def _fill_compiled(
    w: Tensor,
    family: str,
    kind: scale.Kind,
    value: float,
    blocks: int | None,
    axis: int,
    determinant: int | None,
    key: list[int] | None,
) -> None:
    """Fill a tensor as one opaque step: traced, the integer arithmetic of the draws explodes."""
    target = scale.Scale(kind, value)
    along = None if blocks is None else (blocks, axis)
    plan = plans.plan(family, w.shape, "out_in", target, along, determinant)
    with torch.no_grad():
        write(plan, w, None if key is None else (key[0], key[1]), None)


@torch.library.custom_op(
    "deq_init::rescale_",
    mutates_args=("w",),
    schema="(Tensor(a0!) w, str kind, float value) -> ()",
)
def _rescale_compiled(w: Tensor, kind: scale.Kind, value: float) -> None:
    """Rescale a tensor as one opaque step: whether it can be depends on its entries."""
    multiply(w, scale.Scale(kind, value))


def require_key(seed: Any, generator: Any) -> draws.Key | None:
    """Return the key of a seed, or None for PyTorch's own random numbers.

    Raises
    ------
    SeedError
        If there is a generator as well, or the seed is no integer in [0, 2**64).
    """
    if seed is None:
        return None
    if generator is not None:
        raise SeedError(
            f"expected a seed or a generator, received both: seed={seed!r} and {generator!r}. "
            "Pass the seed for the same matrix in every backend, or the generator for PyTorch's "
            "own random numbers."
        )
    return draws.key_from_seed(seed)


def require_writable(w: Any) -> None:
    """Check that the argument is a tensor, and one whose entries are its own.

    Raises
    ------
    DTypeError
        If it is no tensor.
    WeightError
        If it is computed from others, as a parametrized weight is: what is written to it is lost.
    """
    if not isinstance(w, Tensor):
        raise DTypeError(
            f"expected a torch.Tensor, received {type(w).__name__}. "
            "Pass the weight itself, e.g. layer.weight."
        )
    if torch.compiler.is_compiling():
        return
    # A view of a parameter has a grad_fn too, and writes to the parameter.
    root = w._base if w._is_view() and w._base is not None else w
    if root.grad_fn is not None:
        raise WeightError(
            "expected a weight that holds its own entries, received one computed from others "
            f"(grad_fn={root.grad_fn.name()}), e.g. parametrized: what is written to it is lost. "
            "Initialize the whole module with deq_init.torch.initialize_, or fill a new tensor "
            "and assign it: module.weight = random_(torch.empty_like(module.weight))."
        )
    if is_sharded(w):
        from deq_init.torch import sharding

        sharding.require_supported(w)


def has_no_data(w: Tensor) -> bool:
    """Return whether a tensor is on the meta device, or a fake one: there is nothing to fill."""
    return w.is_meta or isinstance(w, FakeTensor)


def is_sharded(w: Tensor) -> bool:
    """Return whether a tensor is a DTensor, without importing their module."""
    return type(w) not in _PLAIN and hasattr(w, "device_mesh") and hasattr(w, "placements")


def dtype_name(w: Tensor) -> str:
    """Return the name of a tensor's dtype."""
    return _NAMES.get(w.dtype) or str(w.dtype).removeprefix("torch.")
