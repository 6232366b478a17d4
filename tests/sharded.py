"""What every process of tests/test_torch_sharded.py does: fill shards, compare with the whole.

Run as ``python sharded.py RANK WORLD FILE``: the processes meet over FILE. A check that fails
raises; one that passes is printed.
"""

import contextlib
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import _StridedShard

import deq_init.torch
from deq_init import errors

FAMILIES = ("random", "orthogonal", "goe", "antisymmetric")
TARGETS = ({"gain": 0.7}, {"spectral_norm": 0.9})


def equal(a, b, what):
    if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a, b):
        raise AssertionError(f"rank {dist.get_rank()}, {what}: {tuple(a.shape)} {tuple(b.shape)}")


@contextlib.contextmanager
def raises(error, words):
    try:
        yield
    except error as caught:
        if words not in str(caught):
            raise AssertionError(f"{words!r} not in {caught}") from None
    else:
        raise AssertionError(f"no {error.__name__}")


def spoiled(shape, mesh, placements, dtype=torch.float32):
    """A DTensor full of nan, placed by torch itself."""
    full = torch.full(shape, torch.nan, dtype=dtype)
    return distribute_tensor(full, mesh, placements, src_data_rank=None)


def own_part(full, w):
    """What torch itself places on this rank of the full matrix."""
    return distribute_tensor(full, w.device_mesh, w.placements, src_data_rank=None).to_local()


def check(family, shape, mesh, placements, dtype=torch.float32, **options):
    init = getattr(deq_init.torch, family + "_")
    full = init(torch.empty(shape, dtype=dtype), seed=7, **options)
    w = spoiled(shape, mesh, placements, dtype)
    if init(w, seed=7, **options) is not w:
        raise AssertionError("another tensor came back")
    equal(w.to_local(), own_part(full, w), f"{family} {shape} {placements} {options}")
    equal(w.full_tensor(), full, f"{family} {shape} {placements} {options}, gathered")


def meshes(world):
    yield init_device_mesh("cpu", (world,)), [[Shard(0)], [Shard(1)], [Replicate()]]
    if world == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        yield (
            mesh,
            [
                [Shard(0), Shard(1)],
                [Shard(1), Shard(0)],
                [Shard(0), Shard(0)],
                [Replicate(), Shard(1)],
                [_StridedShard(0, split_factor=2), Shard(0)],
            ],
        )


def seeds(world):
    """An integer seed: each shard is its slice of what the whole tensor would be."""
    for mesh, layouts in meshes(world):
        for placements in layouts:
            for family in FAMILIES:
                for options in TARGETS:
                    check(family, (8, 8), mesh, placements, **options)
                check(family, (11, 11), mesh, placements, gain=0.7)
                check(family, (12, 6), mesh, placements, blocks=2, gain=0.7)
                check(family, (4, 12), mesh, placements, blocks=(3, 1), gain=0.7)
            check("random", (600, 520), mesh, placements)
            check("goe", (600, 600), mesh, placements)
            for dtype in (torch.bfloat16, torch.float64):
                check("antisymmetric", (8, 8), mesh, placements, dtype)
            for family in ("random", "orthogonal"):
                check(family, (8, 4, 3, 3), mesh, placements)
    mesh = init_device_mesh("cpu", (world,))
    for axis in range(4):
        check("random", (3, 4, 2, 3), mesh, [Shard(axis)], blocks=(2, 1))
        check("orthogonal", (3, 4, 2, 3), mesh, [Shard(axis)])
    for family in FAMILIES:
        for axis in range(4):
            for options in TARGETS:
                options = {**options, "batch_axes": (2, 0), "blocks": 2, "in_axes": 1}
                check(family, (3, 4, 2, 8), mesh, [Shard(axis)], **options)
    for axis in range(3):
        w = distribute_tensor(torch.randn(5, 4, 3), mesh, [Shard(axis)])
        deq_init.torch.rescale_(w, spectral_norm=0.5, batch_axes=0)
        norms = torch.linalg.matrix_norm(w.full_tensor(), 2)
        torch.testing.assert_close(norms, torch.full((5,), 0.5), atol=1e-5, rtol=0)
    for family in FAMILIES:  # fewer rows than ranks: some shards are empty
        check(family, (1, 1), mesh, [Shard(0)])
        check(family, (world - 1, world - 1), mesh, [Shard(1)])


def without_seed(world):
    """No seed: the mesh's first rank decides, so shards differ and replicas do not."""
    rank = dist.get_rank()
    for mesh, layouts in meshes(world):
        for placements in layouts:
            for source in ("global", "generator"):
                found = []
                for state in (rank, 0):  # of different random states, the first rank's counts
                    torch.manual_seed(state)
                    generator = torch.Generator().manual_seed(state)
                    w = spoiled((12, 12), mesh, placements)
                    given = generator if source == "generator" else None
                    deq_init.torch.random_(w, generator=given)
                    found.append(w.full_tensor())
                equal(*found, f"{source} {placements}")
                everywhere = [torch.empty(12, 12) for _ in range(world)]
                dist.all_gather(everywhere, found[0])
                for other in everywhere:
                    equal(other, found[0], f"replicas, {source} {placements}")
                if len(found[0].unique()) != 144:
                    raise AssertionError("shards are alike")
                deq_init.torch.random_(w, generator=given)
                if torch.equal(w.full_tensor(), found[0]):
                    raise AssertionError("the random state did not go on")


def without_communication(world):
    """An integer seed at a gain: a rank needs no other, and draws no more than it holds."""
    drawn = []
    original = deq_init.torch.primitives.Portable.__getitem__

    def counting(field, region):
        result = original(field, region)
        drawn.append(result.numel())
        return result

    mesh = init_device_mesh("cpu", (world,))
    for family in ("random", "goe", "antisymmetric"):
        for placement in (Shard(0), Shard(1)):
            w = spoiled((40, 40), mesh, [placement])
            if dist.get_rank() == world - 1:  # the others do not take part
                deq_init.torch.primitives.Portable.__getitem__ = counting
                getattr(deq_init.torch, family + "_")(w, seed=7)
                deq_init.torch.primitives.Portable.__getitem__ = original
                if not 0 < sum(drawn) <= w.to_local().numel():
                    raise AssertionError(f"drew {sum(drawn)} for {w.to_local().numel()}")
                drawn.clear()
    dist.barrier()


def rescaling(world):
    for mesh, layouts in meshes(world):
        for placements in layouts:
            for kind in ("spectral_norm", "spectral_radius"):
                full = torch.arange(64.0).reshape(8, 8).cos()
                w = distribute_tensor(full.clone(), mesh, placements)
                deq_init.torch.rescale_(w, **{kind: 0.5})
                expected = deq_init.torch.rescale_(full, **{kind: 0.5})
                equal(w.full_tensor(), expected, f"rescale_ {placements} {kind}")


def refusals(world):
    mesh = init_device_mesh("cpu", (world,))
    partial = DTensor.from_local(torch.full((4, 4), 7.0), mesh, [Partial()])
    for call in (deq_init.torch.random_, lambda w: deq_init.torch.rescale_(w, spectral_norm=1.0)):
        with raises(errors.WeightError, "expected a DTensor of placements Shard or Replicate"):
            call(partial)
    equal(partial.to_local(), torch.full((4, 4), 7.0), "after a refusal")

    w = torch.nn.Parameter(spoiled((8, 8), mesh, [Shard(0)]))
    with raises(errors.WeightError, "that was copied from shards"):
        deq_init.torch.random_(w[:4])
    deq_init.torch.random_(w.T, gain=0.5, seed=1)  # a view of the same memory
    equal(w.full_tensor().T, deq_init.torch.random_(torch.empty(8, 8), 0.5, seed=1), "a transpose")

    uneven = DTensor.from_local(
        torch.zeros(1 + dist.get_rank(), 4), mesh, [Shard(0)], run_check=False,
        shape=torch.Size((world * (world + 1) // 2, 4)), stride=(4, 1),
    )  # fmt: skip
    if dist.get_rank() == 0:
        with raises(errors.WeightError, "expected a local shard of shape"):
            deq_init.torch.random_(uneven, seed=0)
    with raises(errors.ShapeError, "expected a square matrix"):
        deq_init.torch.goe_(spoiled((4, 6), mesh, [Shard(0)]))
    if dist.get_rank() == 0:
        outside = distribute_tensor(torch.zeros(4, 4), DeviceMesh("cpu", [0]), [Shard(0)])
    else:
        outside = DTensor.from_local(torch.zeros(0), DeviceMesh("cpu", [0]), [Shard(0)],
                                     shape=torch.Size((4, 4)), stride=(4, 1))  # fmt: skip
    deq_init.torch.random_(outside, seed=0)  # nothing to do for other ranks


class Block(torch.nn.Module):
    def __init__(self, width=16, dtype=torch.bfloat16):
        super().__init__()
        self.qkv = torch.nn.Linear(width, 3 * width, dtype=dtype)
        self.out = torch.nn.Linear(width, width, dtype=dtype)
        self.norm = torch.nn.LayerNorm(width, dtype=dtype)
        self.mlp = torch.nn.Linear(width, width, bias=False, dtype=dtype)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.mT, -1) @ v)
        return x + self.mlp(torch.relu(x))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(32, 16, dtype=torch.bfloat16)
        self.blocks = torch.nn.ModuleList([Block(), Block()])

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return x


def fsdp(world):
    """Built on the meta device, sharded, given memory, initialized: as the unsharded module is."""

    def chosen(name):
        return name.endswith(("qkv.weight", "mlp.weight", "out.weight"))

    where = {"*.qkv.weight": {"blocks": 3}, "*.mlp.weight": {"family": "goe"}, "*.out.weight": {}}
    options = {"gain": 0.8, "where": where, "seed": 3}
    whole = Model()
    deq_init.torch.initialize_(whole, "orthogonal", verbose=False, **options)
    with torch.device("meta"):
        model = Model()
    untouched = deq_init.torch.initialize_(model, "orthogonal", verbose=False, **options)
    if untouched.names:
        raise AssertionError(f"set on meta: {untouched.names}")
    mesh = init_device_mesh("cpu", (world,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    summary = deq_init.torch.initialize_(model, "orthogonal", **options)  # prints
    expected = dict(whole.named_parameters())
    if summary.names != tuple(filter(chosen, expected)):
        raise AssertionError(summary.names)
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            raise AssertionError(f"{name} is no DTensor")
        if chosen(name):
            equal(parameter.full_tensor(), expected[name].detach(), name)
    for name, parameter in model.named_parameters():
        if not chosen(name):
            parameter.data.copy_(spoiled(parameter.shape, mesh, [Replicate()], torch.bfloat16))
            parameter.data.fill_(1.0)
            expected[name].data.fill_(1.0)
    tokens = torch.arange(8).reshape(2, 4)
    with torch.no_grad():
        equal(model(tokens), whole(tokens), "forward pass")
    # After a forward pass the root's parameters are gathered copies.
    deq_init.torch.initialize_(model, "random", where="embed.weight", seed=5, verbose=False)
    deq_init.torch.initialize_(whole, "random", where="embed.weight", seed=5, verbose=False)
    with torch.no_grad():
        equal(model(tokens), whole(tokens), "forward pass after the second initialization")
    layer = torch.nn.Linear(8, 8)
    fully_shard(layer, mesh=mesh)
    for measure in (deq_init.torch.jacobian_norm, deq_init.torch.check):
        try:  # it would crash in the second product
            measure(lambda z: layer(z).tanh(), torch.zeros(2, 8))
        except errors.FunctionError as error:
            if "full_tensor" not in str(error):
                raise
        else:
            raise AssertionError("measured an FSDP2 module")


def tensor_parallel(world):
    """FSDP2 over tensor parallelism: its placements are strided."""
    if world != 4:
        return
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    plan = {"qkv": ColwiseParallel(), "out": RowwiseParallel()}
    model = parallelize_module(Block(), mesh["tp"], plan)
    fully_shard(model, mesh=mesh["dp"])
    whole = Block()
    for module in (model, whole):
        deq_init.torch.initialize_(module, "orthogonal", seed=1, blocks=1, verbose=False)
    if not any(isinstance(p, _StridedShard) for p in model.qkv.weight.placements):
        raise AssertionError(f"not strided: {model.qkv.weight.placements}")
    for name in ("qkv", "out", "mlp"):
        found = getattr(model, name).weight.full_tensor()
        equal(found, getattr(whole, name).weight.detach(), name)


CHECKS = (seeds, without_seed, without_communication, rescaling, refusals, fsdp, tensor_parallel)


def main():
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world
    )
    for part in CHECKS:
        part(world)
        print("checked", part.__name__, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
