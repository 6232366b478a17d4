"""The WikiText experiment end to end at a toy size, and training in JAX against PyTorch."""

import dataclasses
import json

import numpy as np
import pytest

from deq_init import cli, data, language
from deq_init.errors import DataError
from deq_init.experiments import wikitext, wikitext_report
from deq_init.jax import language as in_jax
from deq_init.keras import language as in_keras
from deq_init.torch import language as in_torch

SMALL = language.Settings(
    width=16, heads=2, length=8, batch=4, steps=6, learning_rate=0.01, validation=8
)
WORDS = 30


@pytest.fixture
def little_wikitext(tmp_path, monkeypatch):
    """A text in which nearly each word follows from the one before, all equally frequent."""
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, words in (("test", 4000), ("valid", 1200)):
        steps = np.where(rng.random(words) < 0.05, rng.integers(0, WORDS, words), 1)
        text = [f"w{word}" for word in np.cumsum(steps) % WORDS]
        (folder / f"{split}.txt").write_text(" ".join(text))
    monkeypatch.setenv("DEQ_INIT_DATA", str(tmp_path))
    monkeypatch.setattr(data, "_require_checksum", lambda *given: None)
    wikitext._texts.cache_clear()
    yield
    wikitext._texts.cache_clear()


def test_wikitext(tmp_path, little_wikitext, capsys):
    folder = tmp_path / "results"
    arguments = ["--gains", "0.3", "--seeds", "2", "--steps", "60", "--norms", "post"]
    command = ["reproduce", "wikitext", *arguments, "--jobs", "1", "--output", str(folder)]
    assert cli.main(command) == 0
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {(row["label"], row["gain"], row["seed"]) for row in rows} == {
        (label, gain, seed)
        for label, gain in [
            ("random", 0.3), ("orthogonal", 0.3), ("goe", 0.3), ("goe, half gain", 0.15)
        ]
        for seed in (0, 1)
    }  # fmt: skip
    # Each word tells the next: frequencies alone give about 30, and a trained model far less.
    assert all(row["baseline"] > 20 for row in rows)
    assert np.median([row["perplexity"] for row in rows]) < 10
    assert all(row["settings"]["steps"] == 60 for row in rows)
    # The slides' numbers for random matrices at this gain.
    assert "56.3 | 224.9" in table
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_lost_run_counts_as_guessing():
    row = {"label": "goe", "nominal": 0.1, "seed": 0, "vocabulary": 50, "failed": True}
    for lost in (None, 1e30):
        runs = wikitext_report.runs_of([{**row, "perplexity": lost}])
        assert runs.values["goe", 0.1].item() == np.log(50)


@pytest.mark.parametrize(
    ("module", "rtol", "steps_rtol"), [(in_torch, 1e-3, 1e-3), (in_keras, 2e-3, 0.02)]
)
def test_one_training_in_jax_and_another_backend(module, rtol, steps_rtol):
    """Float32: losses after six steps of Adam agree to what rounding grows to.

    Keras has Adam's epsilon in another place, which shows where gradients are so small.
    """
    settings = dataclasses.replace(SMALL, clip=0.05, norm="pre")
    text = np.random.default_rng(1).integers(0, WORDS, 500)
    arguments = (settings, "goe", 0.3, text, text, WORDS, np.array([3, 4]))
    found, expected = module.train(*arguments), in_jax.train(*arguments)
    for name, within in (("perplexity", rtol), ("loss", rtol), ("solver_steps", steps_rtol)):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=within, err_msg=name
        )
    assert abs(expected.loss[0] / expected.loss[1] - 1) > 1e-2


def test_texts_that_are_too_short():
    with pytest.raises(DataError, match="expected a text of more than 8 words, received 8"):
        language.starts(8, SMALL, 0)
    with pytest.raises(DataError, match="expected a validation text of 9 words at least"):
        language.sequences(np.zeros(8, int), SMALL)


def test_every_place_of_a_text_is_sampled():
    """Uniform over the places at which a sequence and the next word fit.

    Of 92 places, each of 25000 draws misses a given one with probability 91/92: that any is
    missed has a probability of 92 (91/92)^25000 < 1e-116.
    """
    settings = dataclasses.replace(SMALL, steps=500, batch=50)
    found = language.starts(100, settings, 0)
    assert found.shape == (500, 50)
    assert set(found.ravel()) == set(range(100 - settings.length))


def test_frequencies():
    """Words seen 3 and 1 times, each given one more: 4/6 and 2/6."""
    found = wikitext.frequencies_perplexity(np.array([0, 0, 0, 1]), np.array([0, 1]), 2)
    assert found == pytest.approx((2 / 3 * 1 / 3) ** -0.5)
