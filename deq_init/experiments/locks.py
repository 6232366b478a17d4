"""Locks between processes that share a folder: gone as soon as their process is, however it ended.

One file, of which byte ranges are locked: byte 0 to write, another byte for each cell to claim it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
    import time

    def _acquire(descriptor: int, byte: int, wait: bool) -> bool:
        while True:
            os.lseek(descriptor, byte, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
                time.sleep(0.05)

    def _release(descriptor: int, byte: int) -> None:
        os.lseek(descriptor, byte, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _acquire(descriptor: int, byte: int, wait: bool) -> bool:
        flags = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.lockf(descriptor, flags, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _release(descriptor: int, byte: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, byte)


class Locks:
    """The locks of a folder, held by this process.

    Parameters
    ----------
    path : Path
        The file; it is created and stays empty. Other descriptors of it must not be closed in this
        process: POSIX would drop the locks.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait until no other process writes, and keep them from it."""
        _acquire(self._descriptor, 0, wait=True)
        try:
            yield
        finally:
            _release(self._descriptor, 0)

    def claim(self, key: str) -> bool:
        """Say whether a cell is now this process's, or another one has it."""
        return _acquire(self._descriptor, _byte(key), wait=False)

    def release(self, key: str) -> None:
        """Give a cell up."""
        _release(self._descriptor, _byte(key))

    def close(self) -> None:
        """Give everything up."""
        os.close(self._descriptor)


def _byte(key: str) -> int:
    """Return a cell's byte: of 2**30, so that two of a sweep rarely share one, which only waits."""
    return 1 + int(key, 16) % 2**30
