"""The launches of `sparse_mttkrp`, with the tensors that they fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tensorlrf_kernels._tables import launch_for
from tensorlrf_kernels.launches import Call, LaunchConfig, Problem, execute
from tensorlrf_kernels.sparse_mttkrp.launch import pieces_bound

OP = "sparse_mttkrp"


def problem_of(values: Tensor, starts: Tensor, factors: Sequence[Tensor]) -> Problem:
    """What is to be computed, as the launch is chosen by it."""
    columns = factors[0].shape[1]
    return Problem(len(starts) - 1, columns, len(values), columns, values.dtype)


def forward(
    values: Tensor, indices: Tensor, starts: Tensor, factors: Sequence[Tensor]
) -> Tensor | None:
    """y (rows, c); None where no kernel serves."""
    config = launch_for(OP, "forward", problem_of(values, starts, factors), values.device)
    if config is None:
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], Tensor]:
        return forward_calls(config, values, indices, starts, factors)

    made: Tensor | None
    made = execute(config, build, op=OP, device=values.device, dtype=values.dtype)
    return made


def forward_calls(
    config: LaunchConfig,
    values: Tensor,
    indices: Tensor,
    starts: Tensor,
    factors: Sequence[Tensor],
) -> tuple[list[Call], Tensor]:
    """The launches that make y (rows, c): pieces of rows, and the rows that have several. Where
    rows end is never looked at by the host."""
    rows, columns, nnz = len(starts) - 1, factors[0].shape[1], len(values)
    BR, BC, LONGEST, BS = (config.blocks[name] for name in ("BR", "BC", "LONGEST", "BS"))
    device, starts = values.device, starts.to(torch.int64)
    each = ((torch.diff(starts) + (LONGEST - 1)) // LONGEST).clamp_(min=1)
    first = each.cumsum(0) - each  # (rows,): the first piece of each row
    count = pieces_bound(rows, nnz, LONGEST)
    numbered = torch.arange(count, device=device, dtype=first.dtype)
    # One table of all factors: a kernel has no list of pointers.
    offsets, total = [], 0
    for factor in factors:
        offsets.append(total)
        total += len(factor)
    y = values.new_empty(rows, columns)
    args = {
        "values": values.contiguous(),
        "indices": indices.contiguous(),
        "starts": starts.contiguous(),
        "first": first,
        "row_of": torch.searchsorted(first, numbered, right=True) - 1,
        "table": torch.cat(list(factors)),
        "offsets": torch.tensor(offsets, dtype=torch.int64, device=device),
        "y": y,
        "partials": values.new_empty(count, columns),
        "NNZ": nnz,
        "COUNT": count,
        "C": columns,
    }
    collected = {name: args[name] for name in ("starts", "first", "y", "partials", "C")}
    blocks = -(-columns // BC)
    tiles = {"BR": BR, "BC": BC, "LONGEST": LONGEST}
    main = replace(config, blocks=tiles)
    last = replace(config, kernel="collect", blocks={**tiles, "BS": BS})
    return [
        Call(OP, main, -(-count // BR) * blocks, args, {"MODES": len(factors)}),
        Call(OP, last, -(-rows // BR) * blocks, {**collected, "ROWS": rows}, {}),
    ], y


def trial(
    direction: str, config: LaunchConfig, problem: Problem, device: torch.device
) -> list[Call]:
    """The launches for a problem on operands of no account, to be compiled or timed: two factors of
    as many rows as there are sums, nonzeros shared out evenly."""
    rows, columns, nnz, _, dtype, _ = problem
    values = torch.ones(nnz, dtype=dtype, device=device)
    indices = torch.zeros(2, nnz, dtype=torch.int32, device=device)
    if device.type == "cuda":
        indices.random_(rows)
    starts = torch.arange(rows + 1, dtype=torch.int64, device=device) * nnz // rows
    factors = [torch.ones(rows, columns, dtype=dtype, device=device) for _ in range(2)]
    return forward_calls(config, values, indices, starts, factors)[0]
