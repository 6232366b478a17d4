"""Fill a tensor as a plan says: whole, sharded, or inside a compiled function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from deq_init import axes, draws, regions, scale
from deq_init import plan as plans
from deq_init.errors import DTypeError, SeedError, WeightError
from deq_init.torch import memory, primitives

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
    named: tuple[Any, Any, Any] = (None, None, None),
) -> Tensor:
    """Check a request, fill the tensor and return it: see :func:`deq_init.torch.random_`."""
    require_writable(w)
    plans.compute_dtype(dtype_name(w))
    # Dynamo warns of a cache when it traces one.
    plan_for = plans.uncached_plan if torch.compiler.is_compiling() else plans.plan
    plan = plan_for(family, tuple(w.shape), "out_in", target, blocks, determinant, *named)
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
            *_roles(plan.view, named),
        )
    return w


@torch.no_grad()
def rescale(
    w: Tensor, target: scale.Scale, named: tuple[Any, Any, Any] = (None, None, None)
) -> Tensor:
    """Check a request, rescale the tensor and return it: see :func:`deq_init.torch.rescale_`."""
    require_writable(w)
    plans.compute_dtype(dtype_name(w))
    view = axes.view(tuple(w.shape), "out_in", *named)
    scale.require_square(target.kind, *view.matrix)
    if not torch.compiler.is_compiling():
        multiply(w, target, view)
    elif is_sharded(w):
        _disabled(multiply)(w, target, view)
    else:
        _rescale_compiled(w, target.kind, target.value, *_roles(view, named))
    return w


def _roles(view: axes.View, named: tuple[Any, Any, Any]) -> tuple[list[int] | None, ...]:
    """Return batch, input and output axes as a compiled step takes them, None if none are named."""
    if named == (None, None, None):
        return None, None, None
    return list(view.batch), list(view.inputs), list(view.outputs)


def write(
    plan: plans.Plan, w: Tensor, key: draws.Key | None, generator: torch.Generator | None
) -> None:
    """Fill a tensor that has been checked, under ``no_grad``."""
    store(w, sampled(plan, w, key, generator))


def store(w: Tensor, entries: Tensor | None) -> None:
    """Write what :func:`sampled` gave for this tensor."""
    if entries is not None:
        own_entries(w).copy_(entries)


def own_entries(w: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, as memory to write to."""
    if not is_sharded(w):
        return w
    from deq_init.torch import sharding

    return sharding.local(w)


def sampled(
    plan: plans.Plan, w: Tensor, key: draws.Key | None, generator: torch.Generator | None
) -> Tensor | None:
    """Return new entries for a tensor that has been checked: of a DTensor, those of this rank.

    They have the tensor's dtype. None stands for nothing to write. The tensor is left as it is.
    """
    plan = plan.for_dtype(dtype_name(w))
    if has_no_data(w):
        return None
    parts = None
    own = w
    if is_sharded(w):
        from deq_init.torch import sharding

        parts = sharding.parts(w)
        if key is None:
            key = sharding.agreed_key(w, generator)
        own = sharding.local(w)
        if own.numel() == 0:
            return None
    compute = plans.compute_dtype(dtype_name(w))
    size = (plan.rows, plan.columns)

    def normals(index: plans.Index) -> Any:
        return primitives.normals(key, generator, size, compute, own.device, index)

    def sample() -> Tensor:
        xp = primitives.Primitives(own.device)
        if parts is None:
            return plan.sample(xp, normals)
        return regions.sample(plan, xp, normals, parts)

    if torch.is_autocast_enabled(own.device.type):
        with torch.autocast(own.device.type, enabled=False):
            return sample().to(own.dtype)
    return sample().to(own.dtype)


@torch.no_grad()
def multiply(w: Tensor, target: scale.Scale, view: axes.View) -> None:
    """Rescale a tensor that has been checked, each matrix of it by a factor of its own."""
    if w.numel() == 0 or has_no_data(w):
        return
    full = own = w
    parts: Sequence[regions.Runs] = [[range(length)] for length in w.shape]
    if is_sharded(w):
        from deq_init.torch import sharding

        full, own, parts = sharding.full(w), sharding.local(w), sharding.parts(w)
    name = dtype_name(w)
    compute = getattr(torch, plans.compute_dtype(name))
    stack = full.detach().to(compute).permute(view.order).reshape(view.count, *view.matrix)
    xp = primitives.Primitives(stack.device)
    pairs = [scale.rescaling(xp, matrix, target, name) for matrix in stack]
    # On every rank for all of it, before anything is written.
    fits = [
        (m / unit * factor).to(w.dtype).isfinite().all()
        for m, (unit, factor) in zip(stack, pairs, strict=True)
    ]
    scale.require_finite(target, name, all(fits))
    if len(pairs) == 1:
        ((unit, factor),) = pairs
        own.copy_(own.to(compute) / unit * factor)
        return
    batch = [view.shape[axis] for axis in view.batch] + [1] * (w.ndim - len(view.batch))
    units, factors = torch.tensor(pairs, dtype=compute, device=own.device).T

    def of_own(numbers: Tensor) -> Tensor:
        numbers = numbers.reshape(batch).permute(view.inverse)
        for axis in view.batch:
            indices = torch.tensor([i for run in parts[axis] for i in run], dtype=torch.int64)
            numbers = numbers.index_select(axis, indices.to(own.device))
        return numbers

    own.copy_(own.to(compute) / of_own(units) * of_own(factors))


def _disabled(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function as one that breaks the graph and runs uncompiled."""
    return torch.compiler.disable(torch.no_grad()(function))  # type: ignore[no-untyped-call]


@torch.library.custom_op(
    "deq_init::fill_",
    mutates_args=("w",),
    schema="(Tensor(a0!) w, str family, str kind, float value, SymInt? blocks, SymInt axis, "
    "SymInt? determinant, SymInt[]? key, SymInt[]? batch_axes, SymInt[]? in_axes, "
    "SymInt[]? out_axes) -> ()",
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
    batch_axes: list[int] | None,
    in_axes: list[int] | None,
    out_axes: list[int] | None,
) -> None:
    """Fill a tensor as one opaque step: traced, the integer arithmetic of the draws explodes."""
    target = scale.Scale(kind, value)
    along = None if blocks is None else (blocks, axis)
    named = (batch_axes, in_axes, out_axes)
    plan = plans.plan(family, w.shape, "out_in", target, along, determinant, *named)
    with torch.no_grad():
        write(plan, w, None if key is None else (key[0], key[1]), None)


@torch.library.custom_op(
    "deq_init::rescale_",
    mutates_args=("w",),
    schema="(Tensor(a0!) w, str kind, float value, SymInt[]? batch_axes, SymInt[]? in_axes, "
    "SymInt[]? out_axes) -> ()",
)
def _rescale_compiled(
    w: Tensor,
    kind: scale.Kind,
    value: float,
    batch_axes: list[int] | None,
    in_axes: list[int] | None,
    out_axes: list[int] | None,
) -> None:
    """Rescale a tensor as one opaque step: whether it can be depends on its entries."""
    view = axes.view(w.shape, "out_in", batch_axes, in_axes, out_axes)
    multiply(w, scale.Scale(kind, value), view)


def require_key(seed: Any, generator: Any) -> draws.Key | None:
    """Return the key of a seed, or None for PyTorch's own random numbers.

    Raises
    ------
    SeedError
        If there is a generator as well, or one that is none, or the seed is no integer in
        [0, 2**64).
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise SeedError(
            f"expected generator as a torch.Generator, received {generator!r}. "
            "Pass torch.Generator().manual_seed(...), or an integer as seed=."
        )
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
        If it is lazy, sparse, nested, quantized or made under inference mode, or its entries share
        memory.
    """
    if not isinstance(w, Tensor):
        raise DTypeError(
            f"expected a torch.Tensor, received {type(w).__name__}. "
            "Pass the weight itself, e.g. layer.weight."
        )
    if torch.compiler.is_compiling():
        return
    if reason := memory.fault(w):
        raise WeightError(f"expected a dense weight that holds its own entries, received {reason}")
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
