"""The protocol in PyTorch's words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_init import draws, scale, spectra
from deq_init.numpy import primitives as numpy_primitives
from deq_init.torch import iteration

_MASK = 0xFFFFFFFF
_ALL = slice(None)
_SHORT = 256  # rows whose squares may be summed in float32


class Primitives:
    """PyTorch tensors on one device; words are ``int64``, cut back to 32 bits."""

    mutable = True
    lapack_up_to = 256

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def counters(self, rows: range, columns: range, stride: int) -> tuple[Tensor, Tensor]:
        """High and low words of i · stride + j."""
        i = torch.arange(rows.start, rows.stop, dtype=torch.int64, device=self.device)
        j = torch.arange(columns.start, columns.stop, dtype=torch.int64, device=self.device)
        c = i[:, None] * stride + j
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

    def normal_quantile(self, u: Tensor, bits: int) -> Tensor:
        """Standard normals from uniforms on (-1, 1)."""
        return torch.erfinv(u).mul_(math.sqrt(2))

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """The tensor in another dtype."""
        return x.to(getattr(torch, dtype))

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor in another shape."""
        return x.reshape(shape)

    def transpose(self, x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
        """Transpose."""
        return x.T if axes is None else x.permute(axes)

    def tril(self, x: Tensor) -> Tensor:
        """Lower triangle: only the rows up to the last column's change."""
        rows, columns = x.shape
        (x[:columns] if rows > columns else x).tril_()
        return x

    def triu(self, x: Tensor, k: int = 0) -> Tensor:
        """Upper triangle."""
        return x.triu_(k)

    def diagonal(self, x: Tensor) -> Tensor:
        """Main diagonal."""
        return torch.diagonal(x)

    def eye_like(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Ones on the diagonal."""
        return torch.eye(rows, columns, dtype=x.dtype, device=x.device)

    def empty_like(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Any entries."""
        return x.new_empty((rows, columns))

    def copy(self, x: Tensor) -> Tensor:
        """A copy, rows first."""
        return x.clone(memory_format=torch.contiguous_format)

    def scale_diagonal(self, x: Tensor, factor: float) -> None:
        """Multiply the diagonal, in place."""
        x.diagonal().mul_(factor)

    def product_into(self, c: Tensor, a: Tensor, b: Tensor) -> None:
        """Set to a @ b in place."""
        torch.mm(a, b, out=c)

    def add_product(self, c: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a @ b in place."""
        c.addmm_(a, b)

    def add_diagonal(self, x: Tensor, d: Tensor | float) -> Tensor:
        """Add to the diagonal, in place."""
        x.diagonal().add_(d)
        return x

    def householder_product(self, v: Tensor, tau: Tensor) -> Tensor:
        """Orthonormal columns of a product of reflections."""
        return torch.linalg.householder_product(v, tau)

    def sign(self, x: Tensor) -> Tensor:
        """Sign, entry by entry."""
        return torch.sign(x)

    def copysign(self, x: Tensor, y: Tensor) -> Tensor:
        """Lengths with the signs of y."""
        return torch.copysign(x, y)

    def column_lengths(self, x: Tensor) -> Tensor:
        """Euclidean length of each column, long ones summed in float64 if the device has it."""
        if len(x) <= _SHORT or x.device.type == "mps":
            return torch.linalg.vector_norm(x, dim=0)
        return torch.linalg.vector_norm(x, dim=0, dtype=torch.float64).to(x.dtype)

    def product(self, x: Tensor) -> Tensor:
        """Product of the entries."""
        return torch.prod(x)

    def concatenate(self, arrays: Sequence[Tensor], axis: int) -> Tensor:
        """Tensors joined."""
        return torch.cat(tuple(arrays), axis)

    def solve_upper(self, a: Tensor, b: Tensor) -> Tensor:
        """Triangular solve."""
        return torch.linalg.solve_triangular(a, b, upper=True)

    def rounded(self, x: Tensor, dtype: str) -> Tensor:
        """Values of a half-precision dtype."""
        return x.to(getattr(torch, dtype)).to(x.dtype)

    def is_finite(self, x: Tensor) -> bool:
        """Whether all entries are finite."""
        return bool(x.isfinite().all())

    def normalized(self, w: Tensor) -> tuple[Tensor, float]:
        """The matrix over a power of two, and that."""
        least, most = w.aminmax()
        unit = scale.power_of_two(float(torch.maximum(-least, most)))
        if math.isnan(unit):
            return torch.zeros_like(w), unit
        unit = max(unit, torch.finfo(w.dtype).tiny)  # of which the inverse is a number, too
        return (w if unit == 1 else w / unit), unit

    def symmetric_norm(self, w: Tensor) -> Tensor:
        """Largest modulus of an eigenvalue of a symmetric matrix."""
        value = _by_lanczos(w, symmetric=True)
        if value is None:
            value = torch.linalg.eigvalsh(_float64(w)).abs().max().to(w)
        return value

    def spectral_norm(self, w: Tensor) -> Tensor:
        """Largest singular value."""
        value = _by_lanczos(w, symmetric=False)
        if value is None:
            value = torch.linalg.svdvals(_float64(w)).max().to(w)
        return value

    def spectral_radius(self, w: Tensor) -> Tensor:
        """Largest modulus of an eigenvalue."""
        if len(w) >= spectra.RADIUS_WORTHWHILE:
            estimate = spectra.matrix_radius(iteration.xp, w, _start(w))
            if bool(estimate.converged[0]):
                return estimate.value[0]
        return torch.linalg.eigvals(_float64(w)).abs().max().to(w)


def _by_lanczos(w: Tensor, symmetric: bool) -> Tensor | None:
    """Return the norm, or None if the full decomposition is the better way to it."""
    if min(w.shape) < spectra.WORTHWHILE:
        return None
    estimate = spectra.matrix_norm(iteration.xp, w, _start(w), symmetric=symmetric)
    return estimate.value[0] if bool(estimate.converged[0]) else None


def _start(w: Tensor) -> Tensor:
    """Return a row of normals, always the same."""
    dtype = str(w.dtype).removeprefix("torch.")
    return Portable((0, 0), (1, w.shape[1]), dtype, w.device)[:, :]


def _float64(w: Tensor) -> Tensor:
    """Return the matrix in float64, on the CPU where its device has no such dtype."""
    return w.to("cpu" if w.device.type == "mps" else w.device).to(torch.float64)


@dataclass(frozen=True)
class Portable:
    """The normals of a Threefry key, see :mod:`deq_init.draws`, drawn where they are asked for."""

    key: draws.Key
    shape: tuple[int, int]
    dtype: str
    device: torch.device

    def __getitem__(self, region: tuple[slice, slice]) -> Tensor:
        """Return the normals of these rows and columns, a new tensor."""
        if self.device.type in ("cpu", "mps") and not torch.compiler.is_compiling():
            # The same bits from uint32 words: several times faster than int64 ones, and MPS has
            # no float64 to invert the error function in.
            field = numpy_primitives.Portable(self.key, self.shape, self.dtype)
            return torch.from_numpy(field[region]).to(self.device)
        rows, columns = (range(n)[part] for n, part in zip(self.shape, region, strict=True))
        xp = Primitives(self.device)
        return draws.normals(xp, self.key, rows, columns, self.shape[1], self.dtype)

    def trapezoid(self, lower: bool) -> Tensor | None:
        """Return half of the field: on the CPU, threads draw it all at once."""
        if self.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        field = numpy_primitives.Portable(self.key, self.shape, self.dtype)
        return torch.from_numpy(field.trapezoid(lower))


@dataclass(frozen=True)
class Native:
    """PyTorch's own normals: each region is drawn when it is asked for."""

    generator: torch.Generator | None
    shape: tuple[int, int]
    dtype: str
    device: torch.device

    def __getitem__(self, region: tuple[slice, slice]) -> Tensor:
        """Return new normals for these rows and columns."""
        size: tuple[int, ...] = self.shape
        if region != (_ALL, _ALL):
            size = tuple(len(range(n)[part]) for n, part in zip(size, region, strict=True))
        out = torch.empty(size, dtype=getattr(torch, self.dtype), device=self.device)
        return out.normal_(generator=self.generator)


def normals(
    key: draws.Key | None,
    generator: torch.Generator | None,
    shape: tuple[int, int],
    dtype: str,
    device: torch.device,
    index: tuple[int, ...],
) -> Portable | Native:
    """Return a field of standard normals of this shape.

    Parameters
    ----------
    key : (int, int) or None
        A portable seed's key: the same normals in every backend.
    generator : torch.Generator or None
        Without a key, PyTorch's own normals, from this or from the global generator.
    shape : (int, int)
        Rows and columns.
    dtype : {"float32", "float64"}
        Dtype.
    device : torch.device
        Where.
    index : tuple of int
        Which matrix's normals: its numbers are folded into the key. A generator just goes on.
    """
    if key is None:
        return Native(generator, shape, dtype, device)
    return Portable(draws.block_key(key, index), shape, dtype, device)
