"""Which weights of a model are chosen, how, and what the summary says."""

import json

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
        "block.out.weight": "goe, gain 0.4",
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
    # zlib.crc32(b"a") is 0xE8B7BE43, by the definition of CRC-32.
    assert draws.key_from_seed(selection.seed_of(5, "a")) == draws.fold_in((0, 5), 0xE8B7BE43)
    assert selection.seed_of(5, "a") != selection.seed_of(5, "b") != selection.seed_of(6, "b")


def test_summary():
    summary = selection.summarize(requests("*.qkv.weight", blocks=3, gain=0.5))
    assert summary.names == ("block.qkv.weight",)
    lines = str(summary).splitlines()
    assert lines[0].split() == ["weight", "shape", "dtype", "action", "note"]
    assert lines[2].endswith("set     random, gain 0.5, 3 blocks along axis 0")
    assert lines[-1] == "1 weight set, 4 left alone"
    assert json.loads(json.dumps(summary.to_dict()))["entries"][1]["shape"] == [24, 8]
