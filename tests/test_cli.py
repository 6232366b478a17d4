"""The command line: what it refuses."""

import pytest

from deq_init import cli


def test_a_file_in_the_way(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["reproduce", "lengths", "--output", str(tmp_path / "file" / "x")]) == 1
    assert "expected a folder that can be written to" in capsys.readouterr().err


def test_a_bad_seed_leaves_no_folder(tmp_path, capsys):
    folder = tmp_path / "new"
    assert cli.main(["reproduce", "lengths", "--seed", "-1", "--output", str(folder)]) == 1
    assert "expected seed to be an integer" in capsys.readouterr().err
    assert not folder.exists()


def test_an_unknown_regime(tmp_path, capsys):
    arguments = ["reproduce", "digits", "--regimes", "sgd", "--output", str(tmp_path / "new")]
    assert cli.main(arguments) == 1
    assert "expected a regime out of 'base', 'adam'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_report_of_nothing(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "expected a folder with results.jsonl" in capsys.readouterr().err


LENGTHS = ["reproduce", "lengths"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["reproduce"],
        [*LENGTHS, "--n", "2"],
        [*LENGTHS, "--draws", "1"],
        [*LENGTHS, "--engine", "threads"],
        [*LENGTHS, "--jobs", "0"],
        ["nonsense"],
    ],
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: deq-init" in capsys.readouterr().err
