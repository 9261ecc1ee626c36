"""Embeddings and tied heads in bands of words: through compress, files, and out of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.factors import BandedLowRank
from tensorlrf.nn import FactoredEmbedding, FactoredLinear, factorize
from tests.compression.networks import Snapshot, set_weights
from tests.compression.test_included import BOTH, Language, texts

WORDS, WIDTH = 400, 24
METHOD = {"embed": tensorlrf.GroupReduce(rank=0.5), "*": None}


class Large(Language):
    """With as many words as bands need."""

    def __init__(self, tied: bool, **options: Any) -> None:
        nn.Module.__init__(self)
        self.embed = nn.Embedding(WORDS, WIDTH, **options)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight


def large(tied: bool, **options: Any) -> Large:
    model = Large(tied, **options)
    set_weights(model)
    if model.embed.padding_idx is not None:
        with torch.no_grad():
            model.embed.weight[model.embed.padding_idx] = 0.0
    return model


def compressed(tied: bool, **options: Any) -> tuple[Large, Any]:
    model = large(tied, **options)
    return tensorlrf.compress(
        model, method=METHOD, calibration=texts(words=300), metric="outputs", **BOTH
    )


@pytest.mark.parametrize("tied", [False, True])
def test_it_goes_through_files_and_leaves_again(tmp_path: Path, tied: bool) -> None:
    model = large(tied, padding_idx=3)
    before = Snapshot(model)
    small, report = tensorlrf.compress(
        model, method=METHOD, calibration=texts(words=300), metric="outputs", **BOTH
    )
    before.check()
    factors = small.embed.factors
    assert isinstance(factors, BandedLowRank)
    assert type(small.embed) is FactoredEmbedding
    assert factors.n_params <= 0.5 * WORDS * WIDTH
    assert report.layer("embed").factored
    if tied:
        assert type(small.lm_head) is FactoredLinear
        for name in factors.tensors():
            place = name.replace(".", "_")
            assert getattr(small.embed, place) is getattr(small.lm_head, place)
    x, path = texts(1, seed=5, words=WORDS)[0], tmp_path / "small.safetensors"
    want = small(x)
    torch.testing.assert_close(small.embed(x), small.embed.weight[x])
    assert not small.embed(torch.tensor([3])).any()
    tensorlrf.save(small, path)
    with torch.device("meta"):
        blank = Large(tied, padding_idx=3).eval()
    for architecture in (large(tied, padding_idx=3), blank, small):
        back = tensorlrf.load(path, architecture)
        assert torch.equal(back(x), want)
        assert isinstance(back.embed.factors, BandedLowRank)
        if tied:
            assert back.lm_head.place is back.embed.place
            assert back.lm_head.left_0 is back.embed.left_0
    (row, *_) = tensorlrf.inspect(path).layers
    assert (row.stands_for, row.shape) == ("Embedding", (WORDS, WIDTH))
    dense, stock = tensorlrf.densify(small), tensorlrf.export(small)
    assert type(dense.embed) is nn.Embedding
    torch.testing.assert_close(dense(x), want)
    torch.testing.assert_close(stock(x), want)
    assert not any(isinstance(m, tensorlrf.nn.FactoredLayer) for m in stock.modules())
    program = torch.export.export(stock.eval(), (x,))
    torch.testing.assert_close(program.module()(x), want)
    tensorlrf.tune(small, x, seconds=0.01, progress=False)
    torch.testing.assert_close(small(x), want)
    assert isinstance(small.embed, FactoredEmbedding)


def test_plans_have_it_and_are_read_again() -> None:
    model = large(True)
    made = tensorlrf.plan(model, method=METHOD, **BOTH)
    again = tensorlrf.Plan.from_json(made.to_json())
    assert again.layer("embed").method == tensorlrf.GroupReduce(rank=0.5)
    small, _ = tensorlrf.apply(model, again, calibration=texts(words=300), progress=False)
    assert isinstance(small.embed.factors, BandedLowRank)
    shared = tensorlrf.plan(
        model, keep_total=0.5, method={"embed": "group_reduce", "*": "svd"}, **BOTH
    )
    # In the metric of the outputs: of the loss it is drawn, and by some draws one band is as good.
    small, report = tensorlrf.apply(
        model, shared, calibration=texts(words=300), metric="outputs", progress=False
    )
    assert report.model.share <= 0.5
    assert isinstance(small.embed.factors, BandedLowRank)


def test_what_else_there_is_stays_with_the_reason() -> None:
    made = tensorlrf.plan(large(False), keep_total=0.8, method="group_reduce", **BOTH)
    assert "tables of embeddings alone" in made.layer("body").reason
    assert "tables of embeddings alone" in made.layer("lm_head").reason
    with pytest.raises(UnsupportedError, match="no rows are summed"):
        factorize(nn.EmbeddingBag(WORDS, WIDTH, mode="sum"), "group_reduce", 0.5)


def errors_by(method: Any, held: list[Tensor]) -> float:
    model = large(False)
    small, _ = tensorlrf.compress(
        model, method={"embed": method, "*": None}, calibration=texts(words=WORDS), **BOTH
    )
    return float(torch.cat([small.embed(x) - model.embed(x) for x in held]).detach().norm())


def test_it_is_nearer_on_other_texts_than_one_low_rank_is() -> None:
    held = texts(seed=9, words=WORDS)
    banded, one = (errors_by(m(rank=0.5), held) for m in (tensorlrf.GroupReduce, tensorlrf.SVD))
    assert banded < 0.8 * one


def test_it_runs_at_a_share_of_its_ranks_and_is_trained() -> None:
    small, _ = compressed(True)
    x = texts(1, words=WORDS)[0]
    with torch.no_grad():
        whole = small(x)
        assert tensorlrf.order_by_energy(small) == {}
        torch.testing.assert_close(small(x), whole, rtol=1e-3, atol=1e-4)
        with tensorlrf.rank_scale(small, 0.5):
            ranks = small.embed.factors.rank
            assert all(r <= max(1, w // 2) for r, w in zip(
                ranks, small.embed._assembled().rank, strict=True))  # fmt: skip
            assert torch.isfinite(small(x)).all()
        torch.testing.assert_close(small(x), whole, rtol=1e-3, atol=1e-4)
    place = small.embed.place.clone()
    small.train()
    loss = nn.functional.cross_entropy(small(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    loss.backward()
    torch.optim.SGD(small.parameters(), 0.1).step()
    assert torch.equal(small.embed.place, place)
    after = nn.functional.cross_entropy(small(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    assert after < loss


def test_a_vocabulary_that_grows_is_refused_by_name() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=300, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    table = factorize(model.get_input_embeddings(), "group_reduce", 0.5, counts=torch.arange(300))
    assert isinstance(table.factors, BandedLowRank)
    model.set_input_embeddings(table)
    with pytest.raises(UnsupportedError, match=r"embed_tokens runs on a BandedLowRank.*densify"):
        tensorlrf.nn.resize_token_embeddings(model, 310)
    assert model.get_input_embeddings() is table


def test_counts_are_an_option_of_layers_alone() -> None:
    table = nn.Embedding(WORDS, WIDTH)
    counts = torch.arange(WORDS).flip(0).square()
    layer = factorize(table, "group_reduce", 0.5, counts=counts)
    assert isinstance(layer.factors, BandedLowRank)
    assert int(layer.factors.place[0]) == 0
    with pytest.raises(TypeError, match="counts"):
        tensorlrf.GroupReduce(counts=counts)  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match="bands=0 must be an int of at least 1"):
        tensorlrf.GroupReduce(bands=0)
