"""The examples: each diverges as it is initialized, and the one suggested line mends it."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize(
    "name", ["torchdeq_graph", "flax_multiscale", "equinox_rates", "keras_skip"]
)
def test_example(name, tmp_path):
    path = EXAMPLES / f"{name}.py"
    result = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (before, batch), (after, _) = re.findall(r"(\d+) of (\d+) samples solved", result.stdout)
    assert before == "0"
    assert after == batch
    assert result.stdout.startswith("verdict          divergent")
    (suggestion,) = re.findall(r"^suggestion +(.+)$", result.stdout, re.MULTILINE)
    assert f"{suggestion.rsplit(', ', 1)[0]}, report.suggested_factor)" in path.read_text()


def test_every_example_is_tested():
    tested = set(re.findall(r'"(\w+)"', pathlib.Path(__file__).read_text().split("def ")[0]))
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
    assert os.listdir(EXAMPLES)
