"""Whole PyTorch modules: every weight that is meant, once, and a summary that says so."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import deq_init.torch
from deq_init import errors, selection
from deq_init.torch import filling


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.lstm = nn.LSTM(8, 8)
        self.grouped = nn.Conv1d(4, 8, 3, groups=2)
        self.up = nn.ConvTranspose1d(4, 8, 3)
        self.conv = nn.Conv1d(4, 8, 3)
        self.norm = nn.LayerNorm((4, 8))
        self.first = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.first.weight
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight


SET_BY_DEFAULT = {
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "grouped.weight",
    "up.weight",
    "conv.weight",
    "first.weight",
}


def initialize(module, family="orthogonal", **options):
    return deq_init.torch.initialize_(module, family, verbose=False, **options)


def values(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def unchanged(before, module):
    after = values(module)
    return {name for name in before if torch.equal(before[name], after[name])}


def test_by_default():
    model = Model()
    before = values(model)
    summary = initialize(model, seed=0)
    assert set(summary.names) == SET_BY_DEFAULT
    assert unchanged(before, model) == set(before) - SET_BY_DEFAULT
    notes = {entry.name: entry.note for entry in summary.entries}
    assert notes["embed.weight"] == "embedding"
    assert notes["head.weight"] == "the same tensor as embed.weight"
    assert notes["tied.weight"] == "the same tensor as first.weight"
    assert notes["norm.weight"] == "normalization"
    assert notes["grouped.weight"] == "orthogonal, gain 1, 2 blocks of 4 x 6 along axis 0"
    assert notes["up.weight"] == "orthogonal, gain 1, 8 x 12"
    assert "blocks=3" in notes["attention.in_proj_weight"]
    assert "blocks=4" in notes["lstm.weight_hh_l0"]


def test_a_weight_is_what_its_name_and_the_seed_say():
    expected = deq_init.torch.orthogonal_(
        torch.empty(8, 8), 0.5, seed=selection.seed_of(3, "first.weight")
    )
    for where in (None, "first.weight", "tied.weight"):
        model = Model()
        initialize(model, gain=0.5, where=where, seed=3)
        same = torch.equal(model.first.weight.detach(), expected)
        assert same == (where != "tied.weight")
    model = Model()
    compiled = torch.compile(model, backend="eager")
    summary = initialize(compiled, gain=0.5, seed=3)
    assert set(summary.names) == SET_BY_DEFAULT
    assert torch.equal(model.first.weight.detach(), expected)


def test_names_of_equal_crc_32_are_different_matrices():
    model = nn.Module()
    model.plumless, model.buckeroo = nn.Linear(8, 8), nn.Linear(8, 8)
    initialize(model, seed=0)
    assert not torch.isclose(model.plumless.weight, model.buckeroo.weight).all()


def test_options_by_name_make_fused_weights_of_independent_matrices():
    model = Model()
    where = {
        "*.in_proj_weight": {"blocks": 3},
        "lstm.weight_hh_l0": {"blocks": 4, "spectral_norm": 0.5},
        "grouped.weight": {"blocks": 2, "family": "random"},
        "head.weight": {"family": "random"},
    }
    summary = initialize(model, gain=0.9, where=where, seed=1)
    assert set(summary.names) == set(where) - {"*.in_proj_weight"} | {"attention.in_proj_weight"}
    for weight, count, gain in (
        (model.attention.in_proj_weight, 3, 0.9),
        (model.lstm.weight_hh_l0, 4, 0.5),
    ):
        for block in weight.detach().chunk(count):
            assert torch.allclose(block @ block.T, gain**2 * torch.eye(8), atol=1e-5)
    assert model.embed.weight is model.head.weight


def test_without_a_seed_the_random_state_is_used_in_order():
    a, b = Model(), Model()
    torch.manual_seed(0)
    initialize(a)
    torch.manual_seed(0)
    initialize(b)
    assert torch.equal(a.conv.weight, b.conv.weight)
    initialize(b)
    assert not torch.equal(a.conv.weight, b.conv.weight)
    initialize(a, generator=torch.Generator().manual_seed(5))
    initialize(b, generator=torch.Generator().manual_seed(5))
    assert torch.equal(a.conv.weight, b.conv.weight)


@pytest.mark.parametrize(
    ("family", "options", "error", "words"),
    [
        ("orthogonal", {"where": "firts.*"}, errors.SelectionError, "first.weight"),
        ("goe", {"where": ["conv.*", "first.weight"]}, errors.ShapeError, "conv.weight: expected"),
        ("orthogonal", {"gain": -1.0}, errors.ScaleError, "received -1.0"),
        ("orthogonal", {"seed": -1}, errors.SeedError, "received -1"),
        (
            "orthogonal",
            {"seed": 1, "generator": torch.Generator()},
            errors.SeedError,
            "received both",
        ),
        (
            "orthogonal",
            {"where": {"first.weight": {}, "tied.weight": {"gain": 2.0}}},
            errors.SelectionError,
            "one request for a tied weight",
        ),
    ],
)
def test_nothing_is_changed_by_a_bad_request(family, options, error, words):
    model = Model()
    before = values(model)
    with pytest.raises(error) as caught:
        initialize(model, family, **options)
    assert words in str(caught.value)
    assert unchanged(before, model) == set(before)


def test_a_weight_that_cannot_be_set_stops_all():
    model = nn.Sequential(
        nn.Linear(8, 8),
        parametrizations.orthogonal(
            nn.Linear(8, 8), orthogonal_map="cayley", use_trivialization=False
        ),
    )
    before = values(model)
    with pytest.raises(errors.SelectionError, match=r"for 1\.weight: its parametrization \(_Orth"):
        initialize(model, where="*.weight")
    assert unchanged(before, model) == set(before)
    summary = initialize(model)
    assert summary.names == ("0.weight",)
    assert "takes no assignment" in summary.entries[-1].note


def test_lazy_modules_have_to_be_run_first():
    with pytest.raises(errors.WeightError, match=r"0\.weight: a lazy parameter") as caught:
        initialize(nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(4)))
    assert "1.weight: a lazy parameter" in str(caught.value)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("where", [None, "*"])
def test_weights_that_cannot_be_written_are_all_named_before_any_is_changed(where):
    model = nn.Module()
    model.plain = nn.Parameter(torch.eye(8))
    with torch.inference_mode():
        model.inference = nn.Parameter(torch.eye(8))
    broken = {
        "sparse": torch.eye(8).to_sparse(),
        "mkldnn": torch.eye(8).to_mkldnn(),
        "expanded": torch.ones(1, 8).expand(8, 8),
        "overlapping": torch.zeros(16).as_strided((8, 8), (1, 1)),
    }
    for name, value in broken.items():
        model.register_parameter(name, nn.Parameter(value))
    whole = torch.eye(8)
    model.rows, model.columns = nn.Parameter(whole), nn.Parameter(whole.T)
    quantized = torch.quantize_per_tensor(torch.eye(8), 0.1, 0, torch.qint8)
    model.quantized = nn.Parameter(quantized, requires_grad=False)
    with pytest.raises(errors.WeightError, match="none was changed") as caught:
        initialize(model, where=where)
    named = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    expected = {"inference", *broken, "rows", "columns", *(["quantized"] if where else [])}
    assert set(named) == expected
    assert torch.equal(model.plain, torch.eye(8))
    assert torch.equal(whole, torch.eye(8))


def test_a_sampler_that_fails_changes_nothing(monkeypatch):
    sampled, calls = filling.sampled, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return sampled(*arguments)

    model = Model()
    before = values(model)
    monkeypatch.setattr(filling, "sampled", failing)
    with pytest.raises(KeyboardInterrupt):
        initialize(model, seed=0)
    assert unchanged(before, model) == set(before)


def test_objects_of_one_memory_are_one_weight():
    model = nn.Module()
    buffer = torch.zeros(8, 16)
    model.left, model.right = nn.Parameter(buffer[:, :8]), nn.Parameter(buffer[:, 8:])
    model.again = nn.Parameter(model.left.detach())
    summary = initialize(model, "goe", seed=0)
    assert summary.names == ("left", "right")
    assert summary.entries[2].note == "the same tensor as left"
    assert torch.equal(model.left, model.left.T)
    # A readout that shares the memory of an embedding, transposed, is left alone with it.
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = nn.Parameter(model[0].weight.detach().T)
    summary = initialize(model, seed=0)
    assert summary.names == ("1.weight",)
    assert summary.entries[3].note == "shares memory with 0.weight"


def test_frozen_weights_and_adapters_are_left_alone_unless_they_are_named():
    model = nn.ModuleDict(
        {"base": nn.Linear(8, 8), "lora_B": nn.Linear(8, 8), "f": nn.Linear(8, 8)}
    )
    model["base"].requires_grad_(False)
    summary = initialize(model)
    assert summary.names == ("f.weight",)
    notes = {entry.name: entry.note for entry in summary.entries}
    assert (notes["base.weight"], notes["lora_B.weight"]) == ("frozen", "adapter")
    assert initialize(model, where="*.weight").names == ("base.weight", "lora_B.weight", "f.weight")
    frozen = parametrizations.weight_norm(nn.Linear(8, 8)).requires_grad_(False)
    assert initialize(nn.Sequential(nn.Linear(8, 8), frozen)).names == ("0.weight",)


def test_values_that_were_never_set_are_reported():
    model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 8), nn.LayerNorm(8))
    with torch.no_grad():
        model[0].weight[1, 1] = torch.nan
        model[1].weight.fill_(torch.nan)
        model[2].weight.zero_()
    notes = {entry.name: entry.note for entry in initialize(model).entries}
    assert notes["0.weight"] == "embedding; NOT FINITE: uninitialized, as after to_empty?"
    assert notes["1.weight"].startswith("orthogonal, gain 1")
    assert notes["2.weight"] == "normalization; all zeros"
    assert notes["2.bias"] == "normalization"


def test_a_tensor_is_no_module():
    with pytest.raises(errors.SelectionError, match=r"torch\.nn\.Module, received Tensor"):
        initialize(torch.eye(4))


def test_modules_on_the_meta_device():
    with torch.device("meta"):
        model = nn.Linear(8, 8)
    summary = initialize(model, seed=0)
    assert summary.names == ()
    assert summary.entries[0].note == "on the meta device, nothing to set"
    model.to_empty(device="cpu")
    assert initialize(model, seed=0).names == ("weight",)
    assert torch.allclose(model.weight @ model.weight.T, torch.eye(8), atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("wrap", "gain"),
    [
        (parametrizations.weight_norm, 0.7),
        (parametrizations.orthogonal, 1.0),
        (parametrizations.spectral_norm, 1.0),
    ],
)
def test_parametrized_weights_are_assigned(wrap, gain, training):
    torch.manual_seed(0)
    layer = wrap(nn.Linear(8, 8, bias=False)).train(training)
    summary = initialize(layer, gain=gain, seed=4)
    assert summary.names == ("weight",)
    assert layer.training == layer.parametrizations.weight.training == training
    expected = deq_init.torch.orthogonal_(
        torch.empty(8, 8), gain, seed=selection.seed_of(4, "weight")
    )
    # Evaluation mode first: it reads the parametrization's state, and training mode renews it.
    for mode in (False, True, False):
        layer.train(mode)
        assert torch.allclose(layer.weight, expected, atol=1e-6)
        assert torch.allclose(layer(torch.eye(8)), expected.T, atol=1e-6)


class Remembered(nn.Module):
    """Scales by the number that it took of the weight in training mode, which is no buffer."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, weight):
        if self.training:
            self.norm = torch.linalg.matrix_norm(weight, 2)
        return weight / self.norm

    def right_inverse(self, weight):
        return weight


def test_the_state_of_any_parametrization_is_renewed():
    layer = nn.Linear(8, 8, bias=False)
    parametrize.register_parametrization(layer, "weight", Remembered(torch.tensor(3.0)))
    layer.eval()
    initialize(layer, seed=4)
    assert torch.allclose(layer.weight @ layer.weight.T, torch.eye(8), atol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "gain"),
    [(parametrizations.spectral_norm, 0.7), (parametrizations.orthogonal, 0.7)],
)
def test_parametrizations_that_would_change_the_weight_are_refused(wrap, gain):
    layer = wrap(nn.Linear(8, 8, bias=False))
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(errors.SelectionError, match="changes what it is assigned"):
        initialize(layer, gain=gain, where="weight")
    after = layer.state_dict()
    assert all(torch.equal(state[name], after[name]) for name in state)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: torchdeq_norm(layer, "weight_norm"),
        lambda layer: torchdeq_norm(layer, "spectral_norm"),
    ],
)
def test_parts_of_weights_that_are_computed_are_left_alone(wrap):
    model = nn.Sequential(nn.Linear(8, 8), wrap(nn.Linear(8, 8)))
    before = values(model)
    summary = initialize(model, seed=0)
    assert summary.names == ("0.weight",)
    assert unchanged(before, model) == set(before) - {"0.weight"}
    (part,) = [e.name for e in summary.entries if "computed" in e.note and e.shape == (8, 8)]
    before = values(model)
    with pytest.raises(errors.WeightError, match=f"{part}: a part of a weight: weight is computed"):
        initialize(model, where=["0.weight", part])
    assert unchanged(before, model) == set(before)


def torchdeq_norm(layer, kind):
    norm = pytest.importorskip("torchdeq.norm")
    norm.apply_norm(layer, kind)
    norm.reset_norm(layer)
    return layer


def test_the_summary_is_printed(capsys):
    summary = deq_init.torch.initialize_(nn.Linear(4, 4), "goe", spectral_norm=0.9, seed=0)
    assert capsys.readouterr().out == f"{summary}\n"
    initialize(nn.Linear(4, 4))
    assert capsys.readouterr().out == ""
