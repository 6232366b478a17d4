"""What the axes of a Keras layer's kernels are, by the layer's type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


def axes(owner: Any, name: str, shape: tuple[int, ...]) -> Mapping[str, Any] | str:
    """Return the axes and blocks of a kernel, or why they are not known.

    Parameters
    ----------
    owner : keras.layers.Layer
        The layer that holds it.
    name : str
        The variable's name there.
    shape : tuple of int
        Its shape.

    Returns
    -------
    mapping or str
        ``batch_axes``, ``in_axes``, ``out_axes`` and ``blocks``, as far as they differ from
        (..., in, out). Or a reason, for more than two axes.
    """
    rank = len(shape)
    if isinstance(owner, keras.layers.EinsumDense) and name == "kernel":
        return _einsum(owner.equation)
    if rank <= 2:
        return {}
    last = rank - 1
    if name == "depthwise_kernel" or (isinstance(owner, _DEPTHWISE) and name == "kernel"):
        return {"batch_axes": last - 1, "out_axes": last}
    if isinstance(owner, _TRANSPOSED) and name == "kernel":
        return _transposed(owner, last)
    if isinstance(owner, _CONVOLUTIONS) and name == "kernel":
        if owner.groups == 1:
            return {}
        if owner.groups == shape[-1]:
            return {"batch_axes": last, "in_axes": tuple(range(last))}
        return {"blocks": owner.groups}
    # Convolutions that are recurrent or separable.
    if "Conv" in type(owner).__name__ and type(owner).__module__.startswith("keras."):
        return {}
    return "no layer that is known here"


def _einsum(equation: str) -> Mapping[str, Any] | str:
    """Return the axes of a kernel that is multiplied by an equation such as "abc,cde->abde"."""
    inputs, kernel, output = equation.replace("->", ",").split(",")
    found: dict[str, list[int]] = {"batch_axes": [], "in_axes": [], "out_axes": []}
    for axis, letter in enumerate(kernel):
        if letter not in inputs + output:
            return f"an axis of the kernel alone in the equation {equation}"
        kept, read = letter in output, letter in inputs
        found["batch_axes" if kept and read else "out_axes" if kept else "in_axes"].append(axis)
    if not found["in_axes"] + found["out_axes"]:
        return f"no matrix in the equation {equation}"
    return {name: tuple(axes) for name, axes in found.items()}


def _transposed(owner: Any, last: int) -> Mapping[str, Any] | str:
    """Return the axes of a transposed convolution's kernel (..., out, in).

    At stride 1 each output sees the whole kernel, as in a convolution; with the stride of the
    kernel's size, each input has a patch of outputs of its own.
    """
    inputs, outputs = [last], [last - 1]
    for axis, (size, stride, dilation) in enumerate(
        zip(owner.kernel_size, owner.strides, owner.dilation_rate, strict=True)
    ):
        if stride == 1:
            inputs.append(axis)
        elif stride == size and dilation == 1:
            outputs.append(axis)
        else:
            return "a transposed convolution whose stride is neither 1 nor the kernel's size"
    return {"in_axes": tuple(sorted(inputs)), "out_axes": tuple(sorted(outputs))}
