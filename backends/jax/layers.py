"""What the axes of a pytree's weights are, by its layers, if it has them, or by neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deq_init.axes import Layout


def axes(
    params: Any, path: Any, name: str, shapes: Mapping[str, tuple[int, ...]], layout: Layout
) -> Mapping[str, Any] | str:
    """Return the axes and blocks of a weight, or why they are not known.

    Parameters
    ----------
    params : pytree
        The model's parameters.
    path : tuple of keys
        Where the weight is there.
    name : str
        Its name.
    shapes : mapping
        Shapes of all arrays, by name.
    layout : {"in_out", "out_in"}
        Of a single matrix.

    Returns
    -------
    mapping or str
        ``batch_axes``, ``in_axes``, ``out_axes`` and ``blocks``, as far as they differ from the
        layout. Or a reason, for more than two axes.
    """
    shape = shapes[name]
    if len(shape) <= 2:
        return {}
    owner = _owner(params, path)
    if type(owner).__module__.startswith("equinox.") and name.endswith("weight"):
        return _equinox(owner, shape)
    parent, _, _ = name.rpartition("/")
    block, _, layer = parent.rpartition("/")
    bias = shapes.get(f"{parent}/bias") or shapes.get(f"{parent}/b")
    if bias:
        return _beside_bias(shape, bias, layout, layer)
    if layout == "in_out" and len(shape) == 3 and layer in ("query", "key", "value"):
        return {"in_axes": 0}
    attention = f"{block}/query/kernel".lstrip("/")
    if layout == "in_out" and layer == "out" and len(shapes.get(attention, ())) == len(shape) == 3:
        return {}
    if "conv" in layer.lower() and not _is_stacked(block, shape, shapes):
        return {}
    return "no bias or name that tells a convolution, several heads and a stack apart"


def _owner(params: Any, path: Any) -> Any:
    """Return the node of the pytree that holds the leaf at this path, None if it has none."""
    node = params
    for step in path[:-1]:
        try:
            if hasattr(step, "name"):
                node = getattr(node, step.name)
            else:
                node = node[step.key if hasattr(step, "key") else step.idx]
        except (AttributeError, IndexError, KeyError, TypeError):
            return None
    return node


def _equinox(owner: Any, shape: tuple[int, ...]) -> Mapping[str, Any] | str:
    """Return the axes of an Equinox layer's weight (..., out, in, ...): more are of an ensemble."""
    spatial = getattr(owner, "num_spatial_dims", 0)
    extra = len(shape) - 2 - spatial
    if extra < 0 or not (spatial or hasattr(owner, "in_features") or hasattr(owner, "in_size")):
        return "no layer that is known here"
    batch, out = tuple(range(extra)), extra
    groups = getattr(owner, "groups", 1)
    if spatial and "Transpose" in type(owner).__name__:
        # As a convolution of the input with zeros in between.
        whole = all(s == 1 for s in owner.stride)
        patches = tuple(owner.stride) == tuple(owner.kernel_size) and groups == 1
        if not whole and not (patches and all(d == 1 for d in owner.dilation)):
            return "a transposed convolution whose stride is neither 1 nor the kernel's size"
        if not whole:
            return {"batch_axes": batch, "in_axes": extra + 1}
    known: dict[str, Any] = {"batch_axes": batch} if batch else {}
    if groups > 1 and groups == shape[out]:
        return {"batch_axes": (*batch, out), "in_axes": tuple(range(out + 1, len(shape)))}
    return known if groups == 1 else {**known, "blocks": (groups, out)}


def _beside_bias(
    shape: tuple[int, ...], bias: tuple[int, ...], layout: Layout, layer: str
) -> Mapping[str, Any] | str:
    """Return the axes of a weight whose bias has the stack's axes, then those of the outputs."""
    if layout == "out_in":
        while len(bias) > 1 and bias[-1] == 1:
            bias = bias[:-1]
        if shape[: len(bias)] != bias:
            return "a bias of another shape beside it"
        return {"batch_axes": tuple(range(len(bias) - 1))} if len(bias) > 1 else {}
    fits = [
        stack
        for stack in range(len(bias) if len(bias) < len(shape) else 0)
        if shape[:stack] == bias[:stack] and shape[len(shape) - len(bias) + stack :] == bias[stack:]
    ]
    if len(fits) > 1 and layer in ("query", "key", "value"):
        fits = [stack for stack in fits if len(bias) - stack == 2]
    if len(fits) != 1:
        return "a bias that fits several readings" if fits else "a bias of another shape beside it"
    stack, outputs = fits[0], len(bias) - fits[0]
    known: dict[str, Any] = {"batch_axes": tuple(range(stack))} if stack else {}
    if outputs > 1:
        known["out_axes"] = tuple(range(len(shape) - outputs, len(shape)))
    return known


def _is_stacked(block: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a bias or scale in the same block has one axis more than a layer's own."""
    prefix = f"{block}/" if block else ""
    return any(
        name.startswith(prefix)
        and name.rpartition("/")[2] in ("bias", "scale", "b", "offset")
        and len(other) > 1
        and other[0] == shape[0]
        for name, other in shapes.items()
    )
