"""States as trees of tensors, flattened to (batch, n) and back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import keras
from keras import ops

from deq_init import states
from deq_init.errors import DTypeError, ShapeError

State = Any
"""A tensor of shape (batch, ...), or a tuple, list or dictionary of states."""

Function = Callable[[State], State]
Vectors = Callable[[Any], Any]
"""A map between tensors of shape (batch, n)."""


class Flat:
    """A state's layout, and its maps in terms of tensors of shape (batch, n)."""

    def __init__(self, z: State) -> None:
        leaves = _leaves(z)
        self._tree = z
        self._dtypes = [keras.backend.standardize_dtype(leaf.dtype) for leaf in leaves]
        self.layout = states.layout(map(_shape, leaves), self._dtypes)

    def flatten(self, z: State, source: str = "f") -> Any:
        """Return a state of this layout, which source returned, as one tensor."""
        batch, leaves, shapes = self.layout.batch, [], None
        if _structure(z) == _structure(self._tree):
            with suppress(DTypeError):  # of a leaf that is no tensor
                leaves = _leaves(z)
                shapes = [
                    (batch, *shape[1:]) if -1 in (batch, *shape[:1]) else shape
                    for shape in map(_shape, leaves)
                ]
        states.require_like(self.layout, self._tree, z, shapes, source)
        flat = [
            ops.cast(ops.reshape(leaf, (batch, end - begin)), self.layout.dtype)
            for leaf, (begin, end) in zip(leaves, self.layout.bounds, strict=True)
        ]
        return ops.concatenate(flat, 1)

    def unflatten(self, x: Any) -> State:
        """Return the state of a tensor."""
        parts = zip(self.layout.bounds, self.layout.shapes, self._dtypes, strict=True)
        leaves = [
            ops.cast(ops.reshape(x[:, begin:end], shape), dtype)
            for (begin, end), shape, dtype in parts
        ]
        return keras.tree.pack_sequence_as(self._tree, leaves)

    def map(self, f: Function) -> Vectors:
        """Return f as a map between tensors of shape (batch, n)."""
        return lambda x: self.flatten(f(self.unflatten(x)))

    def unmap(self, f: Vectors) -> Function:
        """Return a map between tensors of shape (batch, n) as one between states."""
        return lambda z: self.unflatten(f(self.flatten(z)))


def _leaves(z: State) -> list[Any]:
    """Return a state's tensors, made of NumPy arrays and variables too."""
    return [_tensor(leaf) for leaf in keras.tree.flatten(z)]


def _tensor(leaf: Any) -> Any:
    if not isinstance(leaf, keras.KerasTensor):
        try:
            return ops.convert_to_tensor(leaf)
        except (TypeError, ValueError):
            pass
    raise DTypeError(
        f"expected a state of tensors, in tuples, lists or dictionaries, received "
        f"{type(leaf).__name__}. Convert it with keras.ops.convert_to_tensor, or leave it out of "
        "the state."
    )


def _shape(leaf: Any) -> tuple[int, ...]:
    """Return a tensor's shape, with -1 for a batch that TensorFlow will know when it runs."""
    shape = tuple(leaf.shape)
    if None in shape[1:]:
        raise ShapeError(
            f"expected a state whose lengths are known, other than the batch, received shape "
            f"{shape}. Set them with tf.ensure_shape."
        )
    return (-1, *shape[1:]) if None in shape else shape


def _structure(z: State) -> Any:
    """Return the tree without its tensors; models return lists where tuples were given."""
    return keras.tree.lists_to_tuples(keras.tree.map_structure(lambda leaf: None, z))
