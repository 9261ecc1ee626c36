"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch


@cache
def releases() -> tuple[Callable[[], object], Callable[[], object]]:
    """Of MKL's workspaces and of malloc's; on systems without them there is nothing to do."""

    def nothing() -> None:
        pass

    of_mkl: Callable[[], object] = nothing
    of_malloc: Callable[[], object] = nothing
    try:  # what mkl_free_buffers() calls; torch exports no other name of it
        library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        of_mkl = ctypes.CDLL(str(library)).mkl_serv_free_buffers
    except (OSError, AttributeError, TypeError):
        pass
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
        of_malloc = partial(malloc_trim, 0)
    except (OSError, AttributeError, TypeError):
        pass
    return of_mkl, of_malloc


LARGE = 1 << 22
"""Bytes of a block that is mapped by itself."""

_M_MMAP_THRESHOLD = -3  # of malloc.h


def map_large() -> bool:
    """Have glibc's malloc map every large block by itself, for the rest of the process, so that it
    goes back when it is freed; False on systems where that is not to be had.

    By itself malloc raises that bound to the largest block that was ever freed, up to 32 MB, and
    keeps twice as much at the end of its heap: matrices of a fit come and go there, and up to 64 MB
    stay. It is for processes that do nothing else, as those of the command line.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE))
