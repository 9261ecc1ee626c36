"""Monarch matrices in the metric of the inputs.

Rows s Q + q of one q, with columns in K equal parts, are a row of low-rank blocks: a Monarch matrix
is a grid of blocks of one rank, its rows permuted. So the descent is that of block low-rank
matrices. Padded columns are inputs that are always zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.blocks._blr_outputs import BlockState, Outputs, balanced_panels
from tensorlrf.decomposition.blocks._blr_spectra import grid

Panels = tuple[Tensor, Tensor]


def descend(
    target: Target[Any], blocks: Tensor, start: Panels, n_iter_max: int, tol: float | None
) -> tuple[Panels, Descent[BlockState]]:
    """Panels with a lower output error than `start`.

    blocks (Q, K, S, P) of the target's weight; start, and the result, left (Q, K, S, r) and right
    (Q, K, r, P). Also returns the descent that led to them.
    """
    Q, K, S, P = blocks.shape
    r = int(start[0].shape[3])
    by_rows = blocks.transpose(1, 2).reshape(Q * S, K * P)
    outputs = Outputs(target.with_rows(by_rows), grid((Q * S, K * P), (S, P)))
    pairs = [(start[0][q, k], start[1][q, k]) for q in range(Q) for k in range(K)]
    run = outputs.descend(outputs.start(pairs, [r] * len(pairs)), n_iter_max, tol)
    sides = zip(*(balanced_panels(pair) for pair in run.state.contents), strict=True)
    left, right = (torch.stack(list(side)) for side in sides)
    return (left.view(Q, K, S, r), right.view(Q, K, r, P)), run
