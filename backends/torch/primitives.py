"""The protocol in PyTorch's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deq_init import draws
from deq_init.errors import SeedError
from deq_init.numpy import primitives as numpy_primitives

_MASK = 0xFFFFFFFF


class Primitives:
    """PyTorch tensors on one device; words are ``int64``, cut back to 32 bits."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def counters(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """High and low words of start, ..., start + count - 1."""
        c = torch.arange(start, start + count, dtype=torch.int64, device=self.device)
        return c >> 32, c & _MASK

    def wrap(self, words: Tensor) -> Tensor:
        """Words modulo 2**32."""
        return words & _MASK

    def rotate_left(self, words: Tensor, bits: int) -> Tensor:
        """Words rotated left."""
        return (words << bits | words >> (32 - bits)) & _MASK

    def shift_right(self, words: Tensor, bits: int) -> Tensor:
        """Words shifted right."""
        return words >> bits

    def to_float64(self, words: Tensor) -> Tensor:
        """Words as float64."""
        return words.to(torch.float64)

    def erfinv(self, x: Tensor) -> Tensor:
        """Inverse error function."""
        return torch.erfinv(x)

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """The tensor in another dtype."""
        return x.to(getattr(torch, dtype))

    def transpose(self, x: Tensor) -> Tensor:
        """Transpose."""
        return x.T

    def tril(self, x: Tensor, k: int = 0) -> Tensor:
        """Lower triangle."""
        return torch.tril(x, k)

    def triu(self, x: Tensor, k: int = 0) -> Tensor:
        """Upper triangle."""
        return torch.triu(x, k)

    def diagonal(self, x: Tensor) -> Tensor:
        """Main diagonal."""
        return torch.diagonal(x)

    def eye_like(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Ones on the diagonal."""
        return torch.eye(rows, columns, dtype=x.dtype, device=x.device)

    def sqrt(self, x: Tensor) -> Tensor:
        """Square root."""
        return torch.sqrt(x)

    def where(self, condition: Tensor, x: Any, y: Any) -> Tensor:
        """Choice by entry."""
        return torch.where(condition, x, y)

    def column_sums(self, x: Tensor) -> Tensor:
        """Sum over the rows."""
        return torch.sum(x, dim=0)

    def concatenate(self, arrays: Sequence[Tensor], axis: int) -> Tensor:
        """Tensors joined."""
        return torch.cat(tuple(arrays), axis)

    def solve_upper(self, a: Tensor, b: Tensor) -> Tensor:
        """Triangular solve."""
        return torch.linalg.solve_triangular(a, b, upper=True)

    def spectral_norm(self, w: Tensor, symmetric: bool) -> Tensor:
        """Largest singular value, by the full decomposition in float64."""
        if symmetric:
            return self.spectral_radius(w, symmetric)
        return torch.linalg.svdvals(_float64(w)).max().to(w)

    def spectral_radius(self, w: Tensor, symmetric: bool) -> Tensor:
        """Largest modulus of an eigenvalue, by the full decomposition in float64."""
        solve = torch.linalg.eigvalsh if symmetric else torch.linalg.eigvals
        return solve(_float64(w)).abs().max().to(w)


def _float64(w: Tensor) -> Tensor:
    """Return the matrix in float64, on the CPU where its device has no such dtype."""
    return w.to("cpu" if w.device.type == "mps" else w.device).to(torch.float64)


def normals(
    rows: int,
    columns: int,
    dtype: str,
    device: torch.device,
    seed: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Return standard normals of shape (rows, columns).

    Parameters
    ----------
    rows, columns : int
        Shape.
    dtype : {"float32", "float64"}
        Dtype.
    device : torch.device
        Where.
    seed : int or None
        An integer means the same normals in every backend, see :mod:`deq_init.draws`.
    generator : torch.Generator or None
        Without a seed: PyTorch's own normals, from this or from the global generator.

    Raises
    ------
    SeedError
        If both are given.
    """
    if seed is None:
        out = torch.empty(rows, columns, dtype=getattr(torch, dtype), device=device)
        return out.normal_(generator=generator)
    if generator is not None:
        raise SeedError(
            f"expected a seed or a generator, received both: seed={seed!r} and {generator!r}. "
            "Pass the seed for the same matrix in every backend, or the generator for PyTorch's "
            "own random numbers."
        )
    key = draws.key_from_seed(seed)
    if device.type in ("cpu", "mps") and not torch.compiler.is_compiling():
        # The same bits from uint32 words: several times faster than int64 ones, and MPS has no
        # float64 to invert the error function in.
        return torch.from_numpy(numpy_primitives.normals(seed, rows, columns, dtype)).to(device)
    return draws.normals(Primitives(device), key, 0, rows * columns, dtype).reshape(rows, columns)
