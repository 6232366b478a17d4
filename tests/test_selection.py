"""Which weights of a model are chosen, how, and what the summary says."""

import hashlib
import json
import zlib

import pytest

from deq_init import draws, errors, selection


def weight(name, shape, dtype="float32", special=""):
    return selection.Weight(name, shape, dtype, object(), special)


MODEL = [
    weight("embed.weight", (100, 8), special="embedding"),
    weight("block.qkv.weight", (24, 8)),
    weight("block.qkv.bias", (24,)),
    weight("block.out.weight", (8, 8)),
    weight("mask", (8, 8), dtype="bool"),
]


def requests(where=None, family="random", **options):
    return selection.requests(MODEL, "out_in", where, {"family": family, **options})


def chosen(result):
    return [r.weight.name for r in result if r.plan is not None]


def test_by_default_every_weight_that_the_family_can_be():
    assert chosen(requests()) == ["block.qkv.weight", "block.out.weight"]
    assert chosen(requests(family="goe")) == ["block.out.weight"]
    notes = {r.weight.name: r.note for r in requests(family="goe", gain=0.4)}
    assert notes == {
        "embed.weight": "embedding",
        "block.qkv.weight": "not a shape that the family or scale is defined for",
        "block.qkv.bias": "fewer than two axes",
        "block.out.weight": "goe, gain 0.4, 8 x 8",
        "mask": "not a real floating dtype",
    }


def test_patterns_and_predicates():
    assert chosen(requests("*.out.*")) == ["block.out.weight"]
    assert chosen(requests(["*.out.*", "embed.*"])) == ["embed.weight", "block.out.weight"]
    assert chosen(requests(lambda name, w: name.endswith("qkv.weight"))) == ["block.qkv.weight"]


def test_a_mapping_gives_options_of_their_own_and_the_first_match_counts():
    where = {"*.qkv.weight": {"blocks": 3, "spectral_norm": 0.5}, "*.weight": {"family": "random"}}
    result = {r.weight.name: r.plan for r in requests(where, family="goe", gain=0.4)}
    qkv, out = result["block.qkv.weight"], result["block.out.weight"]
    assert (qkv.family.name, qkv.blocks, qkv.scale.kind, qkv.scale.value) == (
        "goe",
        3,
        "spectral_norm",
        0.5,
    )
    assert (out.family.name, out.blocks, out.scale.kind, out.scale.value) == (
        "random",
        None,
        "gain",
        0.4,
    )


@pytest.mark.parametrize(
    ("where", "options", "error", "words"),
    [
        ("*.quv.weight", {}, errors.SelectionError, "block.qkv.weight"),
        ({"*": {"gian": 1}}, {}, errors.SelectionError, "'gian'"),
        (7, {}, errors.SelectionError, "received 7"),
        (lambda name, w: False, {}, errors.SelectionError, "none was selected"),
        ("*.qkv.weight", {"family": "goe"}, errors.ShapeError, "block.qkv.weight: expected"),
        ("*.bias", {}, errors.ShapeError, "block.qkv.bias: expected"),
        ("mask", {}, errors.DTypeError, "mask: expected"),
        (None, {"family": "geo"}, errors.FamilyError, "goe"),
        (None, {"gain": -1.0}, errors.ScaleError, "-1.0"),
        (None, {"gain": 1.0, "spectral_norm": 1.0}, errors.ScaleError, "at most one"),
        ({"*.out.weight": {"gain": -1.0}}, {}, errors.ScaleError, "block.out.weight: expected"),
    ],
)
def test_errors_name_the_weight(where, options, error, words):
    with pytest.raises(error) as caught:
        requests(where, **options)
    assert words in str(caught.value)


def test_a_weights_seed_depends_on_its_name_alone():
    name = "modèle.ß.weight"
    number = int(hashlib.blake2b(name.encode(), digest_size=8).hexdigest(), 16)
    expected = draws.fold_in(draws.fold_in((0, 5), number >> 32), number % 2**32)
    assert draws.key_from_seed(selection.seed_of(5, name)) == expected
    assert selection.seed_of(5, "a") != selection.seed_of(5, "b") != selection.seed_of(6, "b")
    assert selection.seed_of(0, "\ud800") != selection.seed_of(0, "\ud801")  # a path's lone bytes


def test_names_of_large_models_have_hashes_of_their_own():
    """Their CRC-32 has 3 pairs of equal values in the first, and about one in the second."""
    experts = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"
        for layer in range(1, 61)
        for expert in range(384)
        for part in ("gate", "up", "down")
    ]
    numbered = [f"blocks.{i}.weight" for i in range(100_000)]
    names = [*experts, *numbered, "plumless", "buckeroo"]
    assert len({selection.name_words(name) for name in names}) == len(names) == 169_122


def test_names_that_would_share_a_matrix_are_refused(monkeypatch):
    monkeypatch.setattr(selection, "name_words", lambda name: (zlib.crc32(name.encode()), 0))
    weights = [weight(name, (8, 8)) for name in ("plumless", "other", "buckeroo")]
    with pytest.raises(errors.SelectionError, match="'plumless' and 'buckeroo', whose"):
        selection.requests(weights, "out_in", None, {"family": "goe"})
    assert len(selection.requests(weights, "out_in", "[op]*", {"family": "goe"})) == 3


def test_equal_names_are_made_distinct():
    assert selection.distinct(["w", "w", "w_2", "w"]) == ["w", "w_2", "w_2_2", "w_3"]


def test_summary():
    summary = selection.summarize(requests("*.qkv.weight", blocks=3, gain=0.5))
    assert summary.names == ("block.qkv.weight",)
    lines = str(summary).splitlines()
    assert lines[0].split() == ["weight", "shape", "dtype", "action", "note"]
    assert lines[2].endswith("set     random, gain 0.5, 3 blocks of 8 x 8 along axis 0")
    assert lines[-1] == "1 weight set, 4 left alone"
    assert json.loads(json.dumps(summary.to_dict()))["entries"][1]["shape"] == [24, 8]
