"""The command line and the experiments, end to end at a small size."""

import json

import numpy as np
import pytest

import deq_init.numpy
from deq_init import cli
from deq_init.experiments import report

PNG = b"\x89PNG\r\n\x1a\n"


def rows(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_digits(tmp_path, capsys):
    folder = tmp_path / "new" / "results"
    arguments = ["reproduce", "digits", "--gains", "0.6", "--seeds", "2", "--epochs", "2"]
    assert cli.main([*arguments, "--output", str(folder)]) == 0
    printed = capsys.readouterr()
    table = (folder / "table.md").read_text()
    assert table in printed.out
    assert str(folder) in printed.out
    assert "digits: 100%" in printed.err
    assert (folder / "figure.png").read_bytes().startswith(PNG)
    results = rows(folder)
    assert {(row["label"], row["gain"], row["seed"]) for row in results} == {
        (label, gain, seed)
        for label, gain in (
            ("random", 0.6), ("orthogonal", 0.6), ("goe", 0.6), ("goe, half gain", 0.3),
        )
        for seed in (0, 1)
    }  # fmt: skip
    # Chance is 0.1: at gain 0.6 every family learns within two epochs.
    assert min(row["accuracy"] for row in results) > 0.8
    assert all(row["settings"]["learning_rate"] == 0.02 for row in results)
    mean = 100 * np.mean([row["accuracy"] for row in results if row["label"] == "random"])
    assert f"{mean:.1f}" in table


def test_lengths(tmp_path, capsys):
    arguments = ["reproduce", "lengths", "--n", "30", "--draws", "5", "--quiet"]
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)
    assert len(rows(tmp_path)) == 3 * 8 * 5
    for row in rows(tmp_path)[::17]:
        sample = getattr(deq_init.numpy, row["family"])
        w = sample((30, 30), row["gain"], seed=row["seed"], dtype=np.float64)
        z = np.linalg.solve(np.eye(30) - w, np.ones(30))
        assert row["length"] == pytest.approx(z @ z / 30, rel=1e-9)
    assert "| orthogonal |" in (tmp_path / "table.md").read_text()


def test_results_are_not_written_over(tmp_path, capsys):
    (tmp_path / "results.jsonl").write_text("mine\n")
    assert cli.main(["reproduce", "lengths", "--output", str(tmp_path)]) == 1
    assert "expected a folder without results" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_text() == "mine\n"


def test_default_folders_are_new_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [report.results_folder("lengths", None) for _ in range(3)]
    assert [folder.name for folder in folders] == ["lengths", "lengths-2", "lengths-3"]


def test_a_file_in_the_way(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["reproduce", "lengths", "--output", str(tmp_path / "file" / "x")]) == 1
    assert "expected a folder that can be written to" in capsys.readouterr().err


def test_a_bad_seed_leaves_no_folder(tmp_path, capsys):
    folder = tmp_path / "new"
    assert cli.main(["reproduce", "lengths", "--seed", "-1", "--output", str(folder)]) == 1
    assert "expected seed to be an integer" in capsys.readouterr().err
    assert not folder.exists()


LENGTHS = ["reproduce", "lengths"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["reproduce"], [*LENGTHS, "--n", "2"], [*LENGTHS, "--draws", "1"], ["nonsense"]],
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: deq-init" in capsys.readouterr().err


def test_rows_that_are_not_finite(tmp_path):
    folder = report.results_folder("x", tmp_path)
    report.append_rows(folder, [{"a": float("nan"), "b": np.float32("inf"), "c": np.int64(3)}])
    assert rows(folder) == [{"a": None, "b": None, "c": 3}]
