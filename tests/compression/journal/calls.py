"""Calls that measure, to be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.files.journal import Journal
from tests.compression.networks import set_weights
from tests.draws import seeded32

QUIET: dict[str, Any] = {"skip": [], "progress": False}


class Stopped(BaseException):
    """In the place of a kill, in this process."""


@cache
def net() -> nn.Module:
    """With layers in a block, as influences want them."""
    inner = [nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(2)]
    return set_weights(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), *inner, nn.Linear(16, 6)))


@cache
def batches() -> list[Tensor]:
    return [seeded32(40, 12, seed=k) for k in range(6)]


CALLS: list[nn.Module] = []
"""Models that `evaluate` was called with."""


def evaluate(model: nn.Module) -> list[float]:
    """How near outputs are to those of the given model."""
    CALLS.append(model)
    with torch.no_grad():
        apart: Tensor = (model(batches()[5]) - net()(batches()[5])).square().mean(-1)
    return [-x for x in apart.tolist()]


def sensitivity(folder: Path | None, **more: Any) -> str:
    return tensorlrf.sensitivity(net(), batches(), journal=folder, **QUIET, **more).to_json()


def without_inputs(folder: Path | None) -> str:
    return tensorlrf.sensitivity(net(), journal=folder, **QUIET).to_json()


def plan(folder: Path | None, **more: Any) -> str:
    asked: dict[str, Any] = {"keep_params": 0.5, **more}
    found = tensorlrf.plan(net(), calibration=batches(), journal=folder, **asked, **QUIET)
    return found.to_json()


def smallest(folder: Path | None) -> str:
    return plan(folder, keep_params=None, max_drop=0.1, evaluate=evaluate)


def frontier(folder: Path | None, **more: Any) -> str:
    found = tensorlrf.frontier(
        net(), batches(), shares=(0.8, 0.6, 0.4), evaluate=evaluate, evaluations=2, journal=folder,
        **QUIET, **more,
    )  # fmt: skip
    return found.to_json()


def told(small: nn.Module, report: tensorlrf.Report) -> str:
    numbers = {name: t.tolist() for name, t in small.state_dict().items()}
    return f"{numbers} {report.to_json()}"


def compress(folder: Path | None, **more: Any) -> str:
    asked: dict[str, Any] = {"keep_params": 0.5, **more}
    return told(*tensorlrf.compress(net(), calibration=batches(), journal=folder, **asked, **QUIET))


def compress_within(folder: Path | None) -> str:
    return compress(folder, keep_params=None, max_drop=0.1, evaluate=(evaluate, evaluate))


RULES = ("fisher", "measured", "energy", "effective_rank", "spectrum_shape")
Measuring = dict[str, tuple[Callable[[Path | None], str], int]]
MEASURING: Measuring = {
    **{rule: (partial(sensitivity, rule=rule), 2) for rule in RULES},
    "block_influence": (partial(sensitivity, rule="block_influence"), 1),
    "without inputs": (without_inputs, 2),
    "plan": (plan, 3),
    "frontier": (frontier, 11),
    "compress": (compress, 6),
    "compress, max_drop": (compress_within, 12),
    "plan, max_drop": (smallest, 8),
}
"""Calls, and how many values each of their runs may add before it is stopped."""


@contextmanager
def stopping(after: int, *, written: bool) -> Iterator[list[int]]:
    """Whatever keeps values is stopped at its n-th, before it is written or after. Yields a list
    with how many were kept."""
    own, kept = Journal.add, [0]

    def add(self: Journal, *entries: Any) -> None:
        last = kept[0] + 1 == after
        if last and not written:
            raise Stopped
        own(self, *entries)
        kept[0] += 1
        if last:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "add", add)
        yield kept
