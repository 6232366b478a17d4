"""A results file: one JSON object a line, appended cell by cell, by any number of processes.

The rows of a cell are written at once. What a crash cut off is taken away when the file is opened
again, so a cell is there as a whole or not at all, and once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deq_init.errors import OutputError
from deq_init.experiments.locks import Locks

RESULTS = "results.jsonl"
Row = dict[str, Any]


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
        If the folder cannot be written to, or holds something else.

    Attributes
    ----------
    rows : dict of str to list of dict
        By cell, what the file holds; :meth:`refresh` reads what other processes have added.
    """

    def __init__(self, folder: Path, keys: Collection[str]) -> None:
        self.path = folder / RESULTS
        self.rows: dict[str, list[Row]] = {}
        self._keys, self._end = frozenset(keys), 0
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
        except OSError as error:
            self.close()
            raise _unwritable(folder, error) from error
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._guard, self._locks.writing():
            yield

    def refresh(self) -> None:
        """Read what other processes have added."""
        with self._writing():
            self._read()

    def claim(self, key: str) -> bool:
        """Say whether this process may run a cell: no other does, and the file has it not."""
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
        cell has) are added to each row.

        Raises
        ------
        OutputError
            If it fails, on a full disk for example; the file is then as it was.
        """
        rows = list(rows)
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
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError("only a part could be written; the disk may be full")
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise OutputError(
                f"expected to write to {self.path}: {error}. What was written before is kept: "
                "make room, and run the same command again to go on."
            ) from error

    def _read(self) -> None:
        """Take in the cells beyond the last one read, and cut off what is no whole one at the end.

        As nobody else writes now, that is what a crash has left: a part of a line, or of a cell.
        """
        size = os.fstat(self._descriptor).st_size
        data = _from(self._descriptor, self._end, size)
        kept = 0
        cell: list[Row] = []
        for row, end in parse(self.path, data[: data.rfind(b"\n") + 1]):
            if cell and cell[0]["cell"] != row["cell"]:
                cell = []
            cell.append(row)
            if len(cell) == row["of"]:
                for whole in cell:
                    self._take(whole)
                kept, cell = end, []
        self._end += kept
        if self._end < size:
            os.ftruncate(self._descriptor, self._end)

    def _take(self, row: Row) -> None:
        key = row["cell"]
        if key not in self._keys:
            raise OutputError(
                f"expected {self.path} to hold results of this very configuration, received those "
                f"of another: {_described(row)}. Choose another folder with --output, or move the "
                "old results away."
            )
        self.rows.setdefault(key, []).append(row)


def parse(path: Path, data: bytes) -> Iterable[tuple[Row, int]]:
    """Yield the rows in the bytes of a results file, and where each ends.

    Raises
    ------
    OutputError
        For a line that is no row.
    """
    end = 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not (isinstance(row, dict) and isinstance(row.get("cell"), str) and "of" in row):
            raise OutputError(
                f"expected {path} to hold a result in each line, received {line[:60]!r} as line "
                f"{number} of what was read. Choose another folder with --output, or move the "
                "file away."
            )
        end += len(line)
        yield row, end


def read(folder: Path) -> list[Row]:
    """Return the rows of a folder; those of a cell that a crash cut off are left out.

    Raises
    ------
    OutputError
        If there are none, or the file cannot be read.
    """
    path = folder / RESULTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OutputError(
            f"expected a folder with {RESULTS}, received {folder}: {error}. Pass one that "
            "deq-init reproduce has written to."
        ) from error
    rows = [row for row, _ in parse(path, data[: data.rfind(b"\n") + 1])]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["cell"]] = counts.get(row["cell"], 0) + 1
    rows = [row for row in rows if counts[row["cell"]] == row["of"]]
    if not rows:
        raise OutputError(
            f"expected results in {path}, received none. Run deq-init reproduce with --output."
        )
    return rows


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
