"""Tune the launches of every kernel on the layers that `bench.gpu` times, but for those held out.

    python -m bench.tune --output kernels/tensorlrf_kernels/tables --seconds 480

The table is written after every problem, so that a run that is cut short has not been for nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from bench.conv_cases import conv_formats, conv_problem
from bench.kernel_cases import DTYPE
from bench.shapes import (
    FLAGSHIPS,
    KERNEL_CONVS,
    KERNEL_LAYERS,
    KERNEL_ROWS,
    Conv,
    held_out,
    kernel_ranks,
)
from tensorlrf_kernels._chip import chip_of
from tensorlrf_kernels._launch import Problem
from tensorlrf_kernels._tables import bucket, dtype_key, write_table
from tensorlrf_kernels.tune import tune


def problems() -> Iterator[tuple[str, str, Problem]]:
    """(op, direction, problem), what the goals are about first, one of a bucket; none in a bucket
    that a layer held out falls into."""
    seen = {_key(*each) for each, out in (*_linears(), *_convolutions()) if out}

    def new(*each: tuple[str, str, Problem]) -> Iterator[tuple[str, str, Problem]]:
        for one in each:
            if _key(*one) not in seen:
                seen.add(_key(*one))
                yield one

    def problem(*sizes: int) -> Problem:
        return Problem(*sizes, DTYPE)

    goals = [conv for conv, _ in FLAGSHIPS]
    yield from new(*(each for each, _ in _convolutions(goals)))
    for conv, ranks in FLAGSHIPS:
        for rank in ranks:
            yield from new(("cp_conv2d", "backward", problem(conv.rows, rank, rank, rank)))
    for rank in (64, 128):
        yield from new(
            ("lowrank_swiglu", "forward", problem(8192, 14336, 4096, rank)),
            ("lowrank_linear", "backward", problem(8192, 4096, 4096, rank)),
        )
    yield from new(*(each for each, _ in _linears()))
    for rows in (1, 16, 128):
        yield from new(("lowrank_swiglu", "forward", problem(rows, 14336, 4096, 128)))
    yield from new(*(each for each, _ in _convolutions()))


Known = tuple[tuple[str, str, Problem], bool]  # what is to be launched, and whether it is held out


def _linears() -> Iterator[Known]:
    for rows in reversed(KERNEL_ROWS):
        for _, out, inp in KERNEL_LAYERS:
            for rank in kernel_ranks(out, inp):
                problem = Problem(rows, out, inp, rank, DTYPE)
                yield ("lowrank_linear", "forward", problem), held_out(out, inp, rank)


def _convolutions(of: Sequence[Conv] = KERNEL_CONVS) -> Iterator[Known]:
    for conv in of:
        for format, rank in conv_formats(conv):
            op, problem, out = conv_problem(conv, format, rank)
            yield (op, "forward", problem), out


def _key(op: str, direction: str, problem: Problem) -> tuple[str, str, str]:
    return op, direction, bucket(problem)


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
            found = tune(op, direction, problem, device, seconds=left, pool=pool)
            if found is None:
                continue
            print(f"{op}.{direction} {bucket(problem)}: {found}", flush=True)
            key = (op, direction, dtype_key(problem), bucket(problem))
            path = write_table(given.output, chip, {key: found.best})
    print(path or "nothing was tuned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
