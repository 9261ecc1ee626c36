"""A recurrence over time: one step after the other, or one call of torch's kernel for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import _VF, Tensor

from tensorlrf.errors import ArgumentError, ShapeError

States = tuple[Tensor, ...]
"""(h,), or (h, c): each (batch, size)."""


def lstm_step(gates: Tensor, states: States) -> States:
    """i, f, g, o = gates; c' = f c + i g; h' = o tanh(c') (Hochreiter & Schmidhuber 1997, with the
    forget gate of Gers et al. 2000). Gates (batch, 4 hidden)."""
    i, f, g, o = gates.chunk(4, dim=-1)
    c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(arrives: Tensor, recurs: Tensor, h: Tensor) -> Tensor:
    """r, z, n of each; n = tanh(n_x + r n_h), h' = (1 - z) n + z h (Cho et al. 2014, with the reset
    behind the product, as cuDNN has it). Both (batch, 3 hidden)."""
    rx, zx, nx = arrives.chunk(3, dim=-1)
    rh, zh, nh = recurs.chunk(3, dim=-1)
    n = (nx + (rx + rh).sigmoid() * nh).tanh()
    return n + (zx + zh).sigmoid() * (h - n)


@dataclass(frozen=True)
class Mode:
    """gates  matrices of hidden rows that are stacked in one
    states    h, or h and c
    kernel    torch's, for all steps
    step      (what arrives, what recurs, states) -> states
    """

    gates: int
    states: int
    kernel: Callable[..., Any]
    step: Callable[[Tensor, Tensor, States], States]


MODES = {
    "LSTM": Mode(4, 2, _VF.lstm, lambda x, y, s: lstm_step(x + y, s)),
    "GRU": Mode(3, 1, _VF.gru, lambda x, y, s: (gru_step(x, y, s[0]),)),
    "RNN_TANH": Mode(1, 1, _VF.rnn_tanh, lambda x, y, _: ((x + y).tanh(),)),
    "RNN_RELU": Mode(1, 1, _VF.rnn_relu, lambda x, y, _: ((x + y).relu(),)),
}


def given_states(hx: Any, wanted: Sequence[tuple[int, ...]], kind: str) -> States:
    """What a user gives as h or (h, c), of these shapes. Raises ArgumentError and ShapeError."""
    given = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
    if len(given) != len(wanted):
        raise ArgumentError(f"hx has {len(given)} tensors; a {kind} has {len(wanted)}")
    for state, shape in zip(given, wanted, strict=True):
        if not isinstance(state, Tensor) or tuple(state.shape) != shape:
            got = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise ShapeError(f"hx holds {got}; it must be {shape}")
    return given


def scan(
    mode: Mode,
    arrives: Tensor,
    sizes: Sequence[int],
    states: States,
    recurrent: Callable[[Tensor], Tensor],
    projection: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, States]:
    """One step after the other.

    arrives     (rows, gates * hidden): the rows of one step behind those of the step before
    sizes       rows of each step, never more than in the one before
    states      before the first step
    recurrent   h -> its share of the gates, (batch, gates * hidden)
    projection  of h, where there is one

    Returns (rows, size) and the states of each sequence after its own last step.
    """
    outputs: list[Tensor] = []
    ended: list[States] = []
    start = 0
    for n in sizes:
        if n < states[0].shape[0]:
            ended.append(tuple(s[n:] for s in states))
            states = tuple(s[:n] for s in states)
        h, *more = mode.step(arrives[start : start + n], recurrent(states[0]), states)
        states = (h if projection is None else projection(h), *more)
        outputs.append(states[0])
        start += n
    ended.append(states)
    last = tuple(torch.cat(parts[::-1]) for parts in zip(*ended, strict=True))
    return torch.cat(outputs), last


def backwards(sizes: Sequence[int], device: torch.device) -> Tensor:
    """The order of the rows in which every sequence runs from its end to its beginning, (rows,).
    It is its own inverse."""
    counts = torch.tensor(sizes, device=device)
    starts = counts.cumsum(0) - counts
    batch = torch.arange(sizes[0], device=device)
    within = batch[None, :] < counts[:, None]  # (steps, batch)
    lengths = within.sum(0)
    mirrored = lengths[None, :] - 1 - torch.arange(len(sizes), device=device)[:, None]
    return (starts[mirrored.clamp(min=0)] + batch)[within]
