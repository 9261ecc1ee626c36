"""FactoredEmbedding looks up what torch's embedding looks up in its weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import LowRank, TTMatrix
from tensorlrf.nn import FactoredEmbedding, factored_type, factorize
from tensorlrf.nn.stock import to_dense_layer, to_stock_layer
from tensorlrf.ops import PathTable, best_embedding_path

METHODS = ("svd", "cp", "tucker", "tt")


def dense(**options: object) -> nn.Embedding:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Embedding(50, 24, **{"padding_idx": 3, "dtype": torch.float64, **options})  # type: ignore[arg-type]


def indices(*lead: int) -> Tensor:
    return torch.randint(0, 50, lead, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_it_stands_for_the_embedding_and_becomes_one_again(method: str) -> None:
    like, i = dense(), indices(2, 7).int()
    layer = factorize(like, method, 4).eval()
    assert type(layer) is FactoredEmbedding is factored_type(like)
    assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx) == (50, 24, 3)
    assert layer.bias is None
    torch.testing.assert_close(layer(i), layer.weight[i.long()])
    whole, stock = to_dense_layer(layer), to_stock_layer(layer)
    assert type(whole) is nn.Embedding
    assert whole.padding_idx == 3
    torch.testing.assert_close(whole(i), layer(i))
    assert not {id(p) for p in layer.parameters()} & {id(p) for p in stock.parameters()}
    for m in stock.modules():
        assert type(m).__module__.startswith("torch.")
    with pytest.raises(IndexError):
        layer(torch.tensor([50]))
    with pytest.raises(ArgumentError, match=r"input has dtype torch\.float32"):
        layer(torch.ones(3))


@pytest.mark.parametrize("method", ["svd", "cp", "tucker"])
def test_a_padding_row_of_zeros_stays_one_in_training(method: str) -> None:
    layer = factorize(dense(), method, 6).train()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    before = [p.detach().clone() for p in layer.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.tensor([3, 4, 3, 7])).square().sum().backward()
        optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert not layer(torch.tensor(3)).any()
    other = dense()
    with torch.no_grad():
        other.weight[3] = 1.0
    assert factorize(other, method, 6)(torch.tensor(3)).any()


def test_flags_dtype_and_state_follow_the_embedding() -> None:
    like = dense(dtype=torch.bfloat16).requires_grad_(False).eval()
    layer = factorize(like, "svd", 6)
    assert not layer.training
    assert not any(p.requires_grad for p in layer.parameters())
    assert layer(indices(4)).dtype == torch.bfloat16
    assert sorted(layer.state_dict()) == ["left", "right"]
    other = factorize(dense(), "svd", 6).to(torch.bfloat16)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(indices(4)), layer(indices(4)), rtol=0, atol=0)
    assert "FactoredEmbedding(50, 24, padding_idx=3, format=lowrank, rank=6, " in repr(layer)


def test_the_path_table_maps_numbers_of_indices() -> None:
    layer = FactoredEmbedding(LowRank(torch.ones(50, 2), torch.ones(2, 24)))
    layer.path_table = PathTable(((6, "dense"), (None, "chain")))
    assert layer._path(torch.empty(2, 3)) == "dense"
    assert layer._path(torch.empty(7)) == "chain"
    with pytest.raises(UnsupportedError, match="path='fused' is a GPU kernel"):
        layer.path_table = PathTable.single("fused")
    wide = LowRank(torch.empty(131072, 64, device="meta"), torch.empty(64, 1024, device="meta"))
    table = FactoredEmbedding(wide).path_table
    assert {table.lookup(M) for M in (1, 64, 8192)} == {"chain"}  # the table is not kept


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"max_norm": 1.0}, r"max_norm=1.0 rescales single rows.*max_norm = None"),
        ({"sparse": True}, r"sparse gradients.*sparse = False"),
        ({"scale_grad_by_freq": True}, r"scale_grad_by_freq divides.*scale_grad_by_freq = False"),
    ],
)
def test_options_that_factors_do_not_have_are_refused(option: dict, words: str) -> None:
    like = dense(**option)
    with pytest.raises(UnsupportedError, match=words):
        factorize(like, "svd", 4)
    assert factored_type(like) is None


def test_what_is_no_plain_embedding_is_refused() -> None:
    class Shifted(nn.Embedding):
        """As models have that keep some rows for other uses."""

        def forward(self, input: Tensor) -> Tensor:
            return super().forward((input + 2) % self.num_embeddings)

    with pytest.raises(UnsupportedError, match=r"Shifted; subclass of Embedding whose forward is"):
        factorize(Shifted(5, 4), "svd", 2)
    assert factored_type(Shifted(5, 4)) is None
    hooked = dense()
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match="has hooks"):
        factorize(hooked, "svd", 2)
    with pytest.raises(UnsupportedError, match="runs on factors already"):
        FactoredEmbedding.from_factors(
            LowRank(torch.ones(50, 2), torch.ones(2, 24)),
            factorize(dense(), "svd", 2),  # type: ignore[arg-type]
        )
    with pytest.raises(UnsupportedError, match=r"method='monarch'.*svd, cp, tucker, tt"):
        factorize(dense(), "monarch", 2)
    with pytest.raises(ShapeError, match=r"\(50, 23\), but like.weight has shape \(50, 24\)"):
        FactoredEmbedding.from_factors(LowRank(torch.ones(50, 2), torch.ones(2, 23)), dense())
    with pytest.raises(ArgumentError, match="padding_idx=50"):
        FactoredEmbedding(TTMatrix((torch.ones(1, 50, 24, 1),)), padding_idx=50)


def test_a_table_is_kept_only_when_asked_for() -> None:
    layer = factorize(nn.Embedding(1000, 64), "svd", 16)
    assert "dense" in layer.paths
    # Though for many rows rebuilding this small one would be the least work.
    assert best_embedding_path(layer.factors, 2**20) == "dense"
    assert "dense" not in layer.path_table.paths
    layer.path_table = PathTable.single("dense")
    torch.testing.assert_close(layer(torch.arange(5)), layer.weight[:5])
