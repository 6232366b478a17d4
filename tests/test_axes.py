"""Stacks of matrices, and matrices whose inputs and outputs are several axes, in every backend."""

import itertools
import math

import jax
import keras
import numpy as np
import pytest
import scipy.stats
import torch

import deq_init.jax
import deq_init.keras
import deq_init.numpy
import deq_init.torch
from deq_init import draws, errors

from backends import KERAS_CLASSES

WITHIN = 1e-5


def single(family, shape, seed, *numbers, **scale):
    """The matrix of one key: the seed's with these numbers folded in, by NumPy."""
    key = draws.key_from_seed(seed)
    for number in numbers:
        key = draws.fold_in(key, number)
    return getattr(deq_init.numpy, family)(shape, seed=key[0] << 32 | key[1], **scale)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=WITHIN * np.abs(expected).max())


@pytest.mark.parametrize("scale", [{"gain": 0.9}, {"spectral_norm": 0.5}], ids=str)
def test_slices_are_the_matrices_of_their_keys(backend, family, scale):
    """Row-major over batch_axes as they are given; each slice has the scale."""
    w = backend.sample(family, (3, 6, 2, 6), seed=5, batch_axes=(2, 0), **scale)
    for i, j in itertools.product(range(3), range(2)):
        close(w[i, :, j], single(family, (6, 6), 5, 3 * j + i, **scale))
        if "spectral_norm" in scale:
            assert abs(np.linalg.norm(w[i, :, j].astype(float), 2) - 0.5) < 1e-5
        elif family == "orthogonal":
            close(w[i, :, j] @ w[i, :, j].T, 0.81 * np.eye(6))


def test_axes_in_any_order_with_blocks(backend, family):
    """An array (heads, stack, in, entries): each slice is two blocks of outputs (heads, entries).

    The field of normals lies as the array does: outputs first, for they come first in it.
    """
    w = backend.sample(family, (4, 3, 6, 3), seed=8, batch_axes=1, in_axes=2, blocks=2, gain=0.9)
    for i, block in itertools.product(range(3), range(2)):
        expected = single(family, (6, 6), 8, i, block, gain=0.9)
        close(w[2 * block : 2 * block + 2, i].transpose(0, 2, 1).reshape(6, 6), expected)


@pytest.mark.parametrize("named", [{"in_axes": 0}, {"out_axes": (1, 2)}, {"in_axes": -3}])
def test_heads_have_the_fan_in_of_their_inputs(backend, named):
    """Kernels (in, heads, dim): the sum of squares times in is chi-square, false alarms 1e-6."""
    w = backend.sample("random", (32, 8, 40), seed=1, **named).astype(np.float64)
    law = scipy.stats.chi2(w.size)
    assert 2 * min(law.cdf(32 * (w**2).sum()), law.sf(32 * (w**2).sum())) > 1e-6
    w = backend.sample("orthogonal", (12, 4, 8), seed=1, **named).astype(np.float64)
    np.testing.assert_allclose(np.einsum("ihd,jhd->ij", w, w), np.eye(12), atol=1e-5)


def test_the_order_of_axes_is_that_of_the_flattened_vector(backend):
    """A GOE matrix of (a, b) inputs and (b, a) outputs is symmetric in that order."""
    w = backend.sample("goe", (2, 3, 3, 2), seed=4, in_axes=(0, 1), out_axes=(3, 2))
    np.testing.assert_array_equal(w, w.transpose(3, 2, 1, 0))


def test_stacks_are_what_blocks_of_one_slice_were():
    """For arrays (..., in, out), with the keys of today's blocks=(k, 0)."""
    init = deq_init.jax.orthogonal(0.9, batch_axes=0)
    old = deq_init.jax.orthogonal(0.9, blocks=(3, 0))
    w = init(jax.random.key(2), (3, 5, 7))
    np.testing.assert_allclose(w, old(jax.random.key(2), (3, 5, 7)), atol=1e-6)


def test_rescaling_gives_each_slice_its_own_factor(backend):
    if backend.rescale is None:
        pytest.skip("Keras has no rescale")
    w = np.random.default_rng(0).standard_normal((5, 2, 7)).astype(np.float32)
    found = backend.rescale(w, spectral_norm=0.7, batch_axes=1)
    for i in range(2):
        expected = w[:, i] * (0.7 / np.linalg.norm(w[:, i].astype(float), 2))
        np.testing.assert_allclose(found[:, i], expected, rtol=2e-5)
    heads = backend.rescale(w, spectral_norm=0.7, in_axes=0)
    assert abs(np.linalg.norm(heads.reshape(5, 14).astype(float), 2) - 0.7) < 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_axes": 3}, r"expected batch_axes as an axis of the shape \(4, 6, 6\)"),
        ({"in_axes": 1.5}, "expected in_axes as an axis"),
        ({"batch_axes": True}, "received True"),
        ({"batch_axes": (0, 0)}, "with axis 0 twice"),
        ({"batch_axes": 0, "out_axes": -3}, "with axis 0 twice"),
        ({"in_axes": 0, "out_axes": 1}, "without axis 2"),
        ({"batch_axes": (0, 1)}, "at least two axes beside batch_axes"),
        ({"batch_axes": 0, "in_axes": (), "out_axes": ()}, "without axis 1"),
        ({"batch_axes": (0, 1, 2), "in_axes": ()}, "expected an axis beside batch_axes"),
        ({"batch_axes": 0, "blocks": (2, 0)}, "blocks along an axis of the matrices"),
    ],
)
def test_axes_that_are_none(backend, options, words):
    with pytest.raises(errors.ShapeError, match=words):
        backend.sample("random", (4, 6, 6), **options)


def test_blocks_of_one_output_in_a_stack_are_refused(backend):
    """For (k, out, in) arrays blocks=(k, 0) flattened each matrix to a vector of fan-in out·in."""
    axis, stack = (0, (4, 6, 6)) if backend.layout == "out_in" else (2, (6, 6, 4))
    with pytest.raises(errors.ShapeError, match=f"Pass batch_axes={axis} for a stack of 4"):
        backend.sample("orthogonal", stack, blocks=(4, axis))
    depthwise = (4, 1, 3, 3) if backend.layout == "out_in" else (3, 3, 1, 4)
    w = backend.sample("orthogonal", depthwise, blocks=4, seed=0)
    kernels = w.reshape(4, 9) if backend.layout == "out_in" else w.reshape(9, 4).T
    np.testing.assert_allclose(np.linalg.norm(kernels, axis=1), 1, atol=1e-5)
    w = backend.sample("orthogonal", (4, 6, 6), batch_axes=0, in_axes=(1, 2), seed=0)
    np.testing.assert_allclose(np.linalg.norm(w.reshape(4, 36), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 0), (3, 0, 4)])
def test_empty_stacks(backend, shape):
    assert backend.sample("orthogonal", shape, batch_axes=0).shape == shape


def test_half_precision_meets_the_target_in_each_slice(backend):
    w = backend.sample("goe", (3, 24, 24), dtype="bfloat16", batch_axes=0, spectral_norm=0.9)
    for one in w.astype(np.float64):
        assert abs(np.linalg.norm(one, 2) - 0.9) < 0.9 * 2**-8


def test_torch_compiled_meta_and_views():
    def fill(w):
        deq_init.torch.goe_(w, 0.9, batch_axes=(0, 3), seed=3)
        return deq_init.torch.rescale_(w, spectral_norm=0.5, batch_axes=(0, 3))

    compiled = torch.compile(fill, fullgraph=True, backend="aot_eager")
    w, expected = compiled(torch.empty(2, 5, 5, 3)), fill(torch.empty(2, 5, 5, 3))
    assert torch.equal(w, expected)
    norms = torch.linalg.matrix_norm(w.permute(0, 3, 1, 2).double(), 2)
    torch.testing.assert_close(norms, torch.full((2, 3), 0.5).double(), atol=1e-5, rtol=0)
    strided = torch.empty(3, 5, 2, 5).permute(2, 1, 3, 0)
    assert torch.equal(fill(strided), expected)
    assert deq_init.torch.goe_(torch.empty(2, 5, 5, device="meta"), batch_axes=0).is_meta


def test_jax_transformations():
    init = deq_init.jax.orthogonal(0.9, batch_axes=1, in_axes=0)
    shape, key = (4, 3, 2, 2), jax.random.key(7)
    w = init(key, shape)
    assert jax.eval_shape(lambda k: init(k, shape), key).shape == shape
    keys = jax.random.split(key, 2)
    stacked = jax.jit(jax.vmap(lambda k: init(k, shape)))(keys)
    np.testing.assert_allclose(stacked[1], init(keys[1], shape), atol=1e-6)
    for i in range(3):
        close(np.asarray(w[:, i]).reshape(4, 4), single("orthogonal", (4, 4), 7, i, gain=0.9))
    native = deq_init.jax.random(batch_axes=0, blocks=2)(jax.random.key(1, impl="rbg"), (2, 3, 8))
    assert len(np.unique(native)) == 48


def test_keras_configs_come_back(family):
    given = {"batch_axes": (0, 1), "in_axes": 2, "blocks": 1, "seed": 3}
    init = KERAS_CLASSES[family](0.8, **given)
    again = keras.initializers.deserialize(keras.initializers.serialize(init))
    assert again.get_config() == init.get_config()
    a, b = (keras.ops.convert_to_numpy(one((2, 2, 4, 4))) for one in (init, again))
    np.testing.assert_array_equal(a, b)
    close(a[1, 0], single(family, (4, 4), 3, 2, 0, gain=0.8))


# Whole PyTorch modules.


def torch_initialize(module, family="orthogonal", **options):
    return deq_init.torch.initialize_(module, family, 0.9, verbose=False, seed=0, **options)


def notes(summary):
    return {entry.name: entry.note for entry in summary.entries}


class Conv1D(torch.nn.Module):
    """Of the shape and attributes of transformers.pytorch_utils.Conv1D: y = x @ weight + bias."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = torch.nn.Parameter(torch.full((nx, nf), torch.nan))
        self.bias = torch.nn.Parameter(torch.zeros(nf))


class MixtralExperts(torch.nn.Module):
    """Stacked experts, of transformers 5: (E, out, in); or (E, in, out), as GPT-OSS's."""

    def __init__(self, hidden, inner, transposed=False):
        super().__init__()
        up, down = (4, 2 * inner, hidden), (4, hidden, inner)
        if transposed:
            up, down = (4, hidden, 2 * inner), (4, inner, hidden)
        self.gate_up_proj = torch.nn.Parameter(torch.full(up, torch.nan))
        self.down_proj = torch.nn.Parameter(torch.full(down, torch.nan))


def test_torch_conv1d_of_transformers():
    """Weights (in, out) of 128 and 64 inputs: variance gain²/in, chi-square, false alarms 1e-6."""
    model = torch.nn.ModuleDict({"c_fc": Conv1D(512, 128), "c_proj": Conv1D(64, 512)})
    summary = torch_initialize(model, "random")
    for name, inputs in (("c_fc", 128), ("c_proj", 512)):
        w = model[name].weight.detach().double().numpy()
        law, statistic = scipy.stats.chi2(w.size), inputs * (w**2).sum() / 0.81
        assert 2 * min(law.cdf(statistic), law.sf(statistic)) > 1e-6
    assert notes(summary)["c_fc.weight"] == "random, gain 0.9, 512 x 128"
    torch_initialize(model, where={"c_fc.weight": {"blocks": 4}})
    for block in model["c_fc"].weight.detach().chunk(4, 1):
        torch.testing.assert_close(block @ block.T, 0.81 * torch.eye(128), atol=1e-5, rtol=0)


@pytest.mark.parametrize("transposed", [False, True])
def test_torch_stacked_experts(transposed):
    model = torch.nn.ModuleDict({"experts": MixtralExperts(32, 24, transposed)})
    summary = torch_initialize(model)
    assert notes(summary)["experts.gate_up_proj"] == "orthogonal, gain 0.9, 4 of 48 x 32"
    assert notes(summary)["experts.down_proj"] == "orthogonal, gain 0.9, 4 of 32 x 24"
    for w in model.parameters():
        values = torch.linalg.svdvals(w.detach())
        torch.testing.assert_close(values, torch.full_like(values, 0.9), atol=1e-5, rtol=0)
    torch_initialize(model, "random")
    # 4 · 48 · 32 entries: the variance times fan-in is within 6 sd of gain², sd = sqrt(2/6144).
    assert abs(model["experts"].gate_up_proj.var().item() * 32 / 0.81 - 1) < 6 * (2 / 6144) ** 0.5


def test_torch_weights_of_no_known_layer_are_left_alone_or_an_error():
    model = torch.nn.Module()
    model.experts = torch.nn.Parameter(torch.ones(4, 32, 16))
    model.linear = torch.nn.Linear(4, 4)
    summary = torch_initialize(model)
    assert summary.names == ("linear.weight",)
    assert notes(summary)["experts"].endswith(
        "name it in where= with batch_axes=, in_axes= or out_axes="
    )
    for options in ({"where": "experts"}, {"where": {"experts": {"blocks": 4}}}):
        with pytest.raises(errors.ShapeError, match="experts: expected a weight whose axes are"):
            torch_initialize(model, **options)
    with pytest.raises(errors.ShapeError, match="Pass batch_axes=0 for a stack of 4"):
        torch_initialize(model, where={"experts": {"blocks": (4, 0)}})
    assert bool((model.experts == 1).all())
    summary = torch_initialize(model, where={"experts": {"batch_axes": 0}})
    assert notes(summary)["experts"] == "orthogonal, gain 0.9, 4 of 32 x 16"
    for w in model.experts.detach():
        torch.testing.assert_close(w.T @ w, 0.81 * torch.eye(16), atol=1e-5, rtol=0)


def lengths_grow(layer, x, factor=0.9):
    y = layer(x) - layer(torch.zeros_like(x))
    torch.testing.assert_close(y.norm(), factor * x.norm(), atol=0, rtol=1e-5)


def test_torch_convolutions_of_every_kind():
    nn = torch.nn
    model = nn.ModuleDict(
        {
            "grouped": nn.Conv2d(6, 12, 2, groups=2),
            "depthwise": nn.Conv2d(6, 6, 2, groups=6),
            "one output for each group": nn.Conv1d(6, 3, 1, groups=3),
            "patches": nn.ConvTranspose2d(8, 3, 2, stride=2),
            "patches of groups": nn.ConvTranspose1d(8, 8, 2, stride=2, groups=2),
            "transposed": nn.ConvTranspose1d(4, 12, 3),
            "overlapping": nn.ConvTranspose1d(4, 12, 4, stride=2),
            "bilinear": nn.Bilinear(3, 4, 12),
        }
    )
    summary = torch_initialize(model)
    found = {name.removesuffix(".weight"): note for name, note in notes(summary).items()}
    said = {name: note.split(", ", 2)[-1] for name, note in found.items()}
    assert said["grouped"] == "2 blocks of 6 x 12 along axis 0"
    assert said["depthwise"] == "6 of 1 x 4"
    assert said["one output for each group"] == "3 of 1 x 2"
    assert said["patches"] == "12 x 8"
    assert said["patches of groups"] == "2 blocks of 8 x 4 along axis 0"
    assert said["transposed"] == "12 x 12"
    assert said["bilinear"] == "12 x 12"
    assert found["overlapping"].startswith("a transposed convolution whose stride is neither 1")
    torch.manual_seed(0)
    # An isometry times the gain: from each patch to its outputs, or from each input to its patch.
    lengths_grow(model["patches"], torch.randn(2, 8, 3, 5))
    lengths_grow(model["patches of groups"], torch.randn(2, 8, 5))
    one = nn.functional.conv_transpose1d(torch.eye(4)[..., None], model["transposed"].weight)
    assert one.shape == (4, 12, 3)
    w = model["transposed"].weight.detach().permute(1, 0, 2).reshape(12, 12)
    torch.testing.assert_close(w @ w.T, 0.81 * torch.eye(12), atol=1e-5, rtol=0)
    kernels = model["depthwise"].weight.detach().reshape(6, 4)
    torch.testing.assert_close(kernels.norm(dim=1), torch.full((6,), 0.9), atol=1e-5, rtol=0)
    for block in model["grouped"].weight.detach().reshape(2, 6, 12):
        torch.testing.assert_close(block @ block.T, 0.81 * torch.eye(6), atol=1e-5, rtol=0)
    a, b = torch.randn(3), torch.randn(4)
    y = model["bilinear"](a, b) - model["bilinear"].bias
    torch.testing.assert_close(y.norm(), 0.9 * a.norm() * b.norm(), atol=0, rtol=1e-5)


# JAX pytrees.


def jax_initialize(params, family="orthogonal", **options):
    key = jax.random.key(1)
    return deq_init.jax.initialize(params, family, 0.9, key=key, verbose=False, **options)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def test_jax_neighbours_tell_what_the_axes_are():
    """Shapes as linen gives them; what each weight is taken for, by hand."""
    params = {
        "scan": {"kernel": zeros(3, 64, 64), "bias": zeros(3, 64)},
        "heads": {"kernel": zeros(64, 4, 16), "bias": zeros(4, 16)},
        "conv": {"kernel": zeros(3, 2, 5, 8), "bias": zeros(8)},
        "scanned_conv": {"kernel": zeros(6, 3, 5, 8), "bias": zeros(6, 8)},
        "scanned_heads": {"kernel": zeros(2, 12, 4, 3), "bias": zeros(2, 4, 3)},
        "attention": {"query": {"kernel": zeros(8, 2, 4)}, "out": {"kernel": zeros(2, 4, 8)}},
        "net": {"Conv_0": {"kernel": zeros(3, 5, 8)}},
        "block": {"Conv_0": {"kernel": zeros(7, 3, 5, 8)}, "BatchNorm_0": {"scale": zeros(7, 8)}},
        "square": {"kernel": zeros(8, 8, 4), "bias": zeros(8, 4)},
        "bare": {"kernel": zeros(12, 8, 8)},
    }
    params, summary = jax_initialize(params)
    said = {
        name: note.removeprefix("orthogonal, gain 0.9, ") for name, note in notes(summary).items()
    }
    assert {name: note for name, note in said.items() if name in summary.names} == {
        "scan/kernel": "3 of 64 x 64",
        "heads/kernel": "64 x 64",
        "conv/kernel": "8 x 30",
        "scanned_conv/kernel": "6 of 8 x 15",
        "scanned_heads/kernel": "2 of 12 x 12",
        "attention/query/kernel": "8 x 8",
        "attention/out/kernel": "8 x 8",
        "net/Conv_0/kernel": "8 x 15",
    }
    assert said["square/kernel"].startswith("a bias that fits several readings: name it")
    assert said["bare/kernel"].startswith("no bias or name that tells")
    assert "block/Conv_0/kernel" not in summary.names
    for w in np.asarray(params["scan"]["kernel"]):
        np.testing.assert_allclose(w @ w.T, 0.81 * np.eye(64), atol=1e-5)
    with pytest.raises(errors.ShapeError, match="bare/kernel: expected a weight whose axes"):
        jax_initialize(params, where="bare/kernel")
    for own in ({"batch_axes": 0}, {"blocks": (12, 0)}):
        params, _ = jax_initialize(params, where={"bare/kernel": own})
        for w in np.asarray(params["bare"]["kernel"]):
            np.testing.assert_allclose(w @ w.T, 0.81 * np.eye(8), atol=1e-5)


@pytest.mark.parametrize("own", [{}, {"blocks": (3, 0)}, {"batch_axes": 0}], ids=str)
@pytest.mark.parametrize("family", ["orthogonal", "goe"])
def test_equinox_ensembles(family, own):
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    model = eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 8, use_bias=False, key=key))(keys)
    where = {"weight": own} if own else None
    model, summary = jax_initialize(model, family, layout="out_in", where=where)
    assert summary.entries[0].note == f"{family}, gain 0.9, 3 of 8 x 8"
    for w in np.asarray(model.weight):
        expected = w.T if family == "goe" else 0.81 * np.linalg.inv(w.astype(float)).T
        np.testing.assert_allclose(w, expected, atol=1e-5)


def test_equinox_convolutions():
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(0)
    model = [
        eqx.nn.Conv2d(4, 6, 2, groups=2, use_bias=False, key=key),
        eqx.nn.ConvTranspose1d(6, 3, 2, stride=2, key=key),
        eqx.nn.ConvTranspose1d(6, 3, 4, stride=2, key=key),
        eqx.filter_vmap(lambda k: eqx.nn.Conv1d(4, 6, 3, key=k))(jax.random.split(key, 5)),
    ]
    model, summary = jax_initialize(model, layout="out_in")
    said = notes(summary)
    assert said["0/weight"].endswith("2 blocks of 3 x 8 along axis 0")
    assert said["1/weight"].endswith(", 6 x 6")
    assert said["2/weight"].startswith("a transposed convolution whose stride")
    assert said["3/weight"].endswith("5 of 6 x 12")
    x = jax.random.normal(key, (6, 5))
    y = model[1](x) - model[1].bias
    np.testing.assert_allclose(np.linalg.norm(y), 0.9 * np.linalg.norm(x), rtol=1e-5)


def test_flax_scan_and_vmap():
    nn = pytest.importorskip("flax.linen")

    class Step(nn.Module):
        @nn.compact
        def __call__(self, z, _):
            return nn.Dense(8)(z), None

    layers = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    z = jax.random.normal(jax.random.key(3), (2, 8))
    shapes = jax.eval_shape(layers.init, jax.random.key(0), z, None)
    shapes["params"]["Dense_0"]["bias"] = zeros(3, 8)
    params, summary = jax_initialize(shapes)
    assert notes(summary)["params/Dense_0/kernel"] == "orthogonal, gain 0.9, 3 of 8 x 8"
    out, _ = layers.apply(params, z, None)
    np.testing.assert_allclose(np.linalg.norm(out), 0.9**3 * np.linalg.norm(z), rtol=1e-5)


# Keras models.


def keras_initialize(model, family="orthogonal", **options):
    return deq_init.keras.initialize(model, family, 0.9, verbose=False, seed=0, **options)


def test_keras_attention_and_einsum():
    """The query kernel's standard deviation is gain/sqrt(in): chi-square, false alarms 1e-6."""
    layer = keras.layers.MultiHeadAttention(8, 4, name="attention")
    layer.build((None, 5, 32), (None, 5, 32))
    summary = keras_initialize(layer, "random")
    said = {name.split("/")[-2]: note for name, note in notes(summary).items() if "ker" in name}
    assert set(said.values()) == {"random, gain 0.9, 32 x 32"}
    w = keras.ops.convert_to_numpy(layer.query_dense.kernel).astype(np.float64)
    assert w.shape == (32, 8, 4)
    law, statistic = scipy.stats.chi2(w.size), 32 * (w**2).sum() / 0.81
    assert 2 * min(law.cdf(statistic), law.sf(statistic)) > 1e-6
    keras_initialize(layer)
    for part in (layer.query_dense, layer.key_dense, layer.value_dense):
        w = keras.ops.convert_to_numpy(part.kernel)
        np.testing.assert_allclose(np.einsum("ihd,jhd->ij", w, w), 0.81 * np.eye(32), atol=1e-5)
    experts = keras.layers.EinsumDense("bei,eio->beo", (3, 8), name="experts")
    experts.build((None, 3, 8))
    summary = keras_initialize(experts)
    assert summary.entries[0].note == "orthogonal, gain 0.9, 3 of 8 x 8"
    for w in keras.ops.convert_to_numpy(experts.kernel):
        np.testing.assert_allclose(w @ w.T, 0.81 * np.eye(8), atol=1e-5)


def test_keras_convolutions_and_weights_of_no_known_layer():
    class Owner(keras.layers.Layer):
        def build(self, _):
            self.stack = self.add_weight(shape=(4, 6, 6), name="stack", initializer="ones")

    layers = {
        "depthwise": keras.layers.DepthwiseConv2D(2, depth_multiplier=3),
        "grouped": keras.layers.Conv1D(6, 2, groups=2),
        "patches": keras.layers.Conv1DTranspose(3, 2, strides=2),
        "transposed": keras.layers.Conv1DTranspose(16, 3),
        "overlapping": keras.layers.Conv1DTranspose(3, 4, strides=2),
        "owner": Owner(),
    }
    said = {}
    for name, layer in layers.items():
        layer.build((None, 5, 5, 4) if name == "depthwise" else (None, 5, 4))
        if name in ("overlapping", "owner"):
            with pytest.raises(errors.SelectionError, match="name it in where= with batch_axes="):
                keras_initialize(layer)
            continue
        said[name] = keras_initialize(layer).entries[0].note.split(", ", 2)[-1]
    assert said == {
        "depthwise": "4 of 3 x 4",
        "grouped": "2 blocks of 3 x 4 along axis 2",
        "patches": "6 x 4",
        "transposed": "16 x 12",
    }
    w = keras.ops.convert_to_numpy(layers["depthwise"].kernel)
    for channel in range(4):
        one = w[:, :, channel].reshape(4, 3)
        np.testing.assert_allclose(one.T @ one, 0.81 * np.eye(3), atol=1e-5)
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    y = keras.ops.convert_to_numpy(layers["patches"](x))
    np.testing.assert_allclose(np.linalg.norm(y), 0.9 * np.linalg.norm(x), rtol=1e-5)
    keras_initialize(layers["owner"], "goe", where={"*stack": {"batch_axes": 0}})
    w = keras.ops.convert_to_numpy(layers["owner"].stack)
    np.testing.assert_array_equal(w, w.transpose(0, 2, 1))
    assert math.isclose((w**2).sum(), 4 * 0.81 * 7, rel_tol=0.9)
