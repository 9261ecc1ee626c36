"""How the kernel of `tucker_conv2d` is launched, from shapes, dtype and chip alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import LaunchConfig, Problem
from tensorlrf_kernels.lowrank_linear import launch as linear


def forward(problem: Problem, chip: Chip) -> LaunchConfig | None:
    """The launch of y = activation(expand(conv2d(x, core)) + bias); `inp` of the problem are the
    channels of x times the taps.

    None where no kernel serves: no size may be zero, the dtype is float16, bfloat16 or float32, and
    the rank is at most 256. The tiles are those of many rows of a low-rank linear layer, which this
    is once the taps lie side by side.
    """
    if problem.empty or problem.dtype not in linear.DTYPES:
        return None
    if problem.rank > linear.MOST_PREFILL_RANK:
        return None
    # All taps but the first find x in the cache.
    return replace(linear.prefill(problem, chip, 3), kernel="forward")


def neighbours(config: LaunchConfig, problem: Problem, chip: Chip) -> Iterator[LaunchConfig]:
    """Launches that differ from `config` in one size, for tuning to try."""
    for other in linear.neighbours(replace(config, kernel="prefill"), problem, chip):
        yield replace(other, kernel="forward")
