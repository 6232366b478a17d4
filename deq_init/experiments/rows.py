"""The rows of a results file, and which of them make whole cells: one definition for all readers.

A row has the key of its cell (``cell``), how many rows the cell has (``of``) and its ``seed``. The
rows that one run of a cell has written share their ``cell_seconds`` and ``environment``, which
distinguish them from those of another run, on another machine for example. A cell is whole as soon
as one run of it has all its rows, in any order; that run counts, and all other rows are ignored.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from deq_init.errors import OutputError

Row = dict[str, Any]

_BOM = b"\xef\xbb\xbf"
_BEGINNING = b'{"cell":'
_SHOWN = 60


class Line(NamedTuple):
    """A row in a file.

    Attributes
    ----------
    row : dict
        What it says.
    number : int
        Of its line, from 1.
    begin : int
        Its first byte.
    run : str
        The same for all rows that one run of a cell has written.
    torn : int
        How many torn rows are before it in its line: files were concatenated.
    """

    row: Row
    number: int
    begin: int
    run: str
    torn: int = 0


class Cells:
    """The cells of the lines that have been added.

    Attributes
    ----------
    rows : dict of str to list of dict
        The whole cells by key, in the order in which they became whole; their rows by seed.
    numbers : dict of str to list of int
        The lines of those rows.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {}
        self.numbers: dict[str, list[int]] = {}
        self._runs: dict[str, dict[Any, Line]] = {}
        self._lines_of_run: Counter[str] = Counter()
        self._lines_of_cell: Counter[str] = Counter()
        self._torn = 0

    @property
    def keys(self) -> set[str]:
        """The keys of all cells, whole or not."""
        return set(self._lines_of_cell)

    def add(self, line: Line) -> None:
        """Take in a line."""
        key = line.row["cell"]
        self._lines_of_cell[key] += 1
        self._torn += line.torn
        if key in self.rows:
            return
        self._lines_of_run[line.run] += 1
        run = self._runs.setdefault(line.run, {})
        run.setdefault(line.row.get("seed"), line)
        if len(run) == line.row["of"]:
            whole = [run[seed] for seed in sorted(run, key=lambda seed: seed or 0)]
            self.rows[key] = [each.row for each in whole]
            self.numbers[key] = [each.number for each in whole]

    def pop_tail(self, lines: list[Line]) -> list[Line]:
        """Remove and return those of the last lines that are all there is of an unfinished run."""
        if not lines or lines[-1].row["cell"] in self.rows:
            return []
        count = self._lines_of_run[lines[-1].run]
        tail = lines[-count:]
        if len(tail) < count or any(line.run != lines[-1].run for line in tail):
            return []
        del self._runs[tail[0].run], self._lines_of_run[tail[0].run]
        key = tail[0].row["cell"]
        self._lines_of_cell[key] -= count
        if not self._lines_of_cell[key]:
            del self._lines_of_cell[key]
        return tail

    def ignored(self) -> str | None:
        """Return how many rows are ignored, in words, or None if none is."""
        counts = self._lines_of_cell.items()
        unfinished = sum(count for key, count in counts if key not in self.rows)
        repeated = sum(count - len(self.rows[key]) for key, count in counts if key in self.rows)
        parts = [
            f"{count} {'row' if count == 1 else 'rows'} {what}"
            for count, what in (
                (unfinished, "of cells that are not whole"),
                (repeated, "beside the first whole copy of their cells"),
                (self._torn, "that are torn"),
            )
            if count
        ]
        return " and ".join(parts) or None


def parse(path: Path, data: bytes, number: int = 0, begin: int = 0) -> tuple[list[Line], int]:
    """Return the rows in the bytes of a results file, and where a torn last line begins.

    Parameters
    ----------
    path : Path
        The file, for messages.
    data : bytes
        What is read of it. Blank lines and a byte order mark are skipped.
    number, begin : int
        How many line ends and bytes are before them.

    Returns
    -------
    lines : list of Line
        The last one may lack its line end.
    torn : int
        The first byte of what a crash has left of a last line, or the end of the data.

    Raises
    ------
    OutputError
        For a line that is no row.
    """
    lines: list[Line] = []
    end = begin + len(data)
    for text in data.split(b"\n"):
        number += 1
        content = text.removeprefix(_BOM) if begin == 0 else text
        if content.strip(b" \t\r"):
            line = _line(content, number, begin)
            found = [line] if line else _joined(content, number, begin)
            if not found:
                if begin + len(text) == end and _is_torn(content):
                    return lines, begin
                raise OutputError(
                    f"expected {path} to hold a result in each line, received {_shown(content)} "
                    f"as line {number}. Delete that line, or choose another folder with --output."
                )
            lines += found
        begin += len(text) + 1
    return lines, end


def _line(content: bytes, number: int, begin: int) -> Line | None:
    try:
        row = json.loads(content.decode("utf-8"), parse_constant=lambda name: None)
        if not isinstance(row, dict):
            return None
        key, count, seed = (row.get(name) for name in ("cell", "of", "seed"))
        run = repr((key, count, row.get("cell_seconds"), row.get("environment")))
    except (ValueError, RecursionError):
        return None
    if not isinstance(key, str) or type(count) is not int or count < 1:
        return None
    if seed is not None and type(seed) is not int:
        return None
    return Line(row, number, begin, run)


def _joined(content: bytes, number: int, begin: int) -> list[Line]:
    """Return the rows of a line that are whole, where the last one is and others may be torn.

    Such a line is where files were concatenated of which one lacks its last line end.
    """
    lines: list[Line] = []
    torn = 0
    first, *parts = content.split(_BEGINNING)
    if first:
        return []
    for part in parts:
        line = _line(_BEGINNING + part, number, begin)
        if line:
            lines.append(line._replace(torn=torn))
        torn = 0 if line else torn + 1
    return [] if torn else lines


def _is_torn(content: bytes) -> bool:
    """Return whether a crash may have left this of a row."""
    return content[: len(_BEGINNING)] == _BEGINNING[: len(content)] or _nul(content)


def _nul(content: bytes) -> bool:
    """Return whether there is nothing but zeros, as file systems may leave them after a crash."""
    return not content.strip(b"\0")


def _shown(content: bytes) -> str:
    if _nul(content):
        return f"{len(content)} NUL bytes"
    return repr(content[:_SHOWN]) + ("..." if len(content) > _SHOWN else "")
