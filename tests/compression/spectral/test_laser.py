"""A model that is better without some singular values: the search finds which."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError
from tests.draws import seeded

X = seeded(64, 12, seed=5)


def noisy() -> tuple[nn.Sequential, nn.Sequential]:
    """A teacher, two layers of which have rank 2; and it with noise in the others' directions."""
    teacher = nn.Sequential(*(nn.Linear(12, 12, bias=False, dtype=torch.float64) for _ in range(4)))
    student = nn.Sequential(*(nn.Linear(12, 12, bias=False, dtype=torch.float64) for _ in range(4)))
    with torch.no_grad():
        for k, (given, found) in enumerate(zip(teacher, student, strict=True)):
            clean = torch.linalg.qr(seeded(12, 12, seed=k))[0]
            if k in (1, 3):
                clean = seeded(12, 2, seed=k) @ seeded(2, 12, seed=k + 9)
            given.weight.copy_(clean)
            found.weight.copy_(clean + (0.1 * seeded(12, 12, seed=k + 20) if k in (1, 3) else 0))
    return teacher, student


def metric_of(teacher: nn.Module, x: Tensor) -> Callable[[nn.Module], float]:
    with torch.no_grad():
        wanted = teacher(x)

    def metric(model: nn.Module) -> float:
        with torch.no_grad():
            return -float(torch.dist(model(x), wanted))

    return metric


def test_the_layers_with_noise_are_found_and_cut_to_their_rank(tmp_path: Path) -> None:
    teacher, student = noisy()
    before = [p.clone() for p in student.parameters()]
    metric, calls = metric_of(teacher, X), []

    def counted(model: nn.Module) -> float:
        calls.append(1)
        return metric(model)

    def search() -> tensorlrf.Laser:
        return tensorlrf.laser(
            student, counted, shares=(0.5, 0.17), test=metric_of(teacher, seeded(32, 12)),
            skip=[], journal=tmp_path / "journal", progress=False,
        )  # fmt: skip

    found = search()
    assert {row.layer: row.rank for row in found.steps} == {"1": 2, "3": 2}
    assert found.steps[0].gain < found.steps[1].gain
    assert found.quality > found.given
    assert found.test is not None
    assert found.test[1] > found.test[0]
    assert len(found.rows) == 8
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    small, _ = tensorlrf.apply(student, found.plan)
    assert metric(small) == pytest.approx(found.quality, rel=1e-6)
    assert "kept: " in str(found)
    count = len(calls)
    again = search()
    assert again.steps == found.steps
    assert len(calls) == count  # all of it was in the journal
    assert tensorlrf.Plan.from_json(found.plan.to_json()) == found.plan


def test_where_nothing_is_better_all_stays() -> None:
    teacher, _ = noisy()
    found = tensorlrf.laser(teacher, metric_of(teacher, X), shares=(0.1,), skip=[], progress=False)
    assert found.steps == ()
    assert found.plan.factored == ()
    assert found.quality == found.given
    assert all(row.gain <= 1e-12 for row in found.rows)
    assert "none is better" in str(found)


def test_what_is_refused() -> None:
    _, student = noisy()
    for shares in ((), (0.0,), (1.0,), ("half",), (True,)):
        with pytest.raises(ArgumentError, match=r"shares=.* must be shares in \(0, 1\)"):
            tensorlrf.laser(student, lambda m: 0.0, shares=shares, skip=[])
    with pytest.raises(ArgumentError, match="stack=-1 must be an int of at least 0"):
        tensorlrf.laser(student, lambda m: 0.0, stack=-1, skip=[])
    with pytest.raises(ArgumentError, match="evaluate is a float; pass a function"):
        tensorlrf.laser(student, 1.0, skip=[])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="evaluate returns NaN for the given model"):
        tensorlrf.laser(student, lambda m: math.nan, skip=[])
