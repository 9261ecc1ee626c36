"""The grouped kernels of the formats of blocks: when they serve, and what they cost."""

from __future__ import annotations

import torch

from tensorlrf.ops._counter import Counter
from tensorlrf_kernels.blr_linear.forms import Form
from tensorlrf_kernels.blr_linear.fused import tile_work
from tensorlrf_kernels.blr_linear.launch import MOST_MASKED, forward
from tensorlrf_kernels.chips import H200
from tensorlrf_kernels.launches import Problem

CPU = torch.device("cpu")


def block_problem(
    form: Form, rows: int, dtype: torch.dtype, tf32: bool
) -> tuple[str, Problem] | None:
    """What the kernels are to compute; None where they do not serve."""
    problem = Problem(rows, *form.shape, form.rank, dtype, tf32)
    padding = _padding(form, problem)
    return None if padding is None else ("blr_linear", problem)


def _padding(form: Form, problem: Problem) -> float | None:
    """How many times as much is multiplied in whole tiles; None where no kernel serves."""
    config = forward(problem, H200)
    work = None if config is None else tile_work(form, config, False, CPU)
    if work is None or not form.work or work > MOST_MASKED * form.work:
        return None
    return work / form.work


def block_cost(counter: Counter, form: Form, rows: int, dtype: torch.dtype) -> bool:
    """Counts what the kernels do; False, and nothing, where they do not serve."""
    problem = Problem(rows, *form.shape, form.rank, dtype)
    config, padding = forward(problem, H200), _padding(form, problem)
    if config is None or padding is None:
        return False
    into = sum(p.width * p.ranks for p in form.right.panels)
    out = sum(p.width * p.ranks for p in form.left.panels)
    dense = sum(p.width * p.ranks for p in form.dense)
    (m, n), weights = form.shape, into + out + dense
    if config.kernel == "decode" and form.name == "blr":
        counter.kernel(rows * weights, rows * (m + n) + weights, padding, few=True)
        return True
    # What lies between the launches stays in the cache, a chunk of rows at a time.
    counter.kernel(rows * into, rows * n + into, padding)
    if form.name == "blast":
        counter.merge(rows * (form.left.slots + form.right.slots) // 2)
    x_again = rows * n if dense else 0
    counter.kernel(rows * (out + dense), rows * m + x_again + out + dense, padding)
    return True
