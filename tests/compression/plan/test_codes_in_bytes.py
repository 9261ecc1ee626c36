"""Sums and codes as methods of `compress`: what a rank costs, and a budget in bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import LPLR, DictionaryLearning, LowRankPlusSparse
from tensorlrf.compression import Method
from tensorlrf.decomposition.ladder import Rung
from tensorlrf.decomposition.methods import registered
from tensorlrf.errors import ArgumentError
from tests.draws import generator

METHODS: list[Method] = [
    LPLR(),
    LPLR(codes="int4", group=4),
    LPLR(codes="fp8"),
    LowRankPlusSparse(sparsity=0.97),
    LowRankPlusSparse(sparsity=0.96, pattern="random"),
    DictionaryLearning(),
    DictionaryLearning(nonzeros=3),
]


def weight(m: int = 24, n: int = 36) -> Tensor:
    return torch.empty(m, n, dtype=torch.float32, device="cpu").normal_(generator=generator(0))


def net() -> nn.Module:
    made = nn.Sequential(nn.Linear(36, 48), nn.ReLU(), nn.Linear(48, 24))
    for p in made.parameters():
        p.data.normal_(generator=generator(p.numel()))
    return made


def reasons(plan: tensorlrf.Plan) -> dict[str, str]:
    return {row.name: row.reason for row in plan.layers}


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_rank_costs_what_the_plan_says(method: Method, rank: int) -> None:
    if isinstance(method, DictionaryLearning) and method.nonzeros and method.nonzeros > rank:
        rank = method.nonzeros
    w = weight()
    factors = method.with_budget(rank=rank).decompose(w, None, 0)
    assert isinstance(factors, registered(method.word).gives)
    params = method.params_at(rank, (24, 36))
    assert factors.n_params == params
    assert factors.n_bytes == method.bytes_at(Rung(rank, params), (24, 36), 4)
    assert method.rank_of(factors) == rank


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("budget", [{"keep_bytes": 0.3}, {"keep_params": 0.6}])
def test_a_budget_is_kept(method: Method, budget: dict[str, float]) -> None:
    given = net()
    small, report = tensorlrf.compress(given, method=method, skip=[], progress=False, **budget)
    # Of the weights: biases stay.
    counted = "bytes" if "keep_bytes" in budget else "params"
    before = sum(getattr(row, f"{counted}_before") for row in report.layers)
    after = sum(getattr(row, f"{counted}_after") for row in report.layers)
    assert after <= before * next(iter(budget.values())) + 1
    assert any(isinstance(m, tensorlrf.nn.FactoredLinear) for m in small.modules())
    x = weight(5)
    # float32, summed in another order: entries of up to some sixty, off by 3e-5 at most.
    assert torch.allclose(tensorlrf.densify(small)(x), small(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_whole_model_is_counted_with_codes_and_places(method: Method) -> None:
    small, report = tensorlrf.compress(
        net(), method=method, skip=[], progress=False, keep_bytes=0.3
    )
    assert report.model.bytes_after == sum(t.nbytes for t in small.state_dict().values())
    biases = 48 + 24
    assert report.model.params_after == report.eligible.params_after + biases


@pytest.mark.parametrize(
    ("config", "words", "told"),
    [
        (LPLR, {"codes": "int3"}, "codes"),
        (LPLR, {"group": 0}, "group"),
        (LowRankPlusSparse, {"sparsity": 1.5}, "sparsity=1.5"),
        (LowRankPlusSparse, {"pattern": "2:4", "sparsity": 0.5}, "sparsity=0.5"),
        (DictionaryLearning, {"nonzeros": 0}, "nonzeros=0"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    config: type[Method], words: dict[str, Any], told: str
) -> None:
    with pytest.raises(ArgumentError, match=told):
        config(**words)


def test_layers_that_cannot_have_the_format_stay_and_say_why() -> None:
    conv = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 24))
    plan = tensorlrf.plan(conv, method="dictionary", keep_params=0.9, skip=[])
    assert "linear layers only" in reasons(plan)["0"]
    odd = tensorlrf.plan(net(), method={"0": LPLR(group=5), "2": "lplr"}, keep_params=0.9, skip=[])
    assert "group=5 does not divide" in reasons(odd)["0"]
