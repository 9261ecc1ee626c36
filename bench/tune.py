"""Tune the launches of every kernel on the layers that `bench.gpu` times, but for those held out.

    python -m bench.tune --output kernels/tensorlrf_kernels/tables --seconds 480

The table is written after every problem, so that a run that is cut short has not been for nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from bench import lowrank_embedding_cases as tables
from bench.conv_cases import conv_formats, conv_problem
from bench.kernel_cases import DTYPE
from bench.mttkrp_cases import CASES, mttkrp_problem
from bench.shapes import (
    FLAGSHIPS,
    KERNEL_CONVS,
    KERNEL_LAYERS,
    KERNEL_ROWS,
    Conv,
    held_out,
    kernel_ranks,
)
from bench.sparse_mttkrp_cases import SPARSE, sparse_mttkrp_problem
from bench.structured_cases import FLAGSHIP, N_GOALS, all_layers
from tensorlrf.ops.fused import fused_problem
from tensorlrf_kernels._tables import bucket, dtype_key, write_table
from tensorlrf_kernels.chips import chip_of
from tensorlrf_kernels.kron_linear.launch import KronProblem
from tensorlrf_kernels.launches import Problem, Workload
from tensorlrf_kernels.tune import tune

Known = tuple[tuple[str, str, Workload], bool]  # what is to be launched, and whether it is held out


def problems() -> Iterator[tuple[str, str, Workload]]:
    """(op, direction, problem), what the goals are about first, one of a bucket; none in a bucket
    that a layer held out falls into."""
    known = (*_linears(), *_convolutions(), *_structured())
    seen = {_key(*each) for each, out in known if out}

    def new(each: Iterable[tuple[str, str, Workload]]) -> Iterator[tuple[str, str, Workload]]:
        for one in each:
            if _key(*one) not in seen:
                seen.add(_key(*one))
                yield one

    structured = [each for each, _ in _structured()]
    yield from new(each for each, _ in _convolutions([conv for conv, _ in FLAGSHIPS]))
    yield from new(structured[:N_GOALS])
    yield from new(_rows())
    yield from new(_gradients())
    yield from new(each for each, _ in _linears())
    yield from new(structured[N_GOALS:])
    yield from new(each for each, _ in _convolutions())


def _linears() -> Iterator[Known]:
    for rows in reversed(KERNEL_ROWS):
        for _, out, inp in KERNEL_LAYERS:
            for rank in kernel_ranks(out, inp):
                yield (
                    ("lowrank_linear", "forward", _problem(rows, out, inp, rank)),
                    held_out(out, inp, rank),
                )


def _convolutions(of: Sequence[Conv] = KERNEL_CONVS) -> Iterator[Known]:
    for conv in of:
        for format, rank in conv_formats(conv):
            op, problem, out = conv_problem(conv, format, rank)
            yield (op, "forward", problem), out


def _structured() -> Iterator[Known]:
    for _, make, M, out in all_layers():
        found = fused_problem(make("meta"), M)
        if found is not None:
            op, problem = found
            yield (op, "forward", problem), out


def _rows() -> Iterator[tuple[str, str, Workload]]:
    """Of tables and MLPs."""
    for M in reversed(tables.COUNTS):
        for rank in tables.RANKS:
            yield "lowrank_embedding", "forward", _problem(M, tables.COLUMNS, tables.ROWS, rank)
    for rank in tables.CUT_RANKS:
        yield (
            "tt_embedding",
            "forward",
            _problem(tables.COUNTS[-1], tables.COLUMNS, tables.ROWS, rank),
        )
    for rank in (64, 128):
        yield "lowrank_swiglu", "forward", _problem(8192, 14336, 4096, rank)
    for M in (1, 16, 128):
        yield "lowrank_swiglu", "forward", _problem(M, 14336, 4096, 128)
    for sizes, columns, left in CASES:
        # A trial launch has one outer and one inner mode.
        if len(sizes) == 3:
            yield "mttkrp", "forward", mttkrp_problem(sizes, columns, left)
    for nnz, rows, _, columns in SPARSE:
        yield "sparse_mttkrp", "forward", sparse_mttkrp_problem(nnz, rows, columns)


def _gradients() -> Iterator[tuple[str, str, Workload]]:
    for conv, ranks in FLAGSHIPS:
        for rank in ranks:
            yield "cp_conv2d", "backward", _problem(conv.rows, rank, rank, rank)
    for rank in (64, 128):
        yield "lowrank_linear", "backward", _problem(8192, 4096, 4096, rank)
    yield "kron_linear", "backward", KronProblem(8192, *FLAGSHIP, 2, DTYPE)
    yield "blr_linear", "backward", _problem(8192, 4096, 4096, 256)
    yield (
        "lowrank_embedding",
        "backward",
        _problem(tables.COUNTS[-1], tables.RANKS[-1], tables.ROWS, tables.RANKS[-1]),
    )


def _problem(rows: int, out: int, inp: int, rank: int) -> Problem:
    return Problem(rows, out, inp, rank, DTYPE)


def _key(op: str, direction: str, problem: Workload) -> tuple[str, str, str, str]:
    return op, direction, dtype_key(problem), bucket(problem)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the table")
    parser.add_argument("--seconds", type=float, default=540.0, help="of the whole run")
    parser.add_argument("--each", type=float, default=15.0, help="of one problem, at the most")
    given = parser.parse_args(arguments)
    end = time.monotonic() + given.seconds
    device = torch.device("cuda", torch.cuda.current_device())
    chip, path = chip_of(device), None
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for op, direction, problem in problems():
            left = min(given.each, end - time.monotonic())
            if left <= 0:
                break
            try:
                found = tune(op, direction, problem, device, seconds=left, pool=pool)
            except Exception as error:  # whatever it is, the other problems need the GPU's time
                print(f"{op}.{direction} {bucket(problem)}: {type(error).__name__}: {error}")
                continue
            if found is None:
                continue
            print(f"{op}.{direction} {bucket(problem)}: {found}", flush=True)
            path = write_table(given.output, chip, {_key(op, direction, problem): found.best})
    print(path or "nothing was tuned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
