"""Whether a tensor can be written to as a weight, and which tensors share memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def fault(w: Tensor) -> str:
    """Return what a tensor is that cannot be written to as a matrix, and what to do; or ""."""
    if is_lazy(w):
        return "a lazy parameter, of no shape yet. Run the module once on an example first."
    if w.is_nested:
        return "a nested tensor. Fill its parts before they are nested."
    if w.is_quantized:
        return f"a quantized tensor ({w.dtype}). Fill the weight before it is quantized."
    if w.layout is not torch.strided:
        kind = str(w.layout).removeprefix("torch.").removeprefix("_")
        return f"a tensor of layout {kind}. Fill a dense one and convert it."
    # A view of a parameter has a grad_fn too, and writes to the parameter.
    root = w._base if w._is_view() and w._base is not None else w
    if root.grad_fn is not None:
        return (
            f"one computed from others (grad_fn={root.grad_fn.name()}), e.g. parametrized: what is "
            "written to it is lost. Initialize the whole module with "
            "deq_init.torch.initialize_, or fill a new tensor and assign it: "
            "module.weight = random_(torch.empty_like(module.weight))."
        )
    if w.is_meta or isinstance(w, FakeTensor):
        return ""
    if w.is_inference() and not torch.is_inference_mode_enabled():
        return (
            "one made under torch.inference_mode, which cannot be written to outside it. "
            "Write under torch.inference_mode, or make the weight outside it."
        )
    if not is_traceable_wrapper_subclass(w) and _overlaps_itself(w):
        return (
            f"one whose entries share memory (shape {tuple(w.shape)}, strides {w.stride()}), e.g. "
            "from expand or as_strided. Pass a contiguous copy."
        )
    return ""


def has_no_shape(w: Tensor) -> bool:
    """Return whether a tensor is lazy or nested: it has no shape that could be asked for."""
    return is_lazy(w) or w.is_nested


def identities(tensors: Sequence[Tensor]) -> list[Hashable]:
    """Return what is equal for those that are one tensor, if under several objects."""
    result: list[Hashable] = []
    for w in tensors:
        storage = _storage(w)
        key = (storage, w.storage_offset(), w.shape, w.stride(), w.dtype) if storage else id(w)
        result.append(key)
    return result


def overlapping(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Return the pairs of indices of different tensors that share memory, the first one first."""
    stored: dict[Hashable, list[tuple[int, int, int]]] = defaultdict(list)
    keys = identities(tensors)
    for index, w in enumerate(tensors):
        if storage := _storage(w):
            start = int(w.storage_offset()) * w.itemsize
            stored[storage].append((start, start + _extent(w) * w.itemsize, index))
    pairs = set()
    for spans in stored.values():
        spans.sort()
        ends = list(accumulate((end for _, end, _ in spans), max))
        for position, (start, _, index) in enumerate(spans):
            for before in range(position - 1, -1, -1):
                if ends[before] <= start:
                    break
                _, end, other = spans[before]
                if end <= start or keys[index] == keys[other]:
                    continue
                if _meet(tensors[index], tensors[other]):
                    pairs.add((min(index, other), max(index, other)))
    return sorted(pairs)


def _storage(w: Tensor) -> Hashable:
    """Return which memory holds a plain dense tensor, or None."""
    if has_no_shape(w) or w.layout is not torch.strided or w.is_meta or w.numel() == 0:
        return None
    if isinstance(w, FakeTensor) or is_traceable_wrapper_subclass(w):
        return None
    address = w.untyped_storage().data_ptr()
    return (str(w.device), address) if address else None


def _overlaps_itself(w: Tensor) -> bool:
    """Return whether two entries of a tensor are one number in memory."""
    reach = 0
    for stride, length in sorted(zip(w.stride(), w.shape, strict=True)):
        if length < 2:
            continue
        if stride <= reach:
            return w.numel() > 0 and len(torch.unique(_places(w))) < w.numel()
        reach += stride * (length - 1)
    return False


def _meet(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of one storage, of which neither ends first, share a number."""
    if a.itemsize != b.itemsize or all(_extent(w) == w.numel() for w in (a, b)):
        return True
    return bool(torch.isin(_places(a), _places(b)).any())


def _extent(w: Tensor) -> int:
    """Return from the first to the last entry of a tensor in memory, in entries."""
    return 1 + int(sum(s * (n - 1) for s, n in zip(w.stride(), w.shape, strict=True)))


def _places(w: Tensor) -> Tensor:
    """Return where in its storage each entry of a tensor is, in entries."""
    places = torch.tensor([int(w.storage_offset())])
    for stride, length in zip(w.stride(), w.shape, strict=True):
        places = (places[:, None] + stride * torch.arange(length)).flatten()
    return places
