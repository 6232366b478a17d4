"""The command line: what it refuses, and standard output that does not take what is printed."""

import io
import os
import sys
from types import SimpleNamespace

import pytest

from deq_init import cli, model
from deq_init.theory.activations import ACTIVATIONS


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


@pytest.fixture
def divergent(monkeypatch):
    """A model whose report has characters that are not in ASCII, of more than a buffer."""

    class Report:
        verdict = "divergent"

        def __str__(self):
            return "norm 4 ± 1, ‖J‖² " * 2000

    monkeypatch.setattr(model, "check", lambda name, framework: Report())


def test_what_ascii_cannot_encode_is_replaced(divergent, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli.main(["check", "a:b"]) == cli.EXIT_CODES["divergent"] == 5
    assert stdout.buffer.getvalue().startswith(b"norm 4 ? 1, ?J?? norm")
    assert sys.stdout is stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_device(divergent, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["check", "a:b"]) == 1
        monkeypatch.undo()
    assert "expected to write to standard output: [Errno 28]" in capsys.readouterr().err


def test_closed_standard_streams(divergent, monkeypatch):
    """As the shell's >&- leaves them: the verdict is in the exit code."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.main(["check", "a:b"]) == 5
    assert cli.main(["report", "nowhere"]) == 1
    assert sys.stdout is None


def test_an_error_that_is_not_of_standard_output_is_raised(monkeypatch):
    def fail(options):
        raise OSError("of the program")

    monkeypatch.setattr(cli, "_parser", lambda: SimpleNamespace(parse_args=lambda given: given))
    with pytest.raises(OSError, match="of the program"):
        cli.main(SimpleNamespace(command=fail))


def test_activations_of_the_command_line_are_those_of_theory():
    # "swish" is another name for "silu".
    assert set(cli._ACTIVATIONS) == set(ACTIVATIONS) - {"swish"}
