"""Initialize the weights of a whole module by name."""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deq_init import plan as plans
from deq_init import scale, selection
from deq_init.errors import DeqInitError, SelectionError, WeightError
from deq_init.selection import Request, Summary, Weight
from deq_init.torch import computed, filling, layers, memory


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
        defined for, other than embeddings, normalizations, frozen weights (``requires_grad`` is
        False), low-rank adapters, and weights of more than two axes whose layer is not known.
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
        Before any weight is changed. A WeightError names all weights that cannot be written to:
        lazy, sparse, nested, quantized or inference tensors, tensors whose entries share memory,
        and parts from which a hook computes a weight.

    Notes
    -----
    *All or nothing.* All matrices are sampled before the first is written, which takes memory for
    them beside the model's. Whatever fails or is interrupted until then changes nothing. Writing
    them takes a copy each: a process that is interrupted there has some weights set, each whole.

    A parametrized weight (``torch.nn.utils.parametrizations``) is called ``layer.weight``, and is
    assigned through its parametrization if that keeps it, in training and in evaluation mode; the
    parametrization's state, as the vectors of ``spectral_norm``, is brought up to date. Weights
    that a hook computes from parameters, as ``torch.nn.utils.spectral_norm`` and torchdeq's
    ``apply_norm`` do, cannot be set: initialize the layer before the hook is added.

    Biases are left alone. Tied weights are set once, also as different parameters of one memory.
    ``torch.compile``'s prefix ``_orig_mod.`` is left out of the names.

    After ``to_empty``, what is left alone is uninitialized memory, buffers included: call the
    layers' ``reset_parameters`` first. The summary marks weights that are not finite, and
    embeddings and normalizations of zeros.

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
    if not isinstance(module, nn.Module):
        raise SelectionError(
            f"expected a torch.nn.Module, received {type(module).__name__}. "
            "For one tensor, call e.g. deq_init.torch.orthogonal_."
        )
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
    if where is not None:  # so that a quantized one is refused together with the others below
        weights = [replace(w, dtype="float32") if w.value.is_quantized else w for w in weights]
    requests = [
        replace(request, weight=target.weight)
        for target, request in zip(
            targets, selection.requests(weights, "out_in", where, options), strict=True
        )
    ]
    requests = _set_once(requests, [target.identity for target in targets])
    _require_settable(targets, requests)
    pairs = [
        (target, _checked(target, request, where is None))
        for target, request in zip(targets, requests, strict=True)
    ]
    # All is sampled before anything is written.
    entries = []
    for target, request in pairs:
        if request.plan is not None:
            own = None if seed is None else selection.seed_of(seed, request.weight.name)
            key = filling.require_key(own, generator)
            entries.append((target, target.sampled(request.plan, key, generator)))
    for target, new in entries:
        target.write(new)
    summary = selection.summarize([_observed(target, request) for target, request in pairs])
    if verbose and _is_first():
        print(summary)
    return summary


@dataclass(frozen=True)
class _Target:
    """A weight, and how to set it: in place, or through its parametrization.

    ``identity`` is equal for those that are one tensor, and ``overlaps`` names the others that
    share some of its memory.
    """

    weight: Weight
    parametrization: parametrize.ParametrizationList | None
    part: str
    identity: Hashable
    overlaps: tuple[str, ...]

    def sampled(
        self, plan: plans.Plan, key: tuple[int, int] | None, generator: torch.Generator | None
    ) -> Tensor | None:
        """Return the new entries, or raise: nothing is changed yet."""
        tensor = self.weight.value
        if self.parametrization is None:
            return filling.sampled(plan, tensor, key, generator)
        new = torch.empty_like(tensor, requires_grad=False)
        filling.write(plan, new, key, generator)
        if refusal := computed.refusal(self.parametrization, new):
            raise _refused(self.weight.name, refusal)
        return new

    def write(self, new: Tensor | None) -> None:
        if self.parametrization is None:
            filling.store(self.weight.value, new)
        elif new is not None:
            computed.assign(self.parametrization, new)


def _targets(module: nn.Module) -> list[_Target]:
    """List a module's parameters under every name they have, each parametrized weight as one."""
    found: list[_Found] = []
    for prefix, owner in module.named_modules(remove_duplicate=False):
        path = [part for part in prefix.split(".") if part and part != "_orig_mod"]
        if "parametrizations" in path:
            continue
        _reshard(owner)
        for name, parameter in owner.named_parameters(recurse=False):
            found.append(_Found(".".join([*path, name]), owner, name, parameter, None))
        for name, parametrization in computed.parametrizations(owner).items():
            value = computed.value(parametrization)
            found.append(_Found(".".join([*path, name]), owner, name, value, parametrization))
    values = [item.value for item in found]
    identities = memory.identities(values)
    names = selection.distinct(item.name for item in found)
    overlaps: list[list[str]] = [[] for _ in found]
    reasons = [_special(item) for item in found]
    specials = {
        identity: (name, reason)
        for identity, name, reason in reversed(list(zip(identities, names, reasons, strict=True)))
        if reason
    }
    for first, second in memory.overlapping(values):
        for a, b in ((first, second), (second, first)):
            overlaps[a].append(names[b])
            if identities[b] in specials:
                reasons[a] = reasons[a] or f"shares memory with {names[b]}"
    targets = []
    for index, item in enumerate(found):
        first_name, reason = specials.get(identities[index], ("", ""))
        own = reasons[index] or (reason and f"the same tensor as {first_name}")
        shape = () if memory.has_no_shape(item.value) else tuple(item.value.shape)
        known: Mapping[str, Any] | str = {}
        if not memory.has_no_shape(item.value):
            known = layers.axes(item.owner, item.attribute, item.value)
        known, unknown = ({}, known) if isinstance(known, str) else (known, "")
        dtype, hint = filling.dtype_name(item.value), _hint(item.owner, item.attribute)
        weight = Weight(names[index], shape, dtype, item.value, own, hint, known, unknown)
        part = computed.part_of(item.owner, item.attribute)
        others = tuple(overlaps[index])
        targets.append(_Target(weight, item.parametrization, part, identities[index], others))
    if any(memory.has_no_shape(item.value) for item in found):
        _raise_faults({target.weight.name: _faults(target, set()) for target in targets})
    return targets


@dataclass(frozen=True)
class _Found:
    """A parameter or parametrized weight, where it is."""

    name: str
    owner: nn.Module
    attribute: str
    value: Tensor
    parametrization: parametrize.ParametrizationList | None


def _reshard(owner: nn.Module) -> None:
    """Put an FSDP2 module's shards in place: after a forward pass, its parameters may be copies."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(owner, fsdp.FSDPModule):
        owner.reshard()


def _special(item: _Found) -> str:
    """Return why a weight is left alone unless it is named, or ""."""
    owner, name, value = item.owner, item.attribute, item.value
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if re.search(r"norm(\dd)?$", type(owner).__name__, re.IGNORECASE):
        return "normalization"
    if part := computed.part_of(owner, name):
        return part
    if selection.is_adapter(item.name):
        return "adapter"
    originals = [value] if item.parametrization is None else item.parametrization.parameters()
    if value.dtype.is_floating_point and not any(w.requires_grad for w in originals):
        return "frozen"
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


def _set_once(requests: Sequence[Request], identities: Sequence[Hashable]) -> list[Request]:
    """Return the requests with each tensor set under one of its names only."""
    chosen: dict[Hashable, Request] = {}
    for request, identity in zip(requests, identities, strict=True):
        if request.plan is None:
            continue
        first = chosen.setdefault(identity, request)
        if first.plan != request.plan:
            raise SelectionError(
                f"expected one request for a tied weight, received two: {first.weight.name} as "
                f"{first.note}, {request.weight.name} as {request.note}. Name one of them."
            )
    result = []
    for request, identity in zip(requests, identities, strict=True):
        first = chosen.get(identity, request)
        if first is not request:
            request = replace(request, plan=None, note=f"the same tensor as {first.weight.name}")
        result.append(request)
    return result


def _require_settable(targets: Sequence[_Target], requests: Sequence[Request]) -> None:
    """Raise WeightError if there are weights among these that cannot be written to, with all."""
    chosen = {
        t.weight.name: t for t, r in zip(targets, requests, strict=True) if r.plan is not None
    }
    _raise_faults({name: _faults(target, set(chosen)) for name, target in chosen.items()})


def _raise_faults(faults: Mapping[str, str]) -> None:
    listed = [f"  {name}: {fault}" for name, fault in faults.items() if fault]
    if listed:
        raise WeightError(
            "expected dense weights that hold their own entries, received these that are not (none "
            "was changed):\n" + "\n".join(listed)
        )


def _faults(target: _Target, chosen: Set[str]) -> str:
    """Return why a weight cannot be written to, or ""."""
    value = target.weight.value
    if target.part:
        return f"a part of a weight: {target.part}. Undo that, initialize, and apply it again."
    if target.parametrization is not None:
        return ""
    if shared := [name for name in target.overlaps if name in chosen]:
        return (
            f"one that shares memory with {', '.join(shared)}, in another order or in part. Name "
            "one of them, or give each its own memory."
        )
    if reason := memory.fault(value):
        return reason
    try:
        filling.require_writable(value)
    except DeqInitError as error:
        return str(error).partition("received ")[2] or str(error)
    return ""


def _checked(target: _Target, request: Request, lenient: bool) -> Request:
    """Return the request if this weight can be set, else one to leave it alone, or raise."""
    plan, value = request.plan, target.weight.value
    if plan is None:
        return request
    if filling.has_no_data(value):
        return replace(request, plan=None, note="on the meta device, nothing to set")
    if target.parametrization is None:
        return request
    new = torch.empty_like(value, requires_grad=False)
    filling.write(plan, new, (0, 0), None)
    refusal = computed.refusal(target.parametrization, new)
    if not refusal:
        return request
    if lenient:
        return replace(request, plan=None, note=refusal)
    raise _refused(target.weight.name, refusal)


def _refused(name: str, refusal: str) -> SelectionError:
    return SelectionError(
        f"expected a parametrization that keeps what it is assigned, received one for {name}: "
        f"{refusal}. Initialize the weight before it is parametrized."
    )


def _observed(target: _Target, request: Request) -> Request:
    """Return the request of a weight that was left alone with what is odd about its values."""
    value = target.weight.value
    if request.plan is not None or filling.has_no_data(value) or not value.is_floating_point():
        return request
    if memory.fault(value) or not value.numel():
        return request
    own = filling.own_entries(value).detach()
    if not bool(own.isfinite().all()):
        note = "NOT FINITE: uninitialized, as after to_empty?"
    elif (
        request.note in ("embedding", "normalization")
        and request.weight.name.endswith("weight")
        and not bool(own.any())
    ):
        note = "all zeros"
    else:
        return request
    return replace(request, note=f"{request.note}; {note}")


def _is_first() -> bool:
    """Return whether this is the process that speaks."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
