"""Ours, its peers and a floor in turn, so that a drift of the machine meets all alike.

A suite measures a case once, with all who take part in it, and gives each of them a row: its time
by itself, as pytest-benchmark takes it, and beside it `in_turn_s` and `over_peer`, the median over
the rounds of the peer's time over its own, with the least and the largest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FLOOR = "floor"
"""What no method can leave out; each suite says what that is. It has no error."""


@dataclass(frozen=True)
class Turns:
    """calls    by name, in the order of the rows
    samples  seconds of each, one a round
    results  what they returned
    """

    calls: Mapping[str, Callable[[], Any]]
    samples: Mapping[str, tuple[float, ...]]
    results: Mapping[str, Any]

    @classmethod
    def take(cls, calls: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> Turns:
        """A B C, C B A, A B C and so on, after `warmup` rounds that do not count."""
        samples: dict[str, list[float]] = {name: [] for name in calls}
        results: dict[str, Any] = {}
        for k in range(warmup + rounds):
            for name in list(calls)[:: 1 if k % 2 == 0 else -1]:
                start = time.perf_counter()
                results[name] = calls[name]()
                if k >= warmup:
                    samples[name].append(time.perf_counter() - start)
        return cls(calls, {name: tuple(taken) for name, taken in samples.items()}, results)

    def ratios(self, name: str, peer: str) -> list[float]:
        """Seconds of `peer` over those of `name`, round by round."""
        pairs = zip(self.samples[peer], self.samples[name], strict=True)
        return [theirs / own for theirs, own in pairs]

    def row(self, benchmark: Any, case: str, name: str, peer: str, **info: Any) -> None:
        """The row of `name`, beside `peer`, timed by itself for as many rounds as in turn."""
        ratios = self.ratios(name, peer)
        benchmark.group = case
        benchmark.pedantic(self.calls[name], rounds=len(ratios))
        benchmark.extra_info.update(
            case=case,
            peer=name,
            **info,
            in_turn_s=statistics.median(self.samples[name]),
            over_peer=statistics.median(ratios),
            over_peer_min=min(ratios),
            over_peer_max=max(ratios),
        )
