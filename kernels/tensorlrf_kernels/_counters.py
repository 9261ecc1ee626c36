"""Zeroed counters for kernels whose programs wait for each other."""

from __future__ import annotations

import torch
from torch import Tensor

SLOT = 128  # int32 counters of one launch
SLOTS = 4096  # of one pool, 2 MiB

_pools: dict[torch.device, Tensor] = {}
_used: dict[torch.device, int] = {}
_of_stream: dict[tuple[torch.device, int], Tensor] = {}


def counters(device: torch.device) -> Tensor:
    """SLOT int32 zeros that no launch which may run at the same time has.

    A kernel leaves them zero, so launches of one stream take the same ones. A launch recorded in
    a CUDA graph keeps its own for ever, since two graphs may be replayed side by side.
    """
    if device.type != "cuda":
        return torch.zeros(SLOT, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        taken = _take(device)
        # The pool cannot grow inside a graph; there, zeros are filled in at every replay.
        return torch.zeros(SLOT, dtype=torch.int32, device=device) if taken is None else taken
    # Graphs to come find half a pool at least, since a warm-up precedes every capture.
    if device not in _pools or _used[device] > SLOTS // 2:
        _grow(device)
    stream = torch.cuda.current_stream(device).cuda_stream
    if (device, stream) not in _of_stream:
        taken = _take(device)
        assert taken is not None
        _of_stream[device, stream] = taken
    return _of_stream[device, stream]


def _take(device: torch.device) -> Tensor | None:
    if device not in _pools or _used[device] == SLOTS:
        return None
    slot = _pools[device][_used[device]]
    _used[device] += 1
    return slot


def _grow(device: torch.device) -> None:
    # Slots of the pool before live on in those who took them.
    _pools[device] = torch.zeros(SLOTS, SLOT, dtype=torch.int32, device=device)
    _used[device] = 0
    # Other streams may take slots of this pool before this stream has filled it.
    torch.cuda.synchronize(device)
