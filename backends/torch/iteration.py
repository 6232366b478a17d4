"""Loops and batches of vectors in PyTorch's words, for the core's iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deq_init.fixed_point import eliminate

State = tuple[Any, ...]


class Iteration:
    """Eager PyTorch: Python's own loops, indices and conditions."""

    def while_loop(
        self, cond: Callable[[State], Any], body: Callable[[State], State], state: State
    ) -> State:
        """Loop while the condition holds."""
        while cond(state):
            state = body(state)
        return state

    def fori_loop(
        self, start: int, stop: int, body: Callable[[int, State], State], state: State
    ) -> State:
        """Loop over indices."""
        for index in range(start, stop):
            state = body(index, state)
        return state

    def integer(self, value: int) -> int:
        """An index."""
        return value

    def zeros(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Zeros."""
        return like.new_zeros(shape)

    def eye(self, size: int, like: Tensor) -> Tensor:
        """The identity."""
        return torch.eye(size, dtype=like.dtype, device=like.device)

    def integers(self, x: Tensor) -> Tensor:
        """Booleans as numbers."""
        return x.to(torch.int64)

    def transpose(self, x: Tensor) -> Tensor:
        """The last two axes swapped."""
        return x.mT

    def put(self, x: Tensor, index: int, value: Tensor) -> Tensor:
        """Set x[:, index], in place."""
        x[:, index] = value
        return x

    def take(self, x: Tensor, index: int) -> Tensor:
        """x[:, index], a copy."""
        return x[:, index].clone()

    def leading(self, x: Tensor, count: int) -> Tensor:
        """x[:, :count]."""
        return x[:, :count]

    def at_length(self, count: int, longest: int, f: Callable[[int], Any]) -> Any:
        """f(count)."""
        return f(count)

    def put_leading(self, x: Tensor, part: Tensor) -> Tensor:
        """The tensor itself, of which the part is a view."""
        return x

    def concatenate(self, arrays: Sequence[Tensor], axis: int) -> Tensor:
        """Tensors joined."""
        return torch.cat(tuple(arrays), axis)

    def where(self, condition: Tensor, x: Any, y: Any) -> Tensor:
        """Choice by entry."""
        return torch.where(condition, x, y)

    def select(self, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Choice by row. On the CPU, a look at the condition costs less than to copy the rows."""
        if x.device.type == "cpu" and bool(condition.all()):
            return x
        return torch.where(condition[:, None], x, y)

    def any(self, x: Tensor) -> bool:
        """Whether any entry is true."""
        return bool(x.any())

    def isfinite(self, x: Tensor) -> Tensor:
        """Whether entries are finite."""
        return torch.isfinite(x)

    def sum(self, x: Tensor, axis: int) -> Tensor:
        """Sum along an axis."""
        return x.sum(axis)

    def lengths(self, x: Tensor) -> Tensor:
        """Euclidean lengths along the last axis."""
        return torch.linalg.vector_norm(x, dim=-1)

    def max(self, x: Tensor, axis: int) -> Tensor:
        """Largest entry along an axis."""
        return x.amax(axis)

    def sqrt(self, x: Tensor) -> Tensor:
        """Square root."""
        return torch.sqrt(x)

    def largest(self, x: Tensor) -> Tensor:
        """Largest modulus."""
        return torch.linalg.vector_norm(x, torch.inf)

    def solve_positive(self, a: Tensor, b: Tensor, least: float) -> Tensor:
        """Cholesky's way, or elimination for matrices that are not positive."""
        factors, info = torch.linalg.cholesky_ex(a)
        x = torch.cholesky_solve(b[:, :, None], factors)[:, :, 0]
        if bool(info.any()):
            return torch.where((info == 0)[:, None], x, eliminate(self, a, b, least))
        return x

    def minimum(self, x: Any, y: Any) -> Any:
        """The smaller."""
        if isinstance(x, int):
            return min(x, y)
        return torch.minimum(x, y.to(x)) if isinstance(y, Tensor) else x.clamp(max=y)

    def maximum(self, x: Any, y: Any) -> Any:
        """The larger."""
        if isinstance(x, int):
            return max(x, y)
        return torch.maximum(x, y.to(x)) if isinstance(y, Tensor) else x.clamp(min=y)

    def eigh(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of small symmetric matrices, on the CPU in float64."""
        values, vectors = torch.linalg.eigh(x.to("cpu", torch.float64))
        return values.to(x), vectors.to(x)

    def eig(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Moduli of eigenvalues and left eigenvectors of small matrices, on the CPU in float64."""
        values, vectors = torch.linalg.eig(x.to("cpu", torch.float64))
        return values.abs().to(x), torch.linalg.inv_ex(vectors).inverse.mT.abs().to(x)


xp = Iteration()
