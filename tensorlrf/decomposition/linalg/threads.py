"""How many threads a problem takes: one for its small steps, the free cores for its large ones.

Every decomposition is entered as a `problem`, by its declaration or through `threaded`. torch's
number of threads is then one, in this thread of the program alone, and as it was afterwards;
`cores_for` gives a large step what the user gave torch, less what others keep busy.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch

from tensorlrf.decomposition.linalg.cores import Cores, look
from tensorlrf.factors.arrays import SPARSE_LAYOUTS

_NOTHING = contextlib.nullcontext()

F = TypeVar("F", bound=Callable[..., Any])

Kind = Literal["sweep", "product", "spectrum"]

CROSSOVER: dict[Kind, float] = {"sweep": 1 << 18, "product": 3e8, "spectrum": 5e7}
"""Work from which on more threads than one are worth their keep on free cores: entries of a tensor
that is swept over (with 2^18, kron of 512 x 512, and an svd of 1024 x 1024 by products, two threads
took .75 of one's time), multiply-adds of a product, and for an m x n eigendecomposition, SVD or QR
m n min(m, n), the latter two some ten milliseconds of one core."""


def threads_for(kind: Kind, work: float, most: int, cores: Cores) -> int:
    """Threads for a step: one below the crossover; above it `most`, torch's own number, as far as
    there are free cores."""
    if work < CROSSOVER[kind]:
        return 1
    return max(1, min(most, cores.free))


def threaded(function: F) -> F:
    """A decomposition: of a tensor or in a metric of many entries on the free cores, else on one.
    Within another one, on what that has at the time."""

    @functools.wraps(function)
    def entered(*args: Any, **kwargs: Any) -> Any:
        with problem(entries((*args, *kwargs.values()))):
            return function(*args, **kwargs)

    return cast(F, entered)


def problem(entries: int = 0) -> contextlib.AbstractContextManager[None]:
    """While entered this thread works on one problem of so many entries."""
    return _NOTHING if _here.most is not None else _problem(entries)


@contextlib.contextmanager
def _problem(entries: int) -> Iterator[None]:
    _here.most = most = torch.get_num_threads()
    try:
        with _at_most("sweep", entries, most):
            yield
    finally:
        _here.most = None


def cores_for(kind: Kind, work: float) -> contextlib.AbstractContextManager[None]:
    """Within a problem, the threads for one step; as it is outside of one."""
    most = _here.most
    if most is None or work < CROSSOVER[kind]:
        return _NOTHING
    return _at_most(kind, work, most)


@contextlib.contextmanager
def limited(count: int) -> Iterator[None]:
    """This thread of the program has so many of torch's, whatever it does: no step takes more."""
    most = _here.most
    _here.most = count
    try:
        with _number(count):
            yield
    finally:
        _here.most = most


@contextlib.contextmanager
def steady(count: int) -> Iterator[None]:
    """This thread of the program takes so many for every large step, whoever else is there: sums
    are then added in one order, and a result made again has the same bits."""
    before, _here.steady = _here.steady, True
    try:
        with limited(count):
            yield
    finally:
        _here.steady = before


def handed_on(count: int) -> contextlib.AbstractContextManager[None]:
    """For a thread of the program that works on a part of what is done here: so many of torch's,
    steady ones if they are so here. It may be made here and entered there."""
    return steady(count) if _here.steady else limited(count)


def most_threads() -> int:
    """What the problem at hand may take, or outside of one torch's own number."""
    return torch.get_num_threads() if _here.most is None else _here.most


def spectrum_work(m: int, n: int) -> float:
    """Of an m x n eigendecomposition, SVD or QR."""
    return float(m) * n * min(m, n)


def _at_most(kind: Kind, work: float, most: int) -> contextlib.AbstractContextManager[None]:
    if most == 1:
        return _NOTHING  # one it is by now
    if _here.steady:
        cores = Cores(most, most)
    else:
        cores = look() if work >= CROSSOVER[kind] else Cores(1, 1)
    return _number(threads_for(kind, work, most, cores))


@contextlib.contextmanager
def _number(count: int) -> Iterator[None]:
    """torch's number of threads, in this thread of the program."""
    before = torch.get_num_threads()  # and torch's default for a new thread is set by now
    if count == before:
        yield
        return
    set_openmp, set_mkl = _setters()
    mkl = 0
    try:
        set_openmp(count)
        mkl = set_mkl(count)
        yield
    finally:
        set_openmp(before)
        set_mkl(mkl)


@functools.cache
def _setters() -> tuple[Callable[[int], Any], Callable[[int], int]]:
    """What sets the number for OpenMP and for MKL, which gives back the one before.

    `torch.set_num_threads` calls both, but also notes the number for threads that begin later and
    belong to others. It serves where a build of torch has no OpenMP or hides it.
    """
    try:
        (path,) = (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.[sd][oy]*")
        library = ctypes.PyDLL(str(path))  # which keeps the interpreter's lock
        openmp = library.omp_set_num_threads
    except (OSError, AttributeError, ValueError):
        return torch.set_num_threads, lambda count: 0
    openmp.argtypes, openmp.restype = [ctypes.c_int], None
    try:
        mkl = library.MKL_Set_Num_Threads_Local
    except AttributeError:
        return openmp, lambda count: 0
    mkl.argtypes, mkl.restype = [ctypes.c_int], ctypes.c_int
    return openmp, mkl


class _Thread(threading.local):
    """most   threads that a step of the problem at hand may take; None outside of one
    steady  whether it takes these in any case
    """

    most: int | None = None
    steady: bool = False


_here = _Thread()


def entries(values: tuple[Any, ...]) -> int:
    """Of the largest of the arrays, a metric included."""
    most = 0
    for value in values:
        if isinstance(value, torch.Tensor):
            sparse = value.layout in SPARSE_LAYOUTS and not value.is_meta
            most = max(most, value._nnz() if sparse else value.numel())
        elif isinstance(value, np.ndarray):
            most = max(most, value.size)
        elif hasattr(value, "nnz"):  # sparse
            most = max(most, value.nnz)
    return most
