"""Models with a factored embedding: saved, loaded, densified, exported, tuned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression._latency import pick
from tensorlrf.nn import FactoredEmbedding, factorize
from tensorlrf.ops import PathTable, Timings


class Tagger(nn.Module):
    """An embedding, a layer, a head; the head may share the embedding's weight."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24, padding_idx=3)
        self.hidden = nn.Linear(24, 24)
        self.head = nn.Linear(24, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(self.embed(tokens)).relu())


def tagger(tied: bool = False, seed: int = 0) -> Tagger:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tagger(tied).eval()


def factored(method: str, tied: bool = False) -> Tagger:
    model = tagger(tied)
    layer = factorize(model.embed, method, 4)
    layer.path_table = PathTable.single("chain")
    setattr(model, "embed", layer)  # noqa: B010  the class says that it is a torch.nn.Embedding
    return model


TOKENS = torch.tensor([[1, 3, 49, 0], [3, 7, 7, 2]])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["svd", "cp", "tucker", "tt"])
def test_it_comes_back_from_a_file(tmp_path: Path, method: str, tied: bool) -> None:
    model, path = factored(method, tied), tmp_path / "tagger.safetensors"
    want = model(TOKENS)
    tensorlrf.save(model, path)
    with torch.device("meta"):
        blank = Tagger(tied).eval()
    for architecture in (tagger(tied, seed=1), blank, factored(method, tied)):
        back = tensorlrf.load(path, architecture)
        assert type(back.embed) is FactoredEmbedding
        assert back.embed.padding_idx == 3
        torch.testing.assert_close(back(TOKENS), want)
    (row,) = tensorlrf.inspect(path).layers
    assert (row.stands_for, row.shape) == ("Embedding", (50, 24))


@pytest.mark.parametrize("method", ["svd", "tt"])
def test_it_leaves_again(method: str) -> None:
    model = factored(method)
    want = model(TOKENS)
    dense, stock = tensorlrf.densify(model), tensorlrf.export(model)
    assert type(dense.embed) is nn.Embedding
    assert dense.embed.padding_idx == 3
    torch.testing.assert_close(dense(TOKENS), want)
    torch.testing.assert_close(stock(TOKENS), want)
    assert not any(isinstance(m, tensorlrf.nn.FactoredLayer) for m in stock.modules())


@pytest.mark.parametrize("method", ["svd", "tt"])
def test_tune_keeps_the_factors_and_does_not_rebuild_the_table(method: str) -> None:
    model = factored(method)
    want = model(TOKENS)
    tuning = tensorlrf.tune(model, TOKENS, seconds=0.01, progress=False)
    (row,) = tuning.layers
    assert set(row.timings[0].seconds) == {"chain"}
    assert row.timings[0].chosen == "chain"
    assert isinstance(model.embed, FactoredEmbedding)
    torch.testing.assert_close(model(TOKENS), want)
    assert not model.embed.is_frozen
    assert "embed" in str(tuning)
    # For speed alone the table itself is best.
    tensorlrf.tune(model, TOKENS, objective="latency", seconds=0.01, progress=False)
    assert type(model.embed) is nn.Embedding
    torch.testing.assert_close(model(TOKENS), want)


def test_a_path_that_was_given_up_is_compared_in_the_rounds_it_ran() -> None:
    timings = Timings({"fused": (1.0, 1.1, 0.9, 1.0), "chain": (4.0,), "torch": (0.2,) * 4})
    assert pick(timings, {"fused": 2, "chain": 1}) == "fused"
    assert pick(timings, {"chain": 1}) == "chain"


def test_compress_leaves_embeddings_alone() -> None:
    small, report = tensorlrf.compress(tagger(), keep_params=0.9, method="svd", progress=False)
    assert type(small.embed) is nn.Embedding
    model = factored("svd")
    again, _ = tensorlrf.compress(model, keep_params=0.9, method="svd", progress=False)
    assert type(again.embed) is FactoredEmbedding
    assert report is not None
