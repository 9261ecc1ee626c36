"""Tune the launches of every kernel on the layers that `bench.gpu` times, but for those held out.

    python -m bench.tune --output kernels/tensorlrf_kernels/tables --seconds 480

The table is written after every problem, so that a run that is cut short has not been for nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from bench.shapes import KERNEL_CONVS, KERNEL_LAYERS, KERNEL_ROWS, held_out, kernel_ranks
from tensorlrf_kernels._chip import chip_of
from tensorlrf_kernels._launch import Problem
from tensorlrf_kernels._tables import bucket, dtype_key, write_table
from tensorlrf_kernels.tune import tune


def problems() -> Iterator[tuple[str, str, Problem]]:
    """(op, direction, problem), what the goals are about first, one of a bucket; none in a bucket
    that a layer held out falls into."""
    seen = {
        ("lowrank_linear", "forward", bucket(Problem(rows, out, inp, rank, torch.bfloat16)))
        for rows in KERNEL_ROWS
        for _, out, inp in KERNEL_LAYERS
        for rank in kernel_ranks(out, inp)
        if held_out(out, inp, rank)
    }

    def new(op: str, direction: str, *sizes: int) -> Iterator[tuple[str, str, Problem]]:
        problem = Problem(*sizes, torch.bfloat16)
        key = (op, direction, bucket(problem))
        if key not in seen:
            seen.add(key)
            yield op, direction, problem

    for conv, rank in zip(KERNEL_CONVS[:3], (64, 64, 128), strict=True):
        size = (conv.rows, conv.out)
        yield from new("cp_conv2d", "forward", *size, conv.inp, rank)
        yield from new("tucker_conv2d", "forward", *size, 9 * conv.inp, rank)
        yield from new("tucker_conv2d", "forward", *size, 9 * rank, rank)
        yield from new("cp_conv2d", "backward", conv.rows, rank, rank, rank)
    for rank in (64, 128):
        yield from new("lowrank_swiglu", "forward", 8192, 14336, 4096, rank)
        yield from new("lowrank_linear", "backward", 8192, 4096, 4096, rank)
    for rows in reversed(KERNEL_ROWS):
        for _, out, inp in KERNEL_LAYERS:
            for rank in kernel_ranks(out, inp):
                yield from new("lowrank_linear", "forward", rows, out, inp, rank)
    for rows in (1, 16, 128):
        yield from new("lowrank_swiglu", "forward", rows, 14336, 4096, 128)


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
