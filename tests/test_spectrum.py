"""``deq-init spectrum``: numbers, text, figure and errors, end to end at a small size."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

import deq_init.numpy
from deq_init import cli, theory
from deq_init.errors import FamilyError, ScaleError, ShapeError
from deq_init.experiments import report, spectrum

import backends

PNG = b"\x89PNG\r\n\x1a\n"
SCALES = [{"gain": 0.4}, {"spectral_norm": 0.9}, {"spectral_radius": 0.3}]


def matrix(family, n, **options):
    return getattr(deq_init.numpy, family)((n, n), dtype=np.float64, **options)


def number(text, name):
    """The measured value in the table of numbers and theory's beside it."""
    row = next(line for line in text.splitlines() if line.startswith(name))
    return [float(word) for word in row.removeprefix(name).split()[:2]]


@pytest.mark.parametrize("n", [64, 65])
def test_command(family, n, tmp_path, capsys):
    path = tmp_path / "figure.png"
    arguments = ["spectrum", family, "--n", str(n), "--gain", "0.4", "--seed", "3"]
    assert cli.main([*arguments, "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert path.read_bytes().startswith(PNG)
    assert str(path) in printed
    assert f"{family}, n = {n}, gain 0.4, seed 3" in printed
    w = matrix(family, n, gain=0.4, seed=3)
    radius = np.abs(np.linalg.eigvals(w)).max()
    edges = {"random": (0.8, 0.4), "orthogonal": (0.4, 0.4)}.get(family, (0.8, 0.8))
    for name, measured, limit in (
        ("spectral norm", np.linalg.norm(w, 2), edges[0]),
        ("spectral radius", radius, edges[1]),
    ):
        assert number(printed, name) == pytest.approx([measured, limit], rel=6e-4)
    measured, expected = number(printed, "Frobenius norm")
    assert measured == pytest.approx(np.linalg.norm(w), rel=6e-4)
    assert measured == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("scale", SCALES)
def test_values_are_those_of_the_matrix(family, scale):
    """Compared with NumPy's decompositions; the gain is that of the rescaled unit matrix."""
    for n in (2, 15, 40):
        found = spectrum.measure(family, n, seed=1, **scale)
        w = matrix(family, n, seed=1, **scale)
        np.testing.assert_allclose(
            found.singular_values, np.linalg.svd(w, compute_uv=False), atol=1e-7
        )
        # Neither order nor the last digits of equal parts are fixed: each has a partner.
        apart = np.abs(found.eigenvalues[:, None] - np.linalg.eigvals(w))
        assert max(apart.min(0).max(), apart.min(1).max()) < 1e-7
        np.testing.assert_allclose(w, found.gain * matrix(family, n, seed=1), rtol=1e-6, atol=1e-9)
        assert found.frobenius_norm == pytest.approx(np.linalg.norm(w))
        kind, value = next(iter(scale.items()))
        assert getattr(found, kind) == pytest.approx(value, rel=1e-5)


def bars(text, name):
    """Centre, count and theory's count of each bin below the head of that name."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith(name + "  count"))
    rows = lines[start + 1 : start + 12]
    return np.array([[float(word) for word in row.split()[:3]] for row in rows]).T


def test_text_counts_every_value(family):
    found = spectrum.measure(family, 200, gain=0.4)
    text = spectrum.text(found)
    if family != "random":
        _, counts, expected = bars(text, found.line[0])
        assert counts.sum() == 200
        assert expected.sum() == pytest.approx(200, abs=0.5)
        # One-sided: eigenvalues repel each other, so that they are spread more evenly than chi2.
        kept = expected > 1
        statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
        assert statistic < scipy.stats.chi2(kept.sum()).isf(1e-6)
    if family == "orthogonal":
        assert re.search(r"All singular values equal the gain, 0.4, up to \de-1[4-6]\.", text)
    else:
        centres, counts, expected = bars(text, "singular value")
        assert counts.sum() == 200
        assert expected.sum() == pytest.approx(200, abs=0.5)
        inside = found.singular_values < 0.08
        assert counts[0] == inside.sum()
        assert centres[0] == pytest.approx(0.04)


def test_the_plane_is_round_and_holds_the_eigenvalues():
    found = spectrum.measure("random", 400, gain=0.4)
    for ascii_only, circle in ((False, "○●"), (True, "o@")):
        picture = spectrum.text(found, ascii_only=ascii_only).splitlines()[3:22]
        picture = [line[8:] for line in picture]
        ring = [(i, j) for i, row in enumerate(picture) for j, c in enumerate(row) if c in circle]
        rows, columns = np.array(ring).T
        # A character is about twice as high as wide.
        assert np.ptp(columns) == pytest.approx(2 * np.ptp(rows), abs=2)
        middle = picture[9]
        assert middle[0] in circle + " "
        assert not set(middle[5:-5]) & set(circle)
        assert len(set(middle[5:-5])) > 1


@pytest.mark.parametrize("columns", [48, 79, 100])
def test_text_fits(family, columns):
    found = spectrum.measure(family, 64, spectral_norm=0.9)
    text = spectrum.text(found, columns, ascii_only=True)
    assert text.isascii()
    # The title may be longer.
    assert max(map(len, text.splitlines()[1:])) <= max(columns, 64)
    assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(("encoding", "blocks"), [("utf-8", True), ("ascii", False), (None, False)])
def test_encodings(encoding, blocks, monkeypatch):
    """What the output's encoding cannot hold is not printed."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding or "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["spectrum", "goe", "--n", "16", "--text"]) == 0
    stream.flush()
    assert ("█" in stream.buffer.getvalue().decode(encoding or "ascii")) == blocks
    assert spectrum._prints_blocks(encoding) == blocks


def test_a_reader_that_stops(tmp_path):
    """As ``head`` does: no traceback, and the figure is written all the same."""
    code = (
        "import sys; from deq_init import cli\n"
        "sys.stdin.readline()\n"
        "sys.exit(cli.main(['spectrum', 'goe', '--n', '16', '--output', sys.argv[1]]))"
    )
    path = tmp_path / "figure.png"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.close()
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.wait(120) == 1
        assert process.stderr.read() == b""
    assert path.read_bytes().startswith(PNG)


def curves(axes):
    return [line.get_xydata() for line in axes.get_lines() if line.get_label().startswith("theory")]


def test_figure(family):
    """Densities integrate to 1 and go through the histogram; circles have the edge's radius."""
    found = spectrum.measure(family, 300, gain=0.4, seed=2)
    left, right = spectrum.figure(found).axes
    if family in ("random", "orthogonal"):
        (circle,) = curves(left)
        np.testing.assert_allclose(np.hypot(*circle.T), 0.4)
        points = left.collections[0].get_offsets()
        assert len(points) == 300
        assert np.hypot(*np.array(points).T).max() == pytest.approx(found.spectral_radius)
        densities = [] if family == "random" else [left.child_axes[0]]
    else:
        densities = [left]
    if family == "orthogonal":
        np.testing.assert_allclose(curves(right)[0][:, 0], 0.4)
        assert sum(bar.get_height() for bar in right.patches) == 300
    else:
        densities.append(right)
    for axes in densities:
        (curve,) = curves(axes)
        assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(1, abs=1e-3)
        area = sum(bar.get_height() * bar.get_width() for bar in axes.patches)
        assert area == pytest.approx(1)
        # Mean deviation of the histogram from theory, relative: a gain off by 20 % makes 0.2.
        deviation = sum(
            abs(bar.get_height() - np.interp(bar.get_center()[0], *curve.T, 0, 0)) * bar.get_width()
            for bar in axes.patches
        )
        assert deviation < 0.12
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (left, right))


def test_every_family_has_a_colour():
    assert set(report.COLOURS) == set(backends.FAMILIES)


def test_no_figure(tmp_path, monkeypatch, capsys):
    """``--text`` needs no Matplotlib and writes nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["spectrum", "goe", "--n", "16", "--text"]) == 0
    assert "Figure" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert cli.main(["spectrum", "goe", "--n", "16"]) == 1
    assert "pip install 'deq-init[experiments]'" in capsys.readouterr().err


def test_default_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["spectrum", "goe", "--n", "16"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["deq-init-spectrum-goe.png"]
    assert "gain 1," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["geo"], "expected a family .* received 'geo'. Did you mean 'goe'"),
        (["goe", "--seed", "-1"], "expected seed to be an integer"),
        (["goe", "--output", "missing/x.png"], "no folder missing"),
        (["goe", "--output", "x.pdf"], "does not end in .png"),
        (["goe", "--output", "folder.png"], "it is a folder"),
    ],
)
def test_errors(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert cli.main(["spectrum", *arguments, "--n", "16"]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_disk_that_is_full(tmp_path, monkeypatch, capsys):
    class Figure:
        def savefig(self, *_, **__):
            raise OSError("no space left")

    monkeypatch.setattr(spectrum, "figure", lambda _: Figure())
    path = tmp_path / "figure.png"
    assert cli.main(["spectrum", "goe", "--n", "16", "--output", str(path)]) == 1
    assert f"received {path}: no space left. Choose another" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["goe", "--n", "1"],
        ["goe", "--gain", "0"],
        ["goe", "--gain", "1", "--spectral-norm", "1"],
        ["goe", "--text", "--output", "x.png"],
    ],
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["spectrum", *arguments])
    assert stop.value.code == 2
    assert "usage: deq-init spectrum" in capsys.readouterr().err


def test_errors_of_the_function(monkeypatch):
    with pytest.raises(FamilyError):
        spectrum.measure("wigner", 16)
    with pytest.raises(ScaleError, match="expected a positive gain"):
        spectrum.measure("goe", 16, gain=0)

    def too_large(*_, **__):
        raise MemoryError

    monkeypatch.setattr(deq_init.numpy, "goe", too_large)
    with pytest.raises(ShapeError, match="received n=16"):
        spectrum.measure("goe", 16)


@pytest.mark.parametrize("singular", [False, True])
def test_expected_counts(singular):
    """Against the semicircle's distribution function."""
    found = spectrum.measure("goe", 50, gain=0.5)
    edges = np.array([-1.5, -1.0, -0.3, 0.2, 0.9, 1.2])
    inner = np.clip(edges, -1, 1)
    cdf = 0.5 + (inner * np.sqrt(1 - inner**2) + np.arcsin(inner)) / np.pi
    if singular:
        cdf = np.maximum(2 * cdf - 1, 0)
    got = spectrum.expected_counts(found, edges, singular=singular)
    np.testing.assert_allclose(got, 50 * np.diff(cdf), atol=0.05)
    assert theory.eigenvalue_density("goe", 0.5, 1.2) == 0
