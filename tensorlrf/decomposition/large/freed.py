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
