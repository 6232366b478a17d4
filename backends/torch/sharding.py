"""DTensors: which entries a rank holds, and a seed that all ranks agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from deq_init import draws, regions
from deq_init.errors import WeightError


def require_supported(w: DTensor) -> None:
    """Check that a DTensor's entries are its own, and placed in a way that is known here.

    Raises
    ------
    WeightError
        For placements other than Shard and Replicate (and the strided Shard of FSDP over tensor
        parallelism), and for a view that had to be copied to be sharded.
    """
    for placement in w.placements:
        if not isinstance(placement, Replicate) and not _is_shard(placement):
            raise WeightError(
                f"expected a DTensor of placements Shard or Replicate, received {w.placements}. "
                "Redistribute it first: a rank's share of a sum, for one, is no part of the matrix."
            )
    base = w._base if w._is_view() else None
    if isinstance(base, DTensor) and not _shares_memory(w, base):
        raise WeightError(
            f"expected a DTensor or a view of its memory, received a view of shape "
            f"{tuple(w.shape)} that was copied from shards {base.placements}: what is written to "
            "it is lost. Initialize the whole tensor, with blocks= for its parts."
        )
    if w.device_mesh.get_coordinate() is not None:
        lengths = [sum(map(len, runs)) for runs in parts(w)]
        if lengths != list(local(w).shape):
            raise WeightError(
                f"expected a local shard of shape {tuple(lengths)} for a DTensor of shape "
                f"{tuple(w.shape)} and placements {w.placements}, received one of shape "
                f"{tuple(local(w).shape)}. Distribute the tensor with distribute_tensor."
            )


def parts(w: DTensor) -> list[regions.Runs]:
    """Return the indices that this rank holds, for each axis; all empty outside the mesh."""
    coordinate = w.device_mesh.get_coordinate()
    result: list[regions.Runs] = [[range(length)] if length else [] for length in w.shape]
    placements: Sequence[Any] = w.placements  # the strided Shard has no public type
    for dim, placement in enumerate(placements):
        if coordinate is None or not _is_shard(placement):
            continue
        axis = placement.dim
        count, index = w.device_mesh.size(dim), coordinate[dim]
        # Strided: FSDP's shard of every one of tensor parallelism's, which come later in the mesh.
        factor = int(getattr(placement, "split_factor", 1))
        strides = [regions.chunk(result[axis], factor, i) for i in range(factor)]
        result[axis] = [r for part in strides for r in regions.chunk(part, count, index)]
    return result


def local(w: DTensor) -> Tensor:
    """Return this rank's own entries, as memory to write to."""
    return cast("DTensor", w.detach()).to_local()


def full(w: DTensor) -> Tensor:
    """Return the whole tensor, gathered from all ranks of its mesh."""
    return cast("DTensor", w.detach()).full_tensor()


def agreed_key(w: DTensor, generator: torch.Generator | None) -> draws.Key:
    """Return a key that is the same on every rank of the tensor's mesh.

    Every rank draws one, so that random states that were equal stay so; that of the mesh's first
    rank counts.
    """
    mesh = w.device_mesh
    device = w.device if generator is None else generator.device
    words = torch.randint(2**32, (2,), generator=generator, dtype=torch.int64, device=device)
    words = words.to(w.device)
    coordinate = mesh.get_coordinate()
    if coordinate is not None:
        for dim in range(mesh.ndim):
            dist.broadcast(words, _first(mesh, coordinate, dim), group=mesh.get_group(dim))
    high, low = words.tolist()
    return high, low


def _first(mesh: DeviceMesh, coordinate: Sequence[int], dim: int) -> int:
    """Return the global rank that is first along one dimension of the mesh, as seen from here."""
    index = list(coordinate)
    index[dim] = 0
    return int(mesh.mesh[tuple(index)])


def _is_shard(placement: object) -> bool:
    return isinstance(placement, Shard) or type(placement).__name__ == "_StridedShard"


def _shares_memory(w: DTensor, base: DTensor) -> bool:
    own, other = local(w).untyped_storage(), local(base).untyped_storage()
    return own.data_ptr() == other.data_ptr()
