"""Weights that a module computes from others: by a parametrization, or by a hook."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_PARTS = ("_orig", "_g", "_v", "_raw", "_bar")


def parametrizations(owner: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    """Return the parametrizations of a module's weights, by the weights' names."""
    if not parametrize.is_parametrized(owner):
        return {}
    return dict(cast("nn.ModuleDict", owner.parametrizations).items())  # type: ignore[arg-type]


def value(parametrization: parametrize.ParametrizationList) -> Tensor:
    """Return a parametrized weight as it is, of a copy: reading may change the buffers."""
    return cast("Tensor", _copy(parametrization)())


def assign(parametrization: parametrize.ParametrizationList, new: Tensor) -> list[Tensor]:
    """Assign a weight through its parametrization, and return what the module then computes.

    A parametrization may have a state that is computed from the weight, as the vectors of
    ``spectral_norm`` are: reading the weight in training mode brings it up to date. Returned are
    the weights of two reads in training mode, and that in evaluation mode.
    """
    parametrization.right_inverse(new)
    modes = {module: module.training for module in parametrization.modules()}
    try:
        parametrization.train()
        result = [parametrization(), parametrization()]
        parametrization.eval()
        result.append(parametrization())
    finally:
        for module, training in modes.items():
            module.training = training
    return result


def refusal(parametrization: parametrize.ParametrizationList, new: Tensor) -> str:
    """Return why a parametrized weight does not keep this value, or "": tried on a copy."""
    names = ", ".join(type(part).__name__ for part in parametrization)
    try:
        computed = assign(_copy(parametrization), new)
    except (NotImplementedError, RuntimeError, ValueError):
        return f"its parametrization ({names}) takes no assignment"
    tolerance = 0.05 if new.dtype.itemsize < 4 else 1e-3
    error = torch.stack(
        [(kept - new).abs().max() for kept in computed if kept.numel()] or [new.sum()]
    )
    if not bool((error <= tolerance * new.abs().max() if new.numel() else error == 0).all()):
        return f"its parametrization ({names}) changes what it is assigned"
    return ""


def _copy(parametrization: parametrize.ParametrizationList) -> parametrize.ParametrizationList:
    """Return a deep copy, in which tensors that were computed with gradients are constants."""
    memo = {
        id(x): x.detach().clone()
        for module in parametrization.modules()
        for x in vars(module).values()
        if isinstance(x, Tensor) and not x.is_leaf
    }
    return copy.deepcopy(parametrization, memo)


def part_of(owner: nn.Module, name: str) -> str:
    """Return which weight is computed from this parameter and by what, or "".

    The older ``weight_norm`` and ``spectral_norm``, and pruning, compute one in a hook before each
    call, torchdeq's ``apply_norm`` when it is told to. All keep it as an attribute of the module.
    """
    for hook in owner._forward_pre_hooks.values():
        computed = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if isinstance(computed, str) and name.startswith(f"{computed}_"):
            return f"{computed} is computed from it by {type(hook).__name__}"
    for part in _PARTS:
        computed = name.removesuffix(part)
        if computed != name and isinstance(vars(owner).get(computed), Tensor):
            norm = vars(owner).get("_deq_norm")
            by = "the module" if norm is None else f"torchdeq's {type(norm).__name__}"
            return f"{computed} is computed from it by {by}"
    return ""
