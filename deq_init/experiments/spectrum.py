"""A sampled matrix's eigenvalues and singular values, with theory's curves over them.

Nothing is solved or trained: one matrix is drawn and decomposed in float64. What is seen is the
difference between one matrix of size n and the limits that :mod:`deq_init.theory` gives.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import deq_init.numpy
from deq_init import families, scale, theory
from deq_init.draws import key_from_seed
from deq_init.errors import OutputError, ScaleError, ShapeError, require
from deq_init.experiments import report
from deq_init.theory.arguments import by_family

Vector = NDArray[np.float64]

_ROOM = 1.1  # of the axes, relative to theory's edge: a finite matrix exceeds it a little
_BINS = 11  # odd, so that one is centred on 0; singular values end between two of them
_ROWS = 19  # of the plane in text
_WIDTHS = (48, 100)  # columns of text, at least and at most


# Limits of the spectral norm at gain 1.
_NORM_EDGES = {"random": 2.0, "orthogonal": 1.0, "goe": 2.0, "antisymmetric": 2.0}


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of one sampled matrix.

    Attributes
    ----------
    family : str
        The law of W.
    scale : deq_init.scale.Scale
        What was asked for.
    gain : float
        Square root of V: the same, or what a spectral target made of it.
    seed : int
        Of the draw.
    eigenvalues : numpy.ndarray, complex128, shape (n,)
        Of W.
    singular_values : numpy.ndarray, float64, shape (n,)
        Of W, decreasing; absolute error 1e-7 of the largest, for the largest 1e-14 of it.
    frobenius_norm : float
        Of W.
    """

    family: str
    scale: scale.Scale
    gain: float
    seed: int
    eigenvalues: NDArray[np.complex128]
    singular_values: Vector
    frobenius_norm: float

    @property
    def n(self) -> int:
        """Size of W."""
        return len(self.eigenvalues)

    @property
    def spectral_norm(self) -> float:
        """Largest singular value."""
        return float(self.singular_values[0])

    @property
    def spectral_radius(self) -> float:
        """Largest modulus of an eigenvalue."""
        return float(np.abs(self.eigenvalues).max())

    @property
    def radius_edge(self) -> float:
        """Limit of the spectral radius."""
        return self.gain * families.get(self.family).radius_edge

    @property
    def norm_edge(self) -> float:
        """Limit of the spectral norm."""
        return self.gain * by_family(_NORM_EDGES, self.family)

    @property
    def expected_frobenius_norm(self) -> float:
        """Root of the mean of its square over draws, exact at this n."""
        # The diagonal of a symmetric law has twice the variance, or none.
        return self.gain * math.sqrt(self.n + families.get(self.family).symmetry)

    @property
    def line(self) -> tuple[str, Vector]:
        """The coordinate that eigenvalues on a line vary along: its name, and its values."""
        law = families.get(self.family)
        if law.symmetry == 1:
            return "eigenvalue", self.eigenvalues.real
        if law.symmetry == -1:
            return "imaginary part", self.eigenvalues.imag
        return "angle in radians", np.angle(self.eigenvalues)

    @property
    def title(self) -> str:
        """Family, size and scale."""
        gain = f"gain {self.gain:.4g}"
        if self.scale.kind != "gain":
            gain += f" for a {self.scale.kind.replace('_', ' ')} of {self.scale.value:.4g}"
        return f"{self.family}, n = {self.n}, {gain}, seed {self.seed}"


def run(
    family: str,
    *,
    n: int = 1024,
    gain: float | None = None,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    text_only: bool = False,
) -> Spectrum:
    """Draw a matrix, print its spectrum as text and write it as a figure.

    Parameters
    ----------
    family, n, gain, spectral_norm, spectral_radius, seed
        As in :func:`measure`.
    output : path, optional
        The PNG file, written over if it exists. Default: ``deq-init-spectrum-FAMILY.png`` in the
        working directory.
    text_only : bool
        No figure: Matplotlib is not needed then.

    Raises
    ------
    OutputError
        If the file cannot be written: before anything is drawn, where that can be told.
    MissingFrameworkError
        Without Matplotlib, if a figure is to be written.
    DeqInitError
        As :func:`measure`.
    """
    families.get(family)
    path = None
    if not text_only:
        require("matplotlib.figure", "experiments")
        path = _writable(Path(output or f"deq-init-spectrum-{family}.png"))
    spectrum = measure(
        family,
        n,
        gain=gain,
        spectral_norm=spectral_norm,
        spectral_radius=spectral_radius,
        seed=seed,
    )
    # Before the text: a reader that stops listening, such as head, costs no figure.
    if path is not None:
        try:
            figure(spectrum).savefig(path, format="png")
        except OSError as error:
            raise _unwritable(path, str(error)) from error
    columns = min(max(shutil.get_terminal_size().columns - 1, _WIDTHS[0]), _WIDTHS[1])
    print(text(spectrum, columns, ascii_only=not _prints_blocks(sys.stdout.encoding)))
    if path is not None:
        print(f"\nFigure: {path}")
    return spectrum


def measure(
    family: str,
    n: int,
    *,
    gain: float | None = None,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    seed: int = 0,
) -> Spectrum:
    """Draw one matrix in float64 and decompose it.

    Parameters
    ----------
    family : {"random", "orthogonal", "goe", "antisymmetric"}
        The law of W.
    n : int
        Size of W, at least 2. Cost: n³ flops a few times for GOE and antisymmetric; for the others
        eigenvalues that are not real cost ten times as much.
    gain, spectral_norm, spectral_radius : float, optional
        One of them, positive; default: a gain of 1.
    seed : int
        Of the draw.

    Returns
    -------
    Spectrum

    Raises
    ------
    FamilyError, ScaleError, SeedError
        For what the initializers refuse, and for a scale of 0.
    ShapeError
        If the matrix does not fit in memory.

    Examples
    --------
    >>> spectrum = measure("orthogonal", 16, spectral_norm=0.5)
    >>> round(spectrum.gain, 6), round(spectrum.spectral_radius, 6)
    (0.5, 0.5)
    """
    law = families.get(family)
    chosen = scale.resolve(gain, spectral_norm, spectral_radius)
    if chosen.value == 0:
        raise ScaleError(
            f"expected a positive {chosen.kind}, received 0. The matrix is 0 there: there is no "
            "spectrum to draw."
        )
    key_from_seed(seed)
    sample: Any = getattr(deq_init.numpy, family)
    try:
        w = sample((n, n), seed=seed, dtype=np.float64, **{chosen.kind: chosen.value})
        frobenius_norm = float(np.linalg.norm(w))
        used = chosen.value
        if chosen.kind != "gain":
            # The sampler multiplies the matrix of unit gain by one number, which is its gain.
            used = frobenius_norm / float(np.linalg.norm(sample((n, n), seed=seed, dtype=w.dtype)))
        eigenvalues, singular_values = _decompose(w, law.symmetry)
    except MemoryError as error:
        raise ShapeError(
            f"expected an n whose n × n matrix fits in memory, received n={n}. Choose a smaller "
            "one: spectra look the same from a few hundred on."
        ) from error
    return Spectrum(family, chosen, used, seed, eigenvalues, singular_values, frobenius_norm)


def _decompose(w: Vector, symmetry: int) -> tuple[NDArray[np.complex128], Vector]:
    """Return eigenvalues and decreasing singular values, by the fastest way that there is."""
    if symmetry == 1:
        values = np.linalg.eigvalsh(w)
        return values.astype(np.complex128), np.sort(np.abs(values))[::-1]
    singular_values = np.sqrt(np.maximum(np.linalg.eigvalsh(w.T @ w)[::-1], 0))
    if symmetry == -1:
        # They come in pairs ± i s; at odd n the last is 0.
        signs = np.where(np.arange(len(w)) % 2, -1, 1)
        return 1j * signs * singular_values, singular_values
    return np.linalg.eigvals(w).astype(np.complex128), singular_values


def expected_counts(spectrum: Spectrum, edges: ArrayLike, *, singular: bool) -> Vector:
    """Return how many of the n values theory expects between neighbouring edges.

    Parameters
    ----------
    spectrum : Spectrum
        Of any family; singular values not of orthogonal matrices, which have no density.
    edges : array_like, shape (k + 1,)
        Increasing.
    singular : bool
        Count singular values, or else eigenvalues along :attr:`Spectrum.line`, which those of
        random matrices do not lie on.

    Returns
    -------
    numpy.ndarray, float64, shape (k,)
        Midpoint rule, 400 points a bin: relative error of the whole below 1e-4.

    Examples
    --------
    >>> expected_counts(measure("goe", 64), [-2, 0, 2], singular=False).round(1)
    array([32., 32.])
    """
    bounds = np.asarray(edges, dtype=np.float64)
    inner = (np.arange(400) + 0.5) / 400
    at = bounds[:-1, None] + np.diff(bounds)[:, None] * inner
    density = theory.singular_value_density if singular else theory.eigenvalue_density
    counts: Vector = spectrum.n * np.diff(bounds) * _density(density, spectrum, at).mean(1)
    return counts


def text(spectrum: Spectrum, columns: int = 79, *, ascii_only: bool = False) -> str:
    """Return the spectrum as text.

    Parameters
    ----------
    spectrum : Spectrum
        Of any family.
    columns : int
        Longest line, at least 48.
    ascii_only : bool
        For terminals and files that cannot hold block characters.

    Returns
    -------
    str
        Eigenvalues in the plane (random) or a histogram of them along their line or circle; a
        histogram of singular values; measured norms and radius beside theory's. Counts that theory
        expects stand beside each bar and are marked in it.
    """
    marks = _ASCII if ascii_only else _BLOCKS
    law = families.get(spectrum.family)
    lines = [f"Spectrum of W: {spectrum.title}", ""]
    if spectrum.family == "random":
        lines += _plane(spectrum, marks)
    else:
        name, values = spectrum.line
        edges = _eigenvalue_bins(spectrum)
        expected = expected_counts(spectrum, edges, singular=False)
        lines += _bars(name, edges, values, expected, columns, marks)
    lines.append("")
    if law.isometric:
        off = float(np.abs(spectrum.singular_values / spectrum.gain - 1).max())
        lines.append(f"All singular values equal the gain, {spectrum.gain:.4g}, up to {off:.0e}.")
    else:
        edges = _singular_value_bins(spectrum)
        expected = expected_counts(spectrum, edges, singular=True)
        lines += _bars("singular value", edges, spectrum.singular_values, expected, columns, marks)
    return "\n".join([*lines, "", *_numbers(spectrum)])


def figure(spectrum: Spectrum) -> Any:
    """Return the spectrum as a Matplotlib figure: eigenvalues, and singular values.

    Parameters
    ----------
    spectrum : Spectrum
        Of any family.
    """
    drawn, (left, right) = report.new_figure(2)
    colour = report.COLOURS[spectrum.family]
    if families.get(spectrum.family).symmetry == 0:
        _draw_plane(left, spectrum, colour)
    else:
        _draw_line(left, spectrum, colour)
    _draw_singular_values(right, spectrum, colour)
    drawn.suptitle(f"Spectrum of W: {spectrum.title}", fontsize=10)
    return drawn


@dataclass(frozen=True)
class _Marks:
    """Characters: shades from empty to full, a bar, theory in it, its circle without and with."""

    shades: str
    bar: str
    theory: str
    circle: str
    crossed: str


_BLOCKS = _Marks(" ░▒▓█", "█", "│", "○", "●")
_ASCII = _Marks(" .:*#", "#", "|", "o", "@")


def _prints_blocks(encoding: str | None) -> bool:
    try:
        "".join(vars(_BLOCKS).values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _writable(path: Path) -> Path:
    """Return the path if a PNG file can be written there, as far as can be told beforehand."""
    if path.suffix.lower() != ".png":
        raise _unwritable(path, "its name does not end in .png")
    if path.is_dir():
        raise _unwritable(path, "it is a folder")
    if not path.parent.is_dir():
        raise _unwritable(path, f"there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise _unwritable(path, "writing there is not permitted")
    return path


def _unwritable(path: Path, why: str) -> OutputError:
    return OutputError(
        f"expected a PNG file that can be written, received {path}: {why}. Choose another with "
        "--output FILE.png, or print the text alone with --text."
    )


def _density(function: Any, spectrum: Spectrum, at: Vector) -> Vector:
    density: Vector = function(spectrum.family, spectrum.gain, at)
    return density


def _eigenvalue_bins(spectrum: Spectrum, bins: int = _BINS) -> Vector:
    if families.get(spectrum.family).isometric:
        return np.linspace(-np.pi, np.pi, bins + 1)
    reach = max(_ROOM * spectrum.radius_edge, spectrum.spectral_radius)
    return np.linspace(-reach, reach, bins + 1)


def _singular_value_bins(spectrum: Spectrum, bins: int = _BINS) -> Vector:
    return np.linspace(0, max(_ROOM * spectrum.norm_edge, spectrum.spectral_norm), bins + 1)


def _bars(
    name: str, edges: Vector, values: Vector, expected: Vector, columns: int, marks: _Marks
) -> list[str]:
    """Return a histogram lying on its side: centres, counts, theory's counts, bars."""
    counts = np.histogram(values, edges)[0]
    label = max(len(name), 8)
    head = f"{name:>{label}}  count  theory  "
    cell = (columns - len(head)) / max(counts.max(), expected.max())
    lines = [f"{head}{marks.bar} count, {marks.theory} theory"]
    for centre, count, theirs in zip((edges[:-1] + edges[1:]) / 2, counts, expected, strict=True):
        # Rounding must not hide a value beyond the edge.
        bar = list(marks.bar * max(int(count * cell), int(count > 0)))
        if theirs > 0.05:
            at = max(int(theirs * cell) - 1, 0)
            bar += [" "] * (at + 1 - len(bar))
            bar[at] = marks.theory
        # No bin is centred on a negative zero.
        numbers = f"{centre + 0.0:{label}.3f}  {count:5d}  {theirs:6.1f}  "
        lines.append((numbers + "".join(bar)).rstrip())
    return lines


def _plane(spectrum: Spectrum, marks: _Marks) -> list[str]:
    """Return the eigenvalues in the plane, in cells that are twice as high as wide."""
    reach = max(1.05 * spectrum.radius_edge, spectrum.spectral_radius)
    rows, columns = _ROWS, 2 * _ROWS + 1

    def cells(points: NDArray[np.complex128]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        down = ((reach - points.imag) / (2 * reach) * rows).astype(np.intp)
        right = ((points.real + reach) / (2 * reach) * columns).astype(np.intp)
        return np.clip(down, 0, rows - 1), np.clip(right, 0, columns - 1)

    counts = np.zeros((rows, columns))
    np.add.at(counts, cells(spectrum.eigenvalues), 1)
    density = float(theory.eigenvalue_density("random", spectrum.gain, 0.0))
    expected = spectrum.n * density * (2 * reach) ** 2 / (rows * columns)
    full = len(marks.shades) - 1
    # An even spectrum has the middle shade; single eigenvalues of a small matrix do, too.
    levels = np.minimum(np.ceil(counts / max(expected, 1.0) * full / 2), full).astype(int)
    picture = np.array(list(marks.shades))[levels]
    circle = cells(spectrum.radius_edge * np.exp(2j * np.pi * np.linspace(0, 1, 2000)))
    picture[circle] = np.where(counts[circle] > 0, marks.crossed, marks.circle)
    label = f"{reach:.3g}i"
    margin = len(label) + 2
    labels = {0: label, rows // 2: "0", rows - 1: f"-{label}"}
    lines = [
        f"Eigenvalues in the plane. {marks.circle} theory's edge, {marks.crossed} with eigenvalues"
    ]
    lines += [
        f"{labels.get(i, ''):>{margin}} {''.join(row)}".rstrip() for i, row in enumerate(picture)
    ]
    left, middle, right = f"{-reach:.3g}", "0", f"{reach:.3g}"
    axis = list(" " * (margin + 1 + columns))
    for word, end in ((left, len(left)), (middle, columns // 2 + 1), (right, columns)):
        axis[margin + 1 + end - len(word) : margin + 1 + end] = word
    return [*lines, "".join(axis).rstrip()]


def _numbers(spectrum: Spectrum) -> list[str]:
    exact = families.get(spectrum.family).isometric
    limit = "exact" if exact else "limit of large n"
    rows = [
        ("spectral norm", spectrum.spectral_norm, spectrum.norm_edge, limit),
        ("spectral radius", spectrum.spectral_radius, spectrum.radius_edge, limit),
        (
            "Frobenius norm",
            spectrum.frobenius_norm,
            spectrum.expected_frobenius_norm,
            "exact" if exact else "root mean square",
        ),
    ]
    return [
        f"{'':15}  {'measured':>9}  {'theory':>9}",
        *(f"{name:15}  {got:9.4g}  {theirs:9.4g}  {what}" for name, got, theirs, what in rows),
    ]


def _draw_plane(axes: Any, spectrum: Spectrum, colour: str) -> None:
    law = families.get(spectrum.family)
    values = spectrum.eigenvalues
    size = float(np.clip(2000 / spectrum.n, 6 if law.isometric else 1.5, 12))
    axes.scatter(values.real, values.imag, s=size, color=colour, lw=0, label="eigenvalues")
    circle = spectrum.radius_edge * np.exp(2j * np.pi * np.linspace(0, 1, 401))
    edge = "theory: all on this circle" if law.isometric else "theory: even within this circle"
    axes.plot(circle.real, circle.imag, "k--", lw=0.8, label=edge)
    reach = 1.15 * max(spectrum.radius_edge, spectrum.spectral_radius)
    axes.set(
        xlabel="real part", ylabel="imaginary part", aspect="equal",
        xlim=(-reach, reach), ylim=(-reach, reach),
    )  # fmt: skip
    if law.isometric:
        # The points hide whether they are spread evenly: the circle has room for that.
        inner = axes.inset_axes((0.31, 0.34, 0.42, 0.36))
        _draw_line(inner, spectrum, colour)
        inner.set_xlabel("angle of the eigenvalue", fontsize=7)
        inner.set_ylabel("density", fontsize=7)
        inner.set_xticks([-np.pi, 0, np.pi], ["-π", "0", "π"])
        inner.tick_params(labelsize=7)
        inner.get_legend().remove()
    # Nowhere inside is empty.
    axes.legend(
        fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False,
        markerscale=2,
    )  # fmt: skip


def _draw_line(axes: Any, spectrum: Spectrum, colour: str) -> None:
    name, values = spectrum.line
    law = families.get(spectrum.family)
    half = np.pi if law.isometric else spectrum.radius_edge
    edges = _eigenvalue_bins(spectrum, _figure_bins(spectrum))
    at = _grid(-half, half)
    _draw_density(axes, values, edges, at, theory.eigenvalue_density, spectrum, colour)
    if law.symmetry == -1:
        name = "imaginary part of the eigenvalue (the real part is 0)"
    axes.set(xlabel=name, ylabel="density of eigenvalues")


def _draw_singular_values(axes: Any, spectrum: Spectrum, colour: str) -> None:
    values = spectrum.singular_values
    if families.get(spectrum.family).isometric:
        edges = np.linspace(0, 1.25 * spectrum.gain, 26) + spectrum.gain / 40
        axes.hist(values, edges, color=colour, alpha=0.4, label="measured")
        axes.axvline(spectrum.gain, color="k", ls="--", lw=1, label="theory: all equal the gain")
        axes.set(xlabel="singular value", ylabel="number", xlim=(0, 1.25 * spectrum.gain))
        axes.legend(fontsize=7, loc="upper left")
        return
    edges = _singular_value_bins(spectrum, _figure_bins(spectrum))
    at = _grid(0, spectrum.norm_edge)
    _draw_density(axes, values, edges, at, theory.singular_value_density, spectrum, colour)
    axes.set(xlabel="singular value", ylabel="density of singular values", xlim=(0, None))


def _draw_density(
    axes: Any,
    values: Vector,
    edges: Vector,
    at: Vector,
    density: Any,
    spectrum: Spectrum,
    colour: str,
) -> None:
    axes.hist(values, edges, density=True, color=colour, alpha=0.4, label="measured")
    axes.plot(at, _density(density, spectrum, at), "k--", lw=1, label="theory")
    axes.legend(fontsize=7, loc="upper right")


def _figure_bins(spectrum: Spectrum) -> int:
    """Return a number of bins that is odd, more than text has, and leaves some values in each."""
    return int(np.clip(spectrum.n / 16, _BINS, 51)) // 2 * 2 + 1


def _grid(low: float, high: float) -> Vector:
    """Return points that are close together at the ends, where densities are steep."""
    return (low + high) / 2 - (high - low) / 2 * np.cos(np.linspace(0, np.pi, 401))
