"""What PyTorch has and other frameworks have not: views, tracing, modes, faults half-way."""

import shutil

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

import deq_init.torch
from deq_init import errors
from deq_init.torch import primitives

from backends import FAMILIES, SQUARE


def init(family):
    return getattr(deq_init.torch, family + "_")


def sample(family, shape=(8, 8), dtype=torch.float32, **options):
    return init(family)(torch.full(shape, torch.nan, dtype=dtype), 0.7, seed=7, **options)


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("shape", "options"), [((8, 8), {}), ((16, 8), {"blocks": 2}), ((8, 16), {"blocks": (2, 1)})]
)
def test_compiled_with_a_seed(compiled, family, shape, options):
    def fill(w):
        return init(family)(w, 0.7, seed=7, **options) + 1

    w = torch.full(shape, torch.nan)
    result = compiled(fill)(w)
    assert torch.equal(w, sample(family, shape, **options))
    assert torch.equal(result, w + 1)


def test_compiled_without_a_seed(compiled, family):
    def fill(v, w):
        init(family)(v)
        return init(family)(w)

    v, w, first, second = torch.zeros(4, 8, 8)
    torch.manual_seed(0)
    fill(first, second)
    torch.manual_seed(0)
    compiled(fill)(v, w)
    assert torch.equal(v, first)
    assert torch.equal(w, second)
    assert not torch.equal(v, w)


def test_compiled_on_parameters_and_parts_of_them(compiled):
    layer = nn.Linear(8, 24)

    def fill(layer):
        for i in range(3):
            deq_init.torch.goe_(layer.weight[8 * i : 8 * i + 8], 0.7, seed=7)

    compiled(fill)(layer)
    assert torch.equal(layer.weight.detach(), sample("goe").repeat(3, 1))
    assert layer.weight.is_leaf
    assert layer.weight.requires_grad


def test_compiled_with_arguments_that_change(compiled):
    f = compiled(lambda w, gain, seed: deq_init.torch.random_(w, gain, seed=seed))
    for gain, seed in ((0.5, 1), (0.25, 2), (0.75, 2**40), (0.8, 2**64 - 1)):
        expected = deq_init.torch.random_(torch.zeros(4, 4), gain, seed=seed)
        assert torch.equal(f(torch.zeros(4, 4), gain, seed), expected)


def test_compiled_targets_and_rescaling(compiled):
    def fill(w):
        deq_init.torch.orthogonal_(w, spectral_norm=0.6, determinant=-1, seed=3)
        return deq_init.torch.rescale_(w, spectral_radius=0.3)

    w = compiled(fill)(torch.zeros(6, 6))
    assert torch.equal(w, fill(torch.zeros(6, 6)))
    assert torch.allclose(w @ w.T, 0.09 * torch.eye(6), atol=1e-6)
    assert torch.linalg.det(w) < 0


def test_compiled_with_breaks_where_it_must(compiled):
    # A generator cannot be part of a graph: without fullgraph, PyTorch runs that part uncompiled.
    f = torch.compile(deq_init.torch.random_, backend="aot_eager")
    w = f(torch.zeros(4, 4), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(w, deq_init.torch.random_(torch.zeros(4, 4), generator=generator))
    with pytest.raises(errors.ShapeError, match="expected a square matrix"):
        torch.compile(deq_init.torch.goe_, backend="aot_eager")(torch.zeros(4, 6))


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_by_inductor():
    torch._dynamo.reset()

    def fill(w):
        for i, family in enumerate(FAMILIES):
            init(family)(w[i], 0.7, seed=7)
        return 2 * w

    w = torch.zeros(4, 300, 300)
    doubled = torch.compile(fill, fullgraph=True)(w)
    for i, family in enumerate(FAMILIES):
        assert torch.equal(w[i], sample(family, (300, 300)))
    assert torch.equal(doubled, 2 * w)
    torch._dynamo.reset()


def test_tensors_without_data(family):
    meta = torch.empty(8, 8, device="meta")
    state = torch.get_rng_state()
    assert init(family)(meta) is meta
    with FakeTensorMode():
        fake = torch.empty(8, 8)
        assert init(family)(fake, seed=7) is fake
        assert deq_init.torch.rescale_(fake, spectral_norm=1.0) is fake
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(errors.ShapeError):
        init(family)(torch.empty(8, device="meta"))
    with torch.device("meta"):
        layer = nn.Linear(8, 8)
    layer.to_empty(device="cpu")
    assert torch.equal(init(family)(layer.weight, 0.7, seed=7).detach(), sample(family))


def strided(name):
    """A tensor of 8 rows and columns, and what it is a view of."""
    base = torch.full((16, 17), 5.0)
    return {
        "slice": (base[2:10, 3:11], base),
        "steps": (base[::2, 1::2], base),
        "transpose": (base[3:11, 2:10].T, base),
        "diagonal": (base.as_strided((8, 8), (18, 1)), base),
    }[name]


@pytest.mark.parametrize("name", ["slice", "steps", "transpose", "diagonal"])
def test_strides(family, name):
    w, base = strided(name)
    outside = torch.ones_like(base, dtype=torch.bool)
    torch.as_strided(outside, w.shape, w.stride(), w.storage_offset())[:] = False
    init(family)(w, 0.7, seed=7)
    assert torch.equal(w, sample(family))
    assert (base[outside] == 5).all()
    deq_init.torch.rescale_(w, spectral_norm=2.0)
    assert torch.linalg.matrix_norm(w, 2).item() == pytest.approx(2, rel=1e-5)
    assert (base[outside] == 5).all()


@pytest.mark.parametrize("family", ["random", "orthogonal"])
def test_channels_last(family):
    w = torch.zeros(8, 4, 3, 3).to(memory_format=torch.channels_last)
    init(family)(w, 0.7, seed=7)
    assert torch.equal(w, sample(family, (8, 4, 3, 3)))
    assert w.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_tensors_that_hold_no_entries_of_their_own_are_refused(family):
    with torch.inference_mode():
        inference = torch.ones(8, 8)
    lazy = nn.LazyLinear(8).weight
    overlapping = [
        torch.full((1, 8), 5.0).expand(8, 8),
        torch.zeros(16).as_strided((8, 8), (1, 1)),
        torch.zeros(64).as_strided((5, 5), (3, 4)),  # 4 * 3 + 0 * 4 = 0 * 3 + 3 * 4
    ]
    others = [torch.eye(8).to_sparse(), torch.eye(8).to_mkldnn(), inference, lazy]
    others += [
        torch.nested.nested_tensor([torch.ones(2, 2), torch.ones(3, 2)], layout=torch.jagged),
        torch.quantize_per_tensor(torch.eye(8), 0.1, 0, torch.qint8),
    ]
    for w in [*overlapping, *others]:
        with pytest.raises(errors.WeightError, match="own entries, received"):
            init(family)(w, seed=7)
        with pytest.raises(errors.WeightError, match="own entries, received"):
            deq_init.torch.rescale_(w, spectral_norm=0.5)
    assert (overlapping[0] == 5).all()
    assert not overlapping[1].any()
    separate = torch.zeros(64).as_strided((3, 2), (2, 3))  # 0 2 4 and 3 5 7: no place twice
    assert torch.equal(deq_init.torch.random_(separate, 0.7, seed=7), sample("random", (3, 2)))


def test_leaves_stay_leaves(family):
    w = nn.Parameter(torch.zeros(8, 8))
    version = w._version
    assert init(family)(w, 0.7, seed=7) is w
    assert torch.equal(w.detach(), sample(family))
    assert w.is_leaf
    assert w.requires_grad
    assert w.grad_fn is None
    assert w._version > version  # so that autograd notices that saved values are stale


def test_inference_tensors(family):
    with torch.inference_mode():
        w = init(family)(torch.zeros(8, 8), 0.7, seed=7)
        assert w.is_inference()
        assert torch.equal(w, sample(family))


class Labelled(torch.Tensor):
    pass


def test_subclasses(family):
    w = torch.zeros(8, 8).as_subclass(Labelled)
    assert init(family)(w, 0.7, seed=7) is w
    assert torch.equal(w.as_subclass(torch.Tensor), sample(family))


def test_modes_do_not_matter(family):
    expected = sample(family, (300, 300), spectral_norm=None)
    torch.manual_seed(0)
    native = init(family)(torch.zeros(300, 300))
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        w = torch.zeros(300, 300, device="cpu")
        assert torch.equal(init(family)(w, 0.7, seed=7), expected)
    torch.set_default_dtype(torch.float64)
    try:
        w = torch.zeros(300, 300, dtype=torch.float32)
        assert torch.equal(init(family)(w, 0.7, seed=7), expected)
        torch.manual_seed(0)
        assert torch.equal(init(family)(w), native)
    finally:
        torch.set_default_dtype(torch.float32)


COMPUTED = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.5),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_are_refused(family, name):
    module = COMPUTED[name](nn.Linear(8, 8))
    before = [p.detach().clone() for p in module.parameters()]
    for call in (init(family), lambda w: deq_init.torch.rescale_(w, spectral_norm=1.0)):
        for weight in (module.weight, module.weight[:8], module.weight.T):
            with pytest.raises(errors.WeightError, match=r"computed from others.*is lost"):
                call(weight)
    assert all(map(torch.equal, before, module.parameters()))


def test_views_of_parameters_are_not_computed_weights(family):
    w = nn.Parameter(torch.zeros(24, 8))
    for part in (w[8:16], w.view(3, 8, 8)[1], w.T[:, 8:16].T, w.detach()[8:16], w.data[8:16]):
        with torch.no_grad():
            w.zero_()
        init(family)(part, 0.7, seed=7)
        assert torch.equal(w[8:16].detach(), sample(family))
        assert not w[:8].any()


class Fault(TorchDispatchMode):
    """Raises before the n-th operation."""

    def __init__(self, n, error):
        super().__init__()
        self.left = n
        self.error = error

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.left == 0:
            raise self.error
        self.left -= 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("n", "scale", "source", "error"),
    [
        (12, {"spectral_norm": 0.9}, "seed", torch.OutOfMemoryError),
        (12, {"spectral_norm": 0.9}, "generator", MemoryError),
        (12, {"blocks": 2, "gain": 0.9}, "seed", KeyboardInterrupt),
        (300, {"gain": 0.9}, "generator", torch.OutOfMemoryError),  # by panels
    ],
)
def test_a_fault_at_any_operation_leaves_the_tensor(family, n, scale, source, error):
    if "blocks" in scale and family in SQUARE:
        scale = {"blocks": 1, "gain": 0.9}
    before = torch.full((n, n), 7.0)
    for step in range(0, 1000, 1 if n < 100 else 7):
        w = before.clone()
        given = {"seed": 7} if source == "seed" else {"generator": torch.Generator()}
        try:
            with Fault(step, error):
                init(family)(w, **scale, **given)
        except error:
            assert torch.equal(w, before)
        else:
            break
    assert not (w == 7).any()
    assert step > 1


def test_a_fault_in_the_draws_leaves_the_tensor(family, monkeypatch):
    def fault(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(primitives.Portable, "__getitem__", fault)
    monkeypatch.setattr(primitives.Portable, "trapezoid", fault)
    monkeypatch.setattr(primitives.Native, "__getitem__", fault)
    w = torch.full((8, 8), 7.0)
    for given in ({"seed": 7}, {}, {"generator": torch.Generator()}):
        with pytest.raises(KeyboardInterrupt):
            init(family)(w, **given)
        assert torch.equal(w, torch.full((8, 8), 7.0))


def grouped_map(layer):
    """The matrix of one position, found by passing unit vectors through the layer."""
    size = layer.in_channels * layer.kernel_size[0]
    basis = torch.eye(size).reshape(size, layer.in_channels, layer.kernel_size[0])
    with torch.no_grad():
        return layer(basis)[:, :, 0].T


@pytest.mark.parametrize("groups", [3, 6])  # 6: depthwise, a kernel of its own for each channel
@pytest.mark.parametrize("out", [6, 48])
def test_each_group_of_a_convolution_is_a_matrix(groups, out):
    layer = nn.Conv1d(6, out, 2, groups=groups, bias=False)
    deq_init.torch.orthogonal_(layer.weight, 0.7, blocks=groups, seed=1)
    whole = grouped_map(layer).reshape(groups, out // groups, groups, 12 // groups)
    for i in range(groups):
        for j in range(groups):
            w = whole[i, :, j]
            gram = w @ w.T if len(w) < w.shape[1] else w.T @ w
            assert torch.allclose(gram, 0.49 * torch.eye(len(gram)) * (i == j), atol=1e-5)
    assert not torch.allclose(whole[0, :, 0], whole[1, :, 1])  # and independent


@pytest.mark.parametrize("value", [torch.tensor(True), torch.tensor([1]), torch.tensor(1j)])
def test_tensors_that_are_not_one_real_number_are_no_seed_and_no_gain(value):
    w = torch.zeros(4, 4)
    with pytest.raises(errors.SeedError, match="received tensor"):
        deq_init.torch.goe_(w, seed=value)
    with pytest.raises(errors.ScaleError, match="received tensor"):
        deq_init.torch.goe_(w, value)
    with pytest.raises(errors.SeedError, match=r"torch\.Generator, received 5"):
        deq_init.torch.goe_(w, generator=5)
    assert not w.any()
    seeded = deq_init.torch.goe_(torch.zeros(4, 4), torch.tensor(0.5), seed=torch.tensor(3))
    assert torch.equal(seeded, deq_init.torch.goe_(w, 0.5, seed=3))
