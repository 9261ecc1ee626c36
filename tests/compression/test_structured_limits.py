"""Structured formats at shares they can hardly keep, on layers that do not suit them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.compression import CP, TR, TT, Blast, Hierarchical, Kron, Monarch, Tucker
from tensorlrf.errors import ArgumentError, RankError

METHODS = ("kron", "tt", "tr", "blr", "hierarchical", "monarch", "blast")


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


@pytest.mark.parametrize("widths", [(96, 64, 96), (89, 97, 89), (34, 37, 34), (7, 5, 7)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0.02, 0.06, 0.2, 0.8])
def test_the_share_is_an_upper_bound(method: str, widths: tuple[int, ...], keep: float) -> None:
    model = mlp(*widths)
    options: Any = Hierarchical(leaf=8, admissible="all") if method == "hierarchical" else method
    try:
        plan = tensorlrf.plan(model, keep_params=keep, method=options, skip=[])
    except ArgumentError:
        with pytest.raises(ArgumentError, match=r"the least they can do with|no eligible layer"):
            tensorlrf.plan(model, keep_params=keep, method=options, skip=[])
        return
    if not plan.factored:
        return
    _, report = tensorlrf.apply(model, plan)
    assert report.eligible.params_after <= keep * report.eligible.params_before
    for row in report.layers:
        assert not row.factored or row.params_after < row.params_before


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (Kron(), "89 x 97 channels have no divisors"),
        (Kron(shapes=((8, 8), (8, 8))), "make a weight 64 x 64, not 89 x 97"),
        (TR(sizes=((8, 8), (8, 8))), r"make a weight (64, 64), not (89, 97)"),
        (TT(row_sizes=(8, 8), column_sizes=(8, 8)), "less than the 89"),
        (Monarch(blocks=90), "blocks=90 are more than its 89 rows"),
        pytest.param(
            Blast(blocks=(4, 98)), "more than its 89 rows or 97 columns", marks=pytest.mark.slow
        ),
        (Hierarchical(leaf=128), "no factored form is smaller"),
    ],
)
def test_a_layer_that_does_not_suit_stays_and_the_others_do_not(method: Any, reason: str) -> None:
    model = nn.ModuleDict({"odd": nn.Linear(97, 89), "even": nn.Linear(64, 64)})
    if isinstance(method, Hierarchical | Monarch | Blast):
        model["even"] = nn.Linear(256, 256)
    plan = tensorlrf.plan(model, keep_params=0.8, method=method, skip=[])
    assert reason in plan.layer("odd").reason
    small, report = tensorlrf.apply(model, plan)
    assert report.layer("even").factored
    assert type(small["odd"]) is nn.Linear


def test_ranks_that_cannot_be_are_refused_by_the_plan() -> None:
    model = mlp(64, 64)
    for method in (TT(rank=(9, 9, 9)), TR(rank=(2, 2)), TT(rank=(2, 400), order=3)):
        with pytest.raises(RankError, match="method of 0: rank="):
            tensorlrf.plan(model, method=method, skip=[])
    conv = nn.Sequential(nn.Conv2d(16, 16, 3))
    with pytest.raises(RankError, match="method of 0: rank="):
        tensorlrf.plan(conv, method=TT(rank=(40, 4, 4)), skip=[])


@pytest.mark.parametrize("option", ["tol", "n_iter_max"])
@pytest.mark.parametrize("config", [CP, Tucker, TT, TR, Kron, Blast])
def test_none_stands_for_the_default_of_the_decomposition(config: Any, option: str) -> None:
    assert config(**{option: None}) == config()


@pytest.mark.parametrize(
    "method", ["kron", TT(rank=4), TT(rank=(4,)), TR(rank=(2, 2, 2, 2)), "monarch", "blr"]
)
def test_latency_is_that_of_the_format_itself(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorlrf.compression.plan.times import _worthwhile

    timed: list[str] = []

    def times_of(dense: nn.Module, factored: Any, x: torch.Tensor, *, seconds: float) -> Any:
        timed.append(factored[0].factors.format)
        return 1.0, [(0.5, "chain")]

    monkeypatch.setattr(_worthwhile, "times_of", times_of)
    monkeypatch.setattr(_worthwhile.Whole, "ratio", lambda *_: (0.5, 1.0))
    model, x = mlp(64, 64), torch.randn(3, 64)
    budget = {} if getattr(method, "rank", None) is not None else {"keep_params": 0.5}
    plan = tensorlrf.plan(model, method=method, skip=[], objective="latency", example=x, **budget)
    assert len(plan.factored) == 1
    assert timed == [tensorlrf.apply(model, plan)[0][0].factors.format]
