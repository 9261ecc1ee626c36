"""Whether somebody is still at work on a file: a lock that ends with its process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tensorlrf.files import system

try:
    import fcntl as _fcntl
except ImportError:  # Windows
    _fcntl = None  # type: ignore[assignment]

fcntl: Any = _fcntl


def take(file: int, *, wait: bool = False) -> bool | None:
    """Lock an open file for as long as it is open.

    False where another has the lock, None where there are no locks here.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_at(file: int, path: Path) -> bool:
    """Whether the open file is what the path names.

    Windows, where numbers of files are not those of their names in each version of Python, renames
    and removes no file that is open.
    """
    try:
        if system.WINDOWS:
            return os.path.lexists(path)
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except OSError:
        return False
