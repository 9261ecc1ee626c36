"""What `export` makes of an embedding and the head on its table holds every factor once, in memory
and in files."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.nn import FactoredEmbedding, FactoredEmbeddingBag, FactoredLinear
from tensorlrf.nn.tables.ties import tie
from tests.compression.tables.test_scaled_models import SCALE, compressed, texts

CHAIN = tensorlrf.ops.PathTable.single("chain")


def on_factors(method: str = "svd") -> Any:
    """A language model whose table, with a scale, and head are on the same factors, both by the
    chain."""
    small, _ = compressed(True, method)
    assert isinstance(small.embed, FactoredEmbedding)
    small.embed.path_table = small.lm_head.path_table = CHAIN
    return small


def numbers(model: nn.Module) -> int:
    """Of its parameters, each once."""
    return sum(p.numel() for p in model.parameters())


def stored(tensors: Any) -> int:
    """Numbers in memory that tensors have, what they share once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values()) // 4


@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_every_factor_is_there_once(method: str) -> None:
    small, x = on_factors(method), texts(1, seed=5)[0]
    stock = tensorlrf.export(small)
    assert not any(type(m).__module__.startswith("tensorlrf") for m in stock.modules())
    assert numbers(stock) == numbers(small)
    torch.testing.assert_close(stock(x), small(x), rtol=1e-5, atol=1e-5)
    own = {id(p) for p in stock.lm_head.parameters()}
    assert {id(p) for p in stock.embed.parameters()} == own


def test_it_is_so_without_a_scale_too_and_whatever_comes_first() -> None:
    table = tensorlrf.nn.factorize(nn.Embedding(60, 12), "svd", 5)
    head = FactoredLinear.from_factors(table.factors, nn.Linear(12, 60))
    tie(head, table)
    head.path_table = CHAIN
    model = nn.ModuleDict({"head": head, "table": table, "again": copy.deepcopy(table)})
    tie(model["again"], table)  # type: ignore[arg-type]
    stock: Any = tensorlrf.export(model)
    assert numbers(stock) == numbers(model)
    at = torch.tensor([[3, 59, 0]])
    for name in ("table", "again"):
        torch.testing.assert_close(stock[name](at), table(at))
    y = table(at)
    torch.testing.assert_close(stock["head"](y), head(y))


def test_bags_have_their_factors_in_common_with_a_head() -> None:
    bags = tensorlrf.nn.factorize(nn.EmbeddingBag(60, 12, mode="sum"), "svd", 5)
    assert isinstance(bags, FactoredEmbeddingBag)
    head = FactoredLinear.from_factors(bags.factors, nn.Linear(12, 60, bias=False))
    tie(head, bags)
    head.path_table = bags.path_table = CHAIN
    model = nn.ModuleList([bags, head])
    stock: Any = tensorlrf.export(model)
    assert numbers(stock) == numbers(model)
    at = torch.tensor([[3, 59, 0], [1, 1, 2]])
    torch.testing.assert_close(stock[0](at), bags(at))


def test_a_head_on_the_dense_path_has_a_weight_of_its_own() -> None:
    small, x = on_factors(), texts(1, seed=5)[0]
    small.lm_head.path_table = tensorlrf.ops.PathTable.single("dense")
    stock = tensorlrf.export(small)
    torch.testing.assert_close(stock(x), small(x), rtol=1e-5, atol=1e-5)
    assert isinstance(stock.embed[-1], nn.Linear)  # nothing is turned for no gain


def test_files_and_programs_keep_it_so(tmp_path: Path) -> None:
    small, x = on_factors(), texts(1, seed=5)[0]
    stock, want = tensorlrf.export(small), numbers(small)
    torch.save(stock, tmp_path / "stock.pt")
    again = torch.load(tmp_path / "stock.pt", weights_only=False)
    assert numbers(again) == numbers(copy.deepcopy(stock)) == want
    assert torch.equal(again(x), stock(x))

    held = io.BytesIO()
    torch.save(stock.state_dict(), held)
    held.seek(0)
    state = torch.load(held, weights_only=True)
    assert stored(state.values()) == stored(small.parameters())
    other = tensorlrf.export(on_factors())
    other.load_state_dict(state)
    assert torch.equal(other(x), stock(x))

    with torch.no_grad():
        program = torch.export.export(stock, (x,))
        torch.export.save(program, tmp_path / "stock.pt2")
        loaded = torch.export.load(tmp_path / "stock.pt2")
        assert torch.equal(loaded.module()(x), stock(x))
    for one in (program, loaded):
        assert stored(one.state_dict.values()) == stored(small.parameters())


def test_training_changes_both() -> None:
    stock, x = tensorlrf.export(on_factors()).train(), texts(1)[0]
    before = stock.embed(x).detach().clone()
    stock(x).square().mean().backward()
    for name, p in stock.named_parameters():
        assert p.grad is not None, name
        with torch.no_grad():
            p -= 0.1 * p.grad
    assert not torch.equal(stock.embed(x), before)
    # The table that both stand for is one still.
    eye = torch.eye(stock.lm_head.in_features)
    table: Tensor = stock.lm_head(eye).T
    torch.testing.assert_close(stock.embed(x), SCALE * table[x], rtol=1e-4, atol=1e-5)
