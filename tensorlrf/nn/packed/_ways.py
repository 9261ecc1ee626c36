"""Which way of a recurrence should be faster on a CPU, before `tune` has measured it.

Step by step on the factors, Python and the library calls of a step take their time whatever the
sizes; torch's kernel has its steps nearly for nothing, but is given a dense matrix that is made in
each call, and reads it in every step. What arrives from the input costs both the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.ops import linear_cost

# Derived from the 18 rows of bench/results/cpu/recurrent.md (LSTMs of 256 to 2,048 units at a half,
# a quarter and an eighth of the weights, batch 1 and 16, one direction, two threads, float32): the
# times of the two ways, less what the input's product takes, as sums of these. All 18 are told
# right. Not measured were projections and other cells, which have fewer calls a step: these are
# given the loop a bit late.
STEP_SECONDS = 45e-6  # of the loop: Python, two products and the gates of one sequence
GATE_SECONDS = 10e-9  # more, for each number of the state
LOOP_RATE = 65e9  # FLOP/s of the two products, thin as they are
LOOP_NEAR = 1 << 20  # bytes of factors that stay in the caches of the cores from step to step
LOOP_BANDWIDTH = 20e9  # bytes/s beyond them
KERNEL_RATE = 150e9
KERNEL_NEAR = 11e6  # bytes of the matrix that stay in the last cache
NEAR_BANDWIDTH = 70e9
FAR_BANDWIDTH = 15e9
THREADS = 2  # with which these were measured


def loop_is_faster(
    layers: Sequence[Any], hidden: int, rows: int, steps: int, turns: int = 1
) -> bool:
    """Whether going step by step on the factors of the `layers` of a recurrence, dense or factored,
    should take less time than torch's kernel, for so many rows in so many steps.

    hidden  numbers of the state of one sequence
    turns   directions that go in one loop, so that the calls of a step are shared
    """
    batch = -(-rows // steps)
    speed = torch.get_num_threads() / THREADS
    loop, kernel, made = STEP_SECONDS / turns + GATE_SECONDS * batch * hidden, 0.0, 0.0
    for layer in layers:
        held = layer.factors if isinstance(layer, FactoredLayer) else layer.weight
        numbers = math.prod(held.shape)
        flops, read = 2 * batch * numbers, numbers * held.dtype.itemsize
        far = max(0.0, read - KERNEL_NEAR) / FAR_BANDWIDTH
        kernel += max(flops / KERNEL_RATE, read / NEAR_BANDWIDTH + far) / speed
        if isinstance(layer, FactoredLayer):
            path = layer.path_table.lookup(batch)
            flops, read = linear_cost(held, path, batch).flops, held.n_bytes
            made += linear_cost(held, "dense", rows=0).flops / KERNEL_RATE / speed
        loop += max(flops / LOOP_RATE, max(0, read - LOOP_NEAR) / LOOP_BANDWIDTH) / speed
    return steps * loop < made + steps * kernel
