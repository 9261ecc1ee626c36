"""A recurrence over time: one step after the other, or one call of torch's kernel for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import _VF, Tensor

from tensorlrf.errors import ArgumentError, ShapeError

States = tuple[Tensor, ...]
"""(h,), or (h, c): each (..., batch, size)."""

Meet = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(what arrives at a step, h) -> (what arrives, what recurs), or their sum and None."""


def lstm_step(gates: Tensor, states: States) -> States:
    """i, f, g, o = gates; c' = f c + i g; h' = o tanh(c') (Hochreiter & Schmidhuber 1997, with the
    forget gate of Gers et al. 2000). Gates (..., 4 hidden)."""
    hidden = gates.shape[-1] // 4
    i_and_f, g, o = torch.split(gates, [2 * hidden, hidden, hidden], dim=-1)
    i, f = i_and_f.sigmoid().chunk(2, dim=-1)
    c = torch.addcmul(f * states[1], i, g.tanh())
    return o.sigmoid() * c.tanh(), c


def gru_step(arrives: Tensor, recurs: Tensor, h: Tensor) -> Tensor:
    """r, z, n of each; n = tanh(n_x + r n_h), h' = (1 - z) n + z h (Cho et al. 2014, with the reset
    behind the product, as cuDNN has it). Both (..., 3 hidden)."""
    rx, zx, nx = arrives.chunk(3, dim=-1)
    rh, zh, nh = recurs.chunk(3, dim=-1)
    n = (nx + (rx + rh).sigmoid() * nh).tanh()
    return n + (zx + zh).sigmoid() * (h - n)


@dataclass(frozen=True)
class Mode:
    """gates  matrices of hidden rows that are stacked in one
    states    h, or h and c
    kernel    torch's, for all steps
    adds      whether what arrives and what recurs are added before all else
    on        (their sum, states) -> states; where they are not added, (each of them, states)
    """

    gates: int
    states: int
    kernel: Callable[..., Any]
    adds: bool
    on: Callable[..., States]

    def step(self, arrives: Tensor, recurs: Tensor | None, states: States) -> States:
        """The next states; `recurs` is None where it is in `arrives` already."""
        if not self.adds:
            return self.on(arrives, recurs, states)
        return self.on(arrives if recurs is None else arrives + recurs, states)


MODES = {
    "LSTM": Mode(4, 2, _VF.lstm, True, lstm_step),
    "GRU": Mode(3, 1, _VF.gru, False, lambda x, y, s: (gru_step(x, y, s[0]),)),
    "RNN_TANH": Mode(1, 1, _VF.rnn_tanh, True, lambda x, _: (x.tanh(),)),
    "RNN_RELU": Mode(1, 1, _VF.rnn_relu, True, lambda x, _: (x.relu(),)),
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


def apart(recurrent: Callable[[Tensor], Tensor]) -> Meet:
    """What recurs beside what arrives."""

    def meet(arrives: Tensor, h: Tensor) -> tuple[Tensor, Tensor | None]:
        return arrives, recurrent(h)

    return meet


def added(onto: Callable[[Tensor, Tensor], Tensor]) -> Meet:
    """What recurs added to what arrives, where that is all that is done with them."""

    def meet(arrives: Tensor, h: Tensor) -> tuple[Tensor, Tensor | None]:
        return onto(arrives, h), None

    return meet


def scan(
    mode: Mode,
    arrives: Tensor,
    sizes: Sequence[int],
    states: States,
    meet: Meet,
    projection: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, States]:
    """One step after the other, of one recurrence or of several side by side (...).

    arrives     (..., rows, gates * hidden): the rows of one step behind those of the step before
    sizes       rows of each step, never more than in the one before
    states      before the first step
    meet        what the states add to it
    projection  of h, where there is one

    Returns (..., rows, size) and the states of each sequence after its own last step.
    """
    outputs: list[Tensor] = []
    ended: list[States] = []
    batch = states[0].shape[-2]
    for part in torch.split(arrives, list(sizes), dim=-2):
        n = part.shape[-2]
        if n < batch:
            ended.append(tuple(s[..., n:, :] for s in states))
            states, batch = tuple(s[..., :n, :] for s in states), n
        h, *more = mode.step(*meet(part, states[0]), states)
        states = (h if projection is None else projection(h), *more)
        outputs.append(states[0])
    ended.append(states)
    last = tuple(torch.cat(parts[::-1], dim=-2) for parts in zip(*ended, strict=True))
    return torch.cat(outputs, dim=-2), last


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
