"""Layers whose factors get terms behind their own, and lose them again."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import tensorlrf
from tensorlrf.errors import UnsupportedError
from tensorlrf.nn import FactoredHFConv1D, FactoredLinear, factorize
from tensorlrf.nn.ranks.grown import grow, shrink, why_not
from tensorlrf.nn.tables.ties import tie
from tensorlrf.ops import PathTable
from tests.draws import seeded
from tests.ops.samples import random_factors

OUT, IN, RANK, K = 7, 6, 3, 2


def layer_on(format: str = "lowrank", kind: Any = FactoredLinear) -> Any:
    factors = random_factors(format, (OUT, IN), rank=RANK, dtype=torch.float32)
    return kind(factors, seeded(OUT).float())


def change() -> tuple[Tensor, Tensor]:
    return seeded(OUT, K, seed=1).float(), seeded(K, IN, seed=2).float()


def held(layer: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in layer.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


@pytest.mark.parametrize("kind", [FactoredLinear, FactoredHFConv1D])
@pytest.mark.parametrize("format", ["lowrank", "cp"])
def test_it_computes_the_sum_and_then_what_it_did(format: str, kind: Any) -> None:
    layer, x = layer_on(format, kind), seeded(4, IN).float()
    before, y, own = held(layer), layer(x), dict(layer.named_parameters())
    left, right = change()
    first = grow(layer, left, right, torch.ones(OUT))
    second = grow(layer, left, right)
    wanted = y + 2 * (x @ right.T @ left.T) + 1  # in float32, sums in another order
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
    assert layer.factors.rank == RANK + 2 * K
    shrink(layer, second)
    torch.testing.assert_close(layer(x), y + x @ right.T @ left.T + 1, rtol=1e-5, atol=1e-5)
    shrink(layer, first)
    assert same(held(layer), before)
    assert torch.equal(layer(x), y)
    assert all(own[name] is p for name, p in layer.named_parameters())


def test_flags_copies_and_pickles() -> None:
    layer = layer_on().requires_grad_(False)
    before = held(layer)
    pair = layer, grow(layer, *change())
    assert not any(p.requires_grad for p in layer.parameters())
    for twin, grown in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        shrink(twin, grown)
        assert same(held(twin), before)
        assert twin.left is not pair[1].tensors["left"]
    shrink(*pair)
    assert same(held(layer), before)


def test_a_factor_in_common_is_one_again() -> None:
    layer, other = layer_on(), layer_on()
    tie(other, layer, ("right",))
    x = seeded(4, IN).float()
    y = other(x)
    grown = grow(layer, *change())
    assert layer.right is not other.right
    assert torch.equal(other(x), y)
    shrink(layer, grown)
    assert layer.right is other.right


def test_it_shrinks_in_the_dtype_that_it_has_then_and_keeps_what_was_trained() -> None:
    layer = layer_on()
    before = held(layer)
    grown = grow(layer, *change(), torch.ones(OUT))
    layer.to(torch.bfloat16)
    shrink(layer, grown)
    assert same(held(layer), {name: t.bfloat16() for name, t in before.items()})
    layer = layer_on()
    grown = grow(layer, *change())
    with torch.no_grad():
        layer.left.mul_(2)
    shrink(layer, grown)
    assert torch.equal(layer.left, 2 * before["left"])


def test_path_tables_come_back() -> None:
    layer = layer_on().eval()
    layer.set_measured(layer.device_key, PathTable.single("dense"))
    frozen = copy.deepcopy(layer).freeze()
    frozen.set_measured(frozen.device_key, PathTable.single("dense"))
    by_hand = copy.deepcopy(layer)
    by_hand.path_table = PathTable.single("chain")
    for one in (layer, by_hand, frozen):
        table, measured = one.path_table, dict(one.measured)
        grown = grow(one, *change())
        assert not one.measured
        assert not one.is_frozen
        shrink(one, grown)
        assert (one.path_table, one.measured) == (table, measured)
    assert frozen.is_frozen


def test_what_cannot_grow_says_why_and_stays() -> None:
    parametrised, pruned, running = layer_on(), layer_on(), nn.Sequential(layer_on())
    parametrize.register_parametrization(parametrised, "left", nn.Identity())
    prune.random_unstructured(pruned, "left", 0.5)
    cases: list[tuple[Any, str]] = [
        (nn.Linear(IN, OUT), "is a Linear"),
        (factorize(nn.Embedding(9, 6), "svd", 2), "FactoredEmbedding"),
        (parametrised, "ParametrizedFactoredLinear"),
        (pruned, "no plain parameters left"),
        *((layer_on(name), "takes no terms") for name in ("tucker", "kron", "tt", "blr")),
    ]
    for layer, words in cases:
        assert words in why_not(layer)
    with tensorlrf.rank_scale(running, 0.5):
        assert "rank_scale" in why_not(running[0])
    bare = FactoredLinear(layer_on().factors)
    assert why_not(bare) == ""
    assert "no bias" in why_not(bare, bias=True)
    layer = layer_on("kron")
    before = held(layer)
    with pytest.raises(UnsupportedError, match="'kron'"):
        grow(layer, *change())
    assert same(held(layer), before)
