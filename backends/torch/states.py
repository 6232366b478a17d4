"""States as trees of tensors, flattened to (batch, n) and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from deq_init import states
from deq_init.errors import DTypeError
from deq_init.torch import filling

State = Any
"""A tensor of shape (batch, ...), or a tuple, list or dictionary of states."""


class Flat:
    """A state's layout, and its maps in terms of tensors of shape (batch, n)."""

    def __init__(self, z: State) -> None:
        leaves = _leaves(z)
        self._tree = z
        self.layout = states.layout(
            [leaf.shape for leaf in leaves], [filling.dtype_name(leaf) for leaf in leaves]
        )
        self._dtypes = [leaf.dtype for leaf in leaves]
        self._dtype = getattr(torch, self.layout.dtype)

    def flatten(self, z: State, source: str = "f") -> Tensor:
        """Return a state of this layout as one tensor, a copy."""
        same = _shape_of(z) == _shape_of(self._tree)
        leaves = _leaves(z) if same else []
        shapes = [leaf.shape for leaf in leaves] if same else None
        states.require_like(self.layout, self._tree, z, shapes, source)
        batch = self.layout.batch
        flat = [
            leaf.reshape(batch, end - begin).to(self._dtype)
            for leaf, (begin, end) in zip(leaves, self.layout.bounds, strict=True)
        ]
        return torch.cat(flat, 1)

    def unflatten(self, x: Tensor) -> State:
        """Return the state of a tensor."""
        leaves = iter(
            [
                x[:, begin:end].reshape(shape).to(dtype)
                for (begin, end), shape, dtype in zip(
                    self.layout.bounds, self.layout.shapes, self._dtypes, strict=True
                )
            ]
        )
        return _rebuild(self._tree, leaves)

    def map(self, f: Callable[[State], State]) -> Callable[[Tensor], Tensor]:
        """Return f as a map between tensors of shape (batch, n)."""
        # A copy: f may write to the state that it is given.
        return lambda x: self.flatten(f(self.unflatten(x.clone())))


def _leaves(z: State) -> list[Tensor]:
    if isinstance(z, Tensor):
        return [z]
    if isinstance(z, Mapping):
        return [leaf for key in _keys(z) for leaf in _leaves(z[key])]
    if isinstance(z, (tuple, list)):
        return [leaf for part in z for leaf in _leaves(part)]
    raise DTypeError(
        f"expected a state of tensors, in tuples, lists or dictionaries, received "
        f"{type(z).__name__}. Convert it with torch.as_tensor, or leave it out of the state."
    )


def _keys(z: Mapping[Any, Any]) -> list[Any]:
    """Return keys in an order that does not depend on who made the dictionary."""
    return sorted(z, key=repr)


def _shape_of(z: State) -> Any:
    """Return the tree without its tensors."""
    if isinstance(z, Tensor):
        return None
    if isinstance(z, Mapping):
        return [(key, _shape_of(z[key])) for key in _keys(z)]
    if isinstance(z, (tuple, list)):
        return [_shape_of(part) for part in z]
    return type(z)


def _rebuild(tree: State, leaves: Any) -> State:
    if isinstance(tree, Tensor):
        return next(leaves)
    if isinstance(tree, Mapping):
        parts = {key: _rebuild(tree[key], leaves) for key in _keys(tree)}
        return {key: parts[key] for key in tree}
    items = [_rebuild(part, leaves) for part in tree]
    if isinstance(tree, tuple):
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return items
