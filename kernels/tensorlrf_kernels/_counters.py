"""Zeroed counters for kernels whose programs wait for each other."""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

SLOT = 128  # int32 counters of one launch
SLOTS = 4096  # of one pool, 2 MiB

# No pool is ever freed: of a launch in a CUDA graph only the address of its slot is known, and a
# replay writes there as long as the graph lives, which nobody tells.
_pools: dict[torch.device, list[Tensor]] = {}
_used: dict[torch.device, int] = {}  # slots of the last pool
_of_stream: dict[tuple[torch.device, int], Tensor] = {}
_taking = Lock()


def counters(device: torch.device) -> Tensor:
    """SLOT int32 zeros that no launch which may run at the same time has.

    A kernel leaves them zero, so launches of one stream take the same ones. A launch recorded in
    a CUDA graph keeps its own for ever, since two graphs may be replayed side by side.
    """
    if device.type != "cuda":
        return torch.zeros(SLOT, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        with _taking:
            taken = _take(device)
        # No pool can be added inside a graph; there, zeros are filled in at every replay.
        return torch.zeros(SLOT, dtype=torch.int32, device=device) if taken is None else taken
    stream = torch.cuda.current_stream(device).cuda_stream
    with _taking:
        # Graphs to come find half a pool at least, since a warm-up precedes every capture.
        if device not in _pools or _used[device] > SLOTS // 2:
            _grow(device)
        if (device, stream) not in _of_stream:
            taken = _take(device)
            assert taken is not None
            _of_stream[device, stream] = taken
        return _of_stream[device, stream]


def _take(device: torch.device) -> Tensor | None:
    if device not in _pools or _used[device] == SLOTS:
        return None
    slot = _pools[device][-1][_used[device]]
    _used[device] += 1
    return slot


def _grow(device: torch.device) -> None:
    pool = torch.zeros(SLOTS, SLOT, dtype=torch.int32, device=device)
    # Other streams may take slots of this pool before this stream has filled it.
    torch.cuda.synchronize(device)
    _pools.setdefault(device, []).append(pool)
    _used[device] = 0
