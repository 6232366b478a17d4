"""Initialize the weights of a whole module by name."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deq_init import plan as plans
from deq_init import scale, selection
from deq_init.errors import DeqInitError, SelectionError, ShapeError
from deq_init.selection import Request, Summary, Weight
from deq_init.torch import filling, layers


@torch.no_grad()
def initialize_(
    module: nn.Module,
    family: str,
    gain: float = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    determinant: int | None = None,
    where: selection.Where = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    verbose: bool = True,
) -> Summary:
    """Initialize the weights of a module, chosen by name, and say what was set and what was not.

    Parameters
    ----------
    module : torch.nn.Module
        Any module: also sharded ones (FSDP2, tensor parallelism), after ``to_empty``. Weights on
        the meta device are left alone, as in ``torch.nn.init``.
    family : {"random", "orthogonal", "goe", "antisymmetric"}
        What to sample.
    gain, spectral_norm, spectral_radius, blocks, determinant
        As for :func:`deq_init.torch.random_`, for every weight that is set.
    where : str, sequence of str, mapping or callable, optional
        Which weights: shell patterns that their names in ``module.named_parameters()`` are matched
        against; a mapping from patterns to options that differ for them, e.g.
        ``{"*.in_proj_weight": {"blocks": 3}, "*.weight": {"family": "goe"}}``, where the first
        match counts; or ``where(name, parameter) -> bool``. Their options may also be
        ``batch_axes``, ``in_axes`` and ``out_axes``. By default every weight that the family is
        defined for, other than embeddings, normalizations, and weights of more than two axes
        whose layer is not known.
    seed : int, optional
        An integer in [0, 2**64). Every weight has a seed of its own, made of this and its name, so
        that it is the same whatever the other weights are.
    generator : torch.Generator, optional
        Without a seed, PyTorch's own random numbers, in the order of the weights.
    verbose : bool, default True
        Whether to print the summary (in a process group, on rank 0).

    Returns
    -------
    Summary
        What was set and what was left alone, printable.

    Raises
    ------
    SelectionError, FamilyError, ShapeError, ScaleError, DTypeError, SeedError, WeightError
        Before any weight is changed.

    Notes
    -----
    A parametrized weight (``torch.nn.utils.parametrizations``) is called ``layer.weight``, and is
    assigned through its parametrization if that keeps it. Biases are left alone. Tied weights are
    set once. ``torch.compile``'s prefix ``_orig_mod.`` is left out of the names.

    Known by their layers are the axes of convolutions (each group a matrix of its own; transposed
    ones of stride 1 or of the kernel's size), ``Bilinear`` (from the outer product of its inputs),
    ``Conv1D`` of transformers, whose weights are (in, out), and its stacked experts
    ``gate_up_proj`` and ``down_proj``, a matrix each. The summary has the matrices, out x in.

    Examples
    --------
    >>> layer = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    >>> summary = initialize_(layer, "goe", spectral_norm=0.9, where="0.weight", seed=0)
    weight    shape   dtype    action  note
    0.weight  (8, 8)  float32  set     goe, spectral norm 0.9, 8 x 8
    0.bias    (8,)    float32  left    not selected
    1.weight  (8,)    float32  left    not selected
    1.bias    (8,)    float32  left    not selected
    2.weight  (3, 8)  float32  left    not selected
    2.bias    (3,)    float32  left    not selected
    1 weight set, 5 left alone
    """
    filling.require_key(seed, generator)
    targets = _targets(module)
    options = {
        "family": family,
        "gain": gain,
        "spectral_norm": spectral_norm,
        "spectral_radius": spectral_radius,
        "blocks": blocks,
        "determinant": determinant,
    }
    weights = [target.weight for target in targets]
    requests = selection.requests(weights, "out_in", where, options)
    pairs = list(zip(targets, _set_once(requests), strict=True))
    pairs = [(target, _checked(target, r, where is None)) for target, r in pairs]
    for target, request in pairs:
        if request.plan is not None:
            own = None if seed is None else selection.seed_of(seed, request.weight.name)
            target.fill(request.plan, filling.require_key(own, generator), generator)
    summary = selection.summarize([request for _, request in pairs])
    if verbose and _is_first():
        print(summary)
    return summary


@dataclass(frozen=True)
class _Target:
    """A weight, and how to set it: in place, or through its parametrization."""

    weight: Weight
    module: nn.Module
    name: str

    @property
    def parametrization(self) -> parametrize.ParametrizationList | None:
        if not parametrize.is_parametrized(self.module, self.name):
            return None
        return _parametrizations(self.module)[self.name]

    def fill(
        self,
        plan: plans.Plan,
        key: tuple[int, int] | None,
        generator: torch.Generator | None,
    ) -> None:
        tensor = self.weight.value
        if self.parametrization is None:
            filling.write(plan, tensor, key, generator)
            return
        new = torch.empty_like(tensor, requires_grad=False)
        filling.write(plan, new, key, generator)
        setattr(self.module, self.name, new)


def _targets(module: nn.Module) -> list[_Target]:
    """List a module's parameters under every name they have, each parametrized weight as one."""
    found: list[tuple[str, nn.Module, str, Tensor]] = []
    for prefix, owner in module.named_modules(remove_duplicate=False):
        path = [part for part in prefix.split(".") if part and part != "_orig_mod"]
        if "parametrizations" in path:
            continue
        _reshard(owner)
        for name, parameter in owner.named_parameters(recurse=False):
            found.append((".".join([*path, name]), owner, name, parameter))
        if parametrize.is_parametrized(owner):
            for name, parametrization in _parametrizations(owner).items():
                # A copy, since computing a weight may change the buffers that it is computed with.
                value = copy.deepcopy(parametrization)()
                found.append((".".join([*path, name]), owner, name, value))
    names = selection.distinct(full for full, *_ in found)
    found = [(full, f[1], f[2], f[3]) for full, f in zip(names, found, strict=True)]
    specials = {
        id(value): (full, reason)
        for full, owner, name, value in reversed(found)
        if (reason := _special(owner, name, value))
    }
    targets = []
    for full, owner, name, value in found:
        if nn.parameter.is_lazy(value):
            raise ShapeError(
                f"expected weights of known shapes, received the lazy parameter {full!r}. "
                "Run the module once on an example, then initialize it."
            )
        first, reason = specials.get(id(value), (full, ""))
        own = _special(owner, name, value) or (reason and f"the same tensor as {first}")
        known = layers.axes(owner, name, value)
        known, unknown = ({}, known) if isinstance(known, str) else (known, "")
        dtype, hint = filling.dtype_name(value), _hint(owner, name)
        weight = Weight(full, tuple(value.shape), dtype, value, own, hint, known, unknown)
        targets.append(_Target(weight, owner, name))
    return targets


def _reshard(owner: nn.Module) -> None:
    """Put an FSDP2 module's shards in place: after a forward pass, its parameters may be copies."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(owner, fsdp.FSDPModule):
        owner.reshard()


def _parametrizations(owner: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    return dict(cast("nn.ModuleDict", owner.parametrizations).items())  # type: ignore[arg-type]


def _special(owner: nn.Module, name: str, value: Tensor) -> str:
    """Say why a weight is left alone unless it is named, if it is."""
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if re.search(r"norm(\dd)?$", type(owner).__name__, re.IGNORECASE):
        return "normalization"
    # The older weight_norm and spectral_norm, and pruning, compute a weight before each call.
    for hook in owner._forward_pre_hooks.values():
        computed = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if isinstance(computed, str) and name.startswith(f"{computed}_"):
            return f"{computed} is computed from it by {type(hook).__name__}"
    return ""


def _hint(owner: nn.Module, name: str) -> str:
    """Say how many matrices a weight fuses, for the layers of PyTorch that fuse some."""
    count = 1
    if isinstance(owner, nn.MultiheadAttention) and name == "in_proj_weight":
        count = 3
    if isinstance(owner, (nn.RNNBase, nn.RNNCellBase)) and re.match("weight_[ih]h", name):
        kind = type(owner).__name__
        count = 4 if kind.startswith("LSTM") else 3 if kind.startswith("GRU") else 1
    return f"fuses {count} matrices: blocks={count}" if count > 1 else ""


def _set_once(requests: Sequence[Request]) -> list[Request]:
    """Return the requests with each tensor set under one of its names only."""
    chosen: dict[int, Request] = {}
    for request in requests:
        if request.plan is None:
            continue
        first = chosen.setdefault(id(request.weight.value), request)
        if first.plan != request.plan:
            raise SelectionError(
                f"expected one request for a tied weight, received two: {first.weight.name} as "
                f"{first.note}, {request.weight.name} as {request.note}. Name one of them."
            )
    result = []
    for request in requests:
        first = chosen.get(id(request.weight.value), request)
        if first is not request:
            request = replace(request, plan=None, note=f"the same tensor as {first.weight.name}")
        result.append(request)
    return result


def _checked(target: _Target, request: Request, lenient: bool) -> Request:
    """Return the request if this weight can be set, else one to leave it alone, or raise."""
    plan, value = request.plan, target.weight.value
    if plan is None:
        return request
    if filling.has_no_data(value):
        return replace(request, plan=None, note="on the meta device, nothing to set")
    if target.parametrization is None:
        try:
            filling.require_writable(value)
        except DeqInitError as error:
            raise type(error)(f"{target.weight.name}: {error}") from None
        return request
    refusal = _refusal(target.parametrization, plan, value)
    if not refusal:
        return request
    if lenient:
        return replace(request, plan=None, note=refusal)
    raise SelectionError(
        f"expected a parametrization that keeps what it is assigned, received one for "
        f"{target.weight.name}: {refusal}. Initialize the weight before it is parametrized."
    )


def _refusal(
    parametrization: parametrize.ParametrizationList, plan: plans.Plan, value: Tensor
) -> str:
    """Say why a parametrized weight does not keep what it is assigned, if so: on a copy."""
    names = ", ".join(type(part).__name__ for part in parametrization)
    trial = copy.deepcopy(parametrization)
    new = torch.empty_like(value, requires_grad=False)
    filling.write(plan, new, (0, 0), None)
    try:
        trial.right_inverse(new)
        kept = trial()
    except (NotImplementedError, RuntimeError, ValueError):
        return f"its parametrization ({names}) takes no assignment"
    tolerance = 0.05 if value.dtype.itemsize < 4 else 1e-3
    if (kept - new).abs().max() > tolerance * new.abs().max():
        return f"its parametrization ({names}) changes what it is assigned"
    return ""


def _is_first() -> bool:
    """Return whether this is the process that speaks."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
