"""What the axes of PyTorch's weights are, by the layers that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def axes(owner: nn.Module, name: str, value: Tensor) -> Mapping[str, Any] | str:
    """Return the axes and blocks of a weight, or why they are not known.

    Parameters
    ----------
    owner : torch.nn.Module
        The module that holds it.
    name : str
        Its name there.
    value : Tensor
        The weight.

    Returns
    -------
    mapping or str
        ``batch_axes``, ``in_axes``, ``out_axes`` and ``blocks``, as far as they differ from
        (out, in, ...). Or a reason, for more than two axes.
    """
    shape = tuple(value.shape)
    if name == "weight" and type(owner).__name__ == "Conv1D" and hasattr(owner, "nf"):
        return {"in_axes": 0}  # transformers' linear layer (in, out)
    if len(shape) <= 2 or (isinstance(owner, nn.Bilinear) and name == "weight"):
        return {}
    if name == "weight" and shape[2:] == tuple(getattr(owner, "kernel_size", ())):
        if getattr(owner, "transposed", False):
            return _transposed(owner, shape)
        return _convolution(getattr(owner, "groups", 1), shape)
    return _experts(owner, name) or "no layer that is known here"


def _convolution(groups: int, shape: tuple[int, ...]) -> Mapping[str, Any]:
    """Return the axes of a weight (out, in/groups, ...)."""
    if groups == 1:
        return {}
    if groups == shape[0]:
        return {"batch_axes": 0, "in_axes": tuple(range(1, len(shape)))}
    return {"blocks": groups}


def _transposed(owner: Any, shape: tuple[int, ...]) -> Mapping[str, Any] | str:
    """Return the axes of a transposed convolution's weight (in, out/groups, ...).

    At stride 1 each output sees the whole kernel, as in a convolution; with the stride of the
    kernel's size, each input has a patch of outputs of its own.
    """
    inputs, outputs = [0], [1]
    for axis, size, stride, dilation in zip(
        range(2, len(shape)), owner.kernel_size, owner.stride, owner.dilation, strict=True
    ):
        if stride == 1:
            inputs.append(axis)
        elif stride == size and dilation == 1:
            outputs.append(axis)
        else:
            return "a transposed convolution whose stride is neither 1 nor the kernel's size"
    known: dict[str, Any] = {"in_axes": tuple(inputs), "out_axes": tuple(outputs)}
    return known if owner.groups == 1 else {**known, "blocks": (owner.groups, 0)}


def _experts(owner: nn.Module, name: str) -> Mapping[str, Any] | None:
    """Return the axes of stacked experts, whose two projections tell which of them is the input.

    (E, 2 i, h) and (E, h, i) are (E, out, in), as in Mixtral; (E, h, 2 i) and (E, i, h) are
    (E, in, out), as in GPT-OSS. No two shapes are both.
    """
    up, down = (getattr(owner, other, None) for other in ("gate_up_proj", "down_proj"))
    if name not in ("gate_up_proj", "down_proj") or not all(
        isinstance(w, Tensor) and w.ndim == 3 for w in (up, down)
    ):
        return None
    (count, a, b), (other, c, d) = up.shape, down.shape  # type: ignore[union-attr]
    if count == other and a == 2 * d and b == c:
        return {"batch_axes": 0}
    if count == other and b == 2 * c and a == d:
        return {"batch_axes": 0, "in_axes": 1}
    return None
