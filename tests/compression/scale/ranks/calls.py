"""What ranks do in tests: functions that return JSON, started by `processes`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import tensorlrf
from tensorlrf.compression.group import _board
from tensorlrf.compression.group._group import ALONE, ranks_here
from tensorlrf.compression.scale import _run
from tensorlrf.errors import TensorlrfError

_board.LOST = 4.0


def primitives() -> Any:
    """Sums, what ranks have, and what becomes of those that do not agree, fail, or are alone."""
    rank = distributed.get_rank()
    large = torch.full((1 << 17,), float(rank), dtype=torch.float64, device="cpu")
    small = torch.full((2, 3), rank + 1.0, dtype=torch.float32, device="cpu")
    with ranks_here() as group:
        group.agree({"same": [1, "a"]})
        group.total([large, small])
        found = {
            "total": [float(large[-1]), small.tolist()],
            "totals": group.totals([1.0, rank]),
            "least": group.least(5.0 - rank),
            "gathered": group.gathered({"rank": rank}),
            "of": group.of(1, torch.full((2,), rank, device="cpu")).tolist(),
            "beside": group.beside,
        }
    with tensorlrf.on_one_rank(), ranks_here() as group:
        found["alone"] = group is ALONE
    with ranks_here(shared=False) as group:
        found["not shared"] = group is ALONE
    found["disagree"] = raised(lambda: _together(lambda group: group.agree({"a": 1, "b": rank})))

    def fails(group: Any) -> None:
        if rank == 1:
            raise ValueError("no such thing")
        group.total([small])

    found["fails"] = raised(lambda: _together(fails))
    return found


def _together(function: Callable[[Any], None]) -> None:
    with ranks_here() as group:
        function(group)


def raised(function: Callable[[], Any]) -> list[Any]:
    """(type, message, seconds) of what it raises."""
    begun = time.monotonic()
    try:
        function()
    except (TensorlrfError, ValueError) as error:
        return [type(error).__name__, str(error), time.monotonic() - begun]
    return []


def checkpoint(source: str, target: str, given: list[dict[str, Any]]) -> Any:
    """`compress_checkpoint`, with arguments of each rank; what it says, or raises."""
    own = {"keep_params": 0.5, "progress": False, **given[distributed.get_rank()]}
    source = own.pop("source", source)
    report: Any = None

    def call() -> None:
        nonlocal report
        report = tensorlrf.compress_checkpoint(source, target, **own)

    error = raised(call)
    if error:
        return error
    return {
        "layers": [row.name for row in report.layers],
        "resumed": report.resumed,
        **_size(report),
    }


def _size(report: Any) -> dict[str, Any]:
    return {"tensors": report.tensors, "bytes": report.bytes_after, "text": str(report)}


def several(calls: list[list[Any]]) -> Any:
    """What one after the other of these calls gives: name, and what is given."""
    return [globals()[name](*given) for name, *given in calls]


def killed(source: str, target: str, victim: int) -> Any:
    """The same, on which one rank is killed in its second layer; how the other ends."""
    kill_in_second_layer(distributed.get_rank() == victim)
    return checkpoint(source, target, [{}, {}])


def kill_in_second_layer(this: bool) -> None:
    """Have `this` process do so; another one takes its time, so that there are layers for both."""
    own, calls = _run.factor, 0

    def factor(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and this:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return own(*args)

    _run.factor = factor


def main() -> None:
    rank, size, store, result, name, given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(store, size), rank=rank, world_size=size,
        timeout=timedelta(seconds=40),
    )  # fmt: skip
    value = globals()[name](*given)
    Path(result).write_text(json.dumps(value))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
