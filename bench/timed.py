"""One timed call of a pytest-benchmark suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def timed(
    benchmark: Any, case: str, way: str, run: Callable[[], Any], *, rounds: int = 10, **info: Any
) -> None:
    """A row of the suite: `way` of doing `case`, whose name says "cuda" where it is on a GPU, and
    what else its row says. On a GPU the host waits for every call."""
    benchmark.group = case
    benchmark.extra_info.update(case=case, path=way, **info)

    def call() -> None:
        run()
        if "cuda" in case:
            torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=rounds, iterations=1, warmup_rounds=2)
