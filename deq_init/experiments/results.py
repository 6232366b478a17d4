"""A results file: one JSON object a line, appended cell by cell, by any number of processes.

The rows of a cell are written at once. What a crash has left at the end of the file, a part of a
cell and of a line, is moved to a second file, ``results.jsonl.bak``, when it is read again. Rows
may be in any order, and files of one configuration may be concatenated: :mod:`.rows` defines which
cells are whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deq_init.errors import OutputError
from deq_init.experiments.locks import Locks
from deq_init.experiments.rows import Cells, Line, parse
from deq_init.experiments.rows import Row as Row

RESULTS = "results.jsonl"


def key_of(configuration: Row) -> str:
    """Return a cell's key: a hash of its full configuration, whatever the order of its entries.

    Examples
    --------
    >>> key_of({"family": "goe", "gain": 0.5}) == key_of({"gain": 0.5, "family": "goe"})
    True
    """
    text = json.dumps(configuration, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Results:
    """The results file of a folder, open for one run.

    Parameters
    ----------
    folder : Path
        Created if need be.
    keys : collection of str
        The keys of the cells that belong here.

    Raises
    ------
    OutputError
        If the folder cannot be written to, or holds something else; nothing is changed then.

    Notes
    -----
    What is moved to ``results.jsonl.bak``, and how many rows are ignored, is written to standard
    error.
    """

    def __init__(self, folder: Path, keys: Collection[str]) -> None:
        self.path = folder / RESULTS
        self._keys = frozenset(keys)
        self._cells, self._end, self._line_ends = Cells(), 0, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            self._locks = Locks(folder / f"{RESULTS}.lock")
        except OSError as error:
            os.close(self._descriptor)
            raise _unwritable(folder, error) from error
        # joblib's threads ask for cells while this one writes; the locks are between processes.
        self._guard = threading.RLock()
        try:
            with self._writing():
                self._read()
            _tell_ignored(self.path, self._cells)
        except OSError as error:
            self.close()
            raise _unwritable(folder, error) from error
        except BaseException:
            self.close()
            raise

    @property
    def rows(self) -> dict[str, list[Row]]:
        """The whole cells; :meth:`refresh` reads what other processes have added."""
        return self._cells.rows

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._guard, self._locks.writing():
            yield

    def refresh(self) -> None:
        """Read what other processes have added."""
        with self._writing():
            self._read()

    def claim(self, key: str) -> bool:
        """Return whether this process may run a cell: no other does, and the file has it not."""
        with self._guard:
            if not self._locks.claim(key):
                return False
            self.refresh()
            if key in self.rows:
                self._locks.release(key)
                return False
            return True

    def append(self, key: str, rows: Iterable[Row]) -> None:
        """Write the rows of a cell, at once, unless they are there.

        Numbers that are not finite become null. ``cell`` (the key) and ``of`` (how many rows the
        cell has) are added to each row. Each has another ``seed``.

        Raises
        ------
        OutputError
            If it fails, on a full disk for example, or if two rows have one seed; the file is then
            as it was.
        """
        rows = list(rows)
        if not rows or len({row.get("seed") for row in rows}) < len(rows):
            raise OutputError(
                f"expected a cell's rows, each with a seed of its own, received {len(rows)} with "
                f"the seeds {[row.get('seed') for row in rows]}. Return one row for each seed."
            )
        text = "".join(
            json.dumps(
                _plain({"cell": key, "of": len(rows), **row}),
                allow_nan=False,
                separators=(",", ":"),
            )
            + "\n"
            for row in rows
        )
        with self._writing():
            self._read()
            if key not in self.rows:
                self._write(text.encode())
                self._read()
            self._locks.release(key)

    def close(self) -> None:
        """Close the file, and give up what is claimed."""
        with self._guard:
            os.close(self._descriptor)
            self._locks.close()

    def _write(self, data: bytes) -> None:
        before = os.fstat(self._descriptor).st_size
        if before and _from(self._descriptor, before - 1, before) != b"\n":
            data = b"\n" + data
        try:
            while data:
                # A signal may end a write early on some file systems; a full disk raises.
                written = os.write(self._descriptor, data)
                if not written:
                    raise OSError("nothing could be written; the disk may be full")
                data = data[written:]
            os.fsync(self._descriptor)
        except BaseException as error:
            os.ftruncate(self._descriptor, before)
            if not isinstance(error, OSError):
                raise
            raise OutputError(
                f"expected to write to {self.path}: {error}. What was written before is kept: "
                "make room, and run the same command again to go on."
            ) from error

    def _read(self) -> None:
        """Take in what is new in the file, and move away what is no whole cell at its end.

        As nobody else writes now, that is what a crash has left.
        """
        status = os.fstat(self._descriptor)
        self._require_file(status)
        if status.st_size < self._end:  # someone has cut it: all of it may be different now
            self._cells, self._end, self._line_ends = Cells(), 0, 0
        if status.st_size == self._end:
            return
        data = _from(self._descriptor, self._end, status.st_size)
        lines, end = parse(self.path, data, self._line_ends, self._end)
        for line in lines:
            self._require_own(line.row)
        for line in lines:
            self._cells.add(line)
        tail = self._cells.pop_tail(lines)
        if tail:
            end = tail[0].begin
        if end < status.st_size:
            self._move_away(data[end - self._end :], end, tail)
        self._line_ends += data.count(b"\n", 0, end - self._end)
        self._end = end

    def _move_away(self, data: bytes, end: int, tail: list[Line]) -> None:
        """Move what is behind the end of the whole cells to another file."""
        copy = self.path.with_name(f"{RESULTS}.bak")
        with copy.open("ab") as file:
            file.write(data if data.endswith(b"\n") else data + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.ftruncate(self._descriptor, end)
        _tell(
            f"{self.path} ended in {len(data)} bytes ({len(tail)} whole rows) of a cell that was "
            f"not finished, as a crash leaves them: they were moved to {copy}, and that cell is "
            "run again"
        )

    def _require_file(self, opened: os.stat_result) -> None:
        """Raise OutputError if the file that was opened is no longer in the folder."""
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            named = None
        if named is None or not os.path.samestat(named, opened):
            raise OutputError(
                f"expected {self.path} to be the file that was opened, and it was deleted or "
                "replaced since. Run the same command again to go on with what is there."
            )

    def _require_own(self, row: Row) -> None:
        if row["cell"] not in self._keys:
            raise OutputError(
                f"expected {self.path} to hold results of this very configuration, received those "
                f"of another: {_described(row)}. Choose another folder with --output, or move the "
                "old results away."
            )


def load(folder: Path) -> Cells:
    """Return the cells in the results file of a folder, which may be written to meanwhile.

    Raises
    ------
    OutputError
        If the file cannot be read, or a line of it is no row.
    """
    path = folder / RESULTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OutputError(
            f"expected a folder with {RESULTS}, received {folder}: {error}. Pass one that "
            "deq-init reproduce has written to."
        ) from error
    cells = Cells()
    for line in parse(path, data)[0]:
        cells.add(line)
    return cells


def read(
    folder: Path,
    complaint: Callable[[Row], str | None] = lambda row: None,
    *,
    quiet: bool = False,
) -> list[Row]:
    """Return the rows of the whole cells of a folder.

    Parameters
    ----------
    folder : Path
        The folder.
    complaint : callable
        Says of a row what is wrong with it, if something is.
    quiet : bool
        Whether not to say on standard error how many rows are ignored.

    Raises
    ------
    OutputError
        If there are none, or the file cannot be read, or there is a complaint.
    """
    path = folder / RESULTS
    cells = load(folder)
    if not cells.rows:
        raise OutputError(
            f"expected results in {path}, received {cells.ignored() or 'none'}. Run deq-init "
            "reproduce with --output."
        )
    for key, rows in cells.rows.items():
        for row, number in zip(rows, cells.numbers[key], strict=True):
            wrong = complaint(row)
            if wrong is not None:
                raise OutputError(
                    f"expected {path} to hold results as deq-init writes them: {wrong} in line "
                    f"{number}. Delete the rows of that cell and run the same deq-init reproduce "
                    "again."
                )
    if not quiet:
        _tell_ignored(path, cells)
    return [row for rows in cells.rows.values() for row in rows]


def _tell_ignored(path: Path, cells: Cells) -> None:
    ignored = cells.ignored()
    if ignored:
        _tell(f"in {path}, {ignored} are ignored")


def _tell(text: str) -> None:
    print(f"deq-init: {text}", file=sys.stderr, flush=True)


def _from(descriptor: int, begin: int, end: int) -> bytes:
    os.lseek(descriptor, begin, os.SEEK_SET)
    parts = []
    while begin < end:
        part = os.read(descriptor, end - begin)
        if not part:
            break
        parts.append(part)
        begin += len(part)
    return b"".join(parts)


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"expected a folder that can be written to, received {folder}: {error}. "
        "Choose another with --output."
    )


def _described(row: Row) -> str:
    named = ("experiment", "backend", "label", "family", "gain", "seeds")
    return ", ".join(f"{name} {row[name]}" for name in named if name in row) or "unknown"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.float32):
        value = float(str(value))  # its own digits, not those of the float64 next to it
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
