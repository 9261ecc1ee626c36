"""The gates of a recurrent matrix: one low rank for all of them, or one for each.

A matrix of an LSTM or a GRU is that of its g gates, each (h, n), stacked. At rank r all together
have r (g h + n) parameters and one right factor. Apart they are blocks of ranks r_1 to r_g with as
many, the sum of r_i (h + n): where gates look at their inputs in common ways together is better,
where each looks at something else apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from tensorlrf.compression.fit._factored import Factored, Options
from tensorlrf.compression.report._rows import GateChoice
from tensorlrf.decomposition.configs import BLR, SVD, Method

TOGETHER, APART = "together", "apart"
"""What `SVD.gates` says, beside "auto"."""

CLEARLY = 0.95
"""Of the squared error together that gates apart may leave: the product of a single low rank is two
calls of any library, and torch's kernel takes the smaller of its factors."""


def fitted_by_gates(
    method: Method,
    shape: Sequence[int],
    options: Options,
    best: Callable[[Method], Factored],
) -> Factored:
    """The `best` fit by a method, in which gates are together, apart, or whichever loses clearly
    less at as many parameters; at one error, whichever has fewer of them."""
    asked = isinstance(method, SVD) and method.gates != TOGETHER
    if not asked or options.gates == 1 or options.right is not None:
        return best(method)
    assert isinstance(method, SVD)
    apart = best(gates_apart(method, shape, options.gates))
    if method.gates == APART:
        return apart
    together = best(method)
    if method.error is None:
        takes = apart.judged**2 < CLEARLY * together.judged**2
    else:
        takes = apart.factors.n_params < together.factors.n_params
    choice = GateChoice(
        apart=takes,
        error_apart=apart.judged,
        error_together=together.judged,
        params_apart=apart.factors.n_params,
        params_together=together.factors.n_params,
        held_out=together.held_error is not None,
    )
    return replace(apart if takes else together, gates=choice)


def gates_apart(method: SVD, shape: Sequence[int], gates: int) -> BLR:
    """Blocks of low rank, one a gate, of as many parameters or within the same error."""
    m, n = shape
    block = (m // gates, n)
    if not isinstance(method.rank, int):
        return BLR(block=block, rank=method.rank, error=method.error)
    # Half a parameter more, which rounding may take away again.
    share = (method.params_at(method.rank, (m, n)) + 0.5) / math.prod(shape)
    return BLR(block=block, rank=min(1.0, share))
