"""Bags of embeddings on factors: what they compute, and what compress makes of them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn import FactoredEmbeddingBag, factorize
from tensorlrf.nn.obstacles import why_not

N, D = 40, 12


def bag(**options: Any) -> nn.EmbeddingBag:
    draws = torch.Generator().manual_seed(0)
    layer = nn.EmbeddingBag(N, D, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(N, D, generator=draws))
    return layer


modes = st.sampled_from(["sum", "mean"])


@given(
    mode=modes,
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    last=st.booleans(),
    padding=st.sampled_from([None, 0, 7, -1]),
    weighted=st.booleans(),
    path=st.sampled_from(["chain", "dense"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_it_is_the_bag_of_the_table_that_it_stands_for(
    mode: str,
    lengths: list[int],
    last: bool,
    padding: int | None,
    weighted: bool,
    path: str,
    seed: int,
) -> None:
    options = {"mode": mode, "padding_idx": padding, "include_last_offset": last}
    layer = bag(**options)
    small = factorize(layer, "svd", 5)
    small.path_table = tensorlrf.ops.PathTable.single(path)
    dense = bag(**options)
    dense.weight = nn.Parameter(small.factors.to_dense())
    draws = torch.Generator().manual_seed(seed)
    indices = torch.randint(N, (sum(lengths),), generator=draws)
    ends = torch.tensor(lengths).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends if last else ends[:-1]])
    weights = torch.randn(len(indices), generator=draws) if weighted and mode == "sum" else None
    got, want = small(indices, offsets, weights), dense(indices, offsets, weights)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    if path == "chain":
        got.square().sum().backward()
        want.square().sum().backward()
        grad = small.left.grad @ small.right.detach()
        wanted = dense.weight.grad @ small.right.detach().T @ small.right.detach()
        torch.testing.assert_close(grad, wanted, atol=1e-3, rtol=1e-3)


def test_bags_of_one_length_need_no_offsets() -> None:
    layer = bag()
    small = factorize(layer, "svd", D)
    x = torch.randint(N, (3, 4), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(small(x), layer(x), atol=1e-5, rtol=1e-5)


def test_the_largest_of_rows_stays_with_the_reason() -> None:
    layer = bag(mode="max")
    assert "does not commute with the product" in why_not(layer)
    with pytest.raises(UnsupportedError, match="does not commute with the product"):
        factorize(layer, "svd", 4)
    model = nn.ModuleDict({"bag": layer, "body": nn.Linear(32, 32)})
    made = tensorlrf.plan(model, keep_params=0.6, include="embeddings")
    assert "does not commute" in made.layer("bag").reason


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="use LowRank"):
        FactoredEmbeddingBag(tensorlrf.tt_matrix(torch.rand(N, D), 2))
    with pytest.raises(UnsupportedError, match="gives factors in which no rows are summed"):
        factorize(bag(), "tt", 2)
    factors = tensorlrf.svd(torch.rand(N, D), 2)
    with pytest.raises(ArgumentError, match="mode"):
        FactoredEmbeddingBag(factors, "max")
    with pytest.raises(ArgumentError, match="dtype"):
        FactoredEmbeddingBag(factors)(torch.rand(2, 3))
    with pytest.raises(UnsupportedError, match="EmbeddingBag"):
        FactoredEmbeddingBag.from_factors(factors, nn.Embedding(N, D))  # type: ignore[arg-type]


class Ranker(nn.Module):
    """Bags of features with offsets, and a layer on them."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = bag(mode="sum")
        self.body = nn.Linear(D, D)

    def forward(self, features: Tensor, offsets: Tensor) -> Tensor:
        out: Tensor = self.body(self.bag(features, offsets))
        return out


def batches(n: int = 12) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(2)
    shares = 1 / torch.arange(1.0, N + 1)
    return [
        (torch.multinomial(shares, 48, replacement=True, generator=draws), torch.arange(0, 48, 6))
        for _ in range(n)
    ]


def test_laws_in_a_model(tmp_path: Path) -> None:
    model = Ranker()
    small, report = tensorlrf.compress(
        model,
        method=tensorlrf.SVD(rank=4),
        include="embeddings",
        calibration=batches(),
        progress=False,
    )
    assert type(small.bag) is FactoredEmbeddingBag
    assert report.layer("bag").data_aware
    x = batches(1)[0]
    want = small(*x)
    tensorlrf.save(small, tmp_path / "small.safetensors")
    back = tensorlrf.load(tmp_path / "small.safetensors", Ranker())
    for other in (
        back,
        tensorlrf.densify(small),
        tensorlrf.export(small),
        copy.deepcopy(small),
        pickle.loads(pickle.dumps(small)),
        torch.compile(small, backend="eager", fullgraph=True),
    ):
        torch.testing.assert_close(other(*x), want, atol=1e-5, rtol=1e-5)
    stock = tensorlrf.export(small)
    assert not any(isinstance(m, tensorlrf.nn.FactoredLayer) for m in stock.modules())
    assert type(tensorlrf.densify(small).bag) is nn.EmbeddingBag
    tensorlrf.tune(small, x, progress=False)
    torch.testing.assert_close(small(*x), want)
    assert "call_module" in {node.op for node in fx.symbolic_trace(small).graph.nodes}
    assert repr(small.bag).startswith("FactoredEmbeddingBag(40, 12, mode=sum, format=lowrank")


def test_a_train_is_planned_for_no_bag() -> None:
    made = tensorlrf.plan(Ranker(), keep_params=0.9, method="tt", include="embeddings")
    assert "no rows are summed" in made.layer("bag").reason
