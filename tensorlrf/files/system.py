"""What Windows does otherwise with files than Unix.

There a file that is open is not renamed, nor removed, and no more is a folder with an open file in
it; a folder cannot be opened, nothing is locked by `flock`, only what is open for writing is
brought to the disk, and a file that is not said to be binary gets a carriage return before each
line feed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

WINDOWS = sys.platform == "win32"

BINARY: int = getattr(os, "O_BINARY", 0)
NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)
"""Flags for `os.open`; 0 where the system has none such."""

NOTHING = -1
"""In place of an open file, where the system has no use for one."""


def close(file: int) -> None:
    """Close an open file, if it is one."""
    if file != NOTHING:
        os.close(file)


def let_go(file: int) -> int:
    """What is to stay open of a file that is to be renamed or removed: NOTHING on Windows."""
    if not WINDOWS:
        return file
    close(file)
    return NOTHING


def sync(path: Path) -> None:
    """Have the bytes of a file on the disk. Raises OSError, for a link too where that is known."""
    file = os.open(path, (os.O_RDWR if WINDOWS else os.O_RDONLY) | NO_LINK | BINARY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_all(file: int, data: bytes | memoryview) -> None:
    """Write all of it where the file is; the system may take it in parts."""
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def rewrite(file: int, data: bytes) -> None:
    """Have a file hold this and nothing else."""
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    write_all(file, data)


def read(file: int, most: int) -> bytes:
    """What an open file begins with."""
    os.lseek(file, 0, os.SEEK_SET)
    with open(file, "rb", closefd=False) as stream:
        return stream.read(most)
