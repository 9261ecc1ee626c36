"""Models whose embeddings scale what they look up, tied to a head or not, from calibration to files
and back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import FileFormatError
from tensorlrf.nn import FactoredEmbedding, FactoredLinear
from tests.compression.networks import Snapshot, set_weights

BOTH: dict[str, Any] = {"include": ["embeddings", "heads"], "progress": False}
WORDS, WIDTH, SCALE = 90, 16, 4.0


class Scaled(nn.Embedding):
    """By a buffer that no file has, as Gemma's."""

    def __init__(self, words: int, width: int, scale: float) -> None:
        super().__init__(words, width, padding_idx=0)
        self.register_buffer("embed_scale", torch.tensor(scale), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = super().forward(input_ids)
        return found * self.embed_scale.to(self.weight.dtype)


class Language(nn.Module):
    def __init__(self, tied: bool, scale: float = SCALE) -> None:
        super().__init__()
        self.embed = Scaled(WORDS, WIDTH, scale)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        logits: Tensor = self.lm_head(x + torch.tanh(self.body(x)))
        return logits


def language(tied: bool, scale: float = SCALE) -> Language:
    model = Language(tied, scale)
    set_weights(model)
    return model.eval()


def texts(n: int = 6, seed: int = 0) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    shares = 1 / torch.arange(1.0, WORDS + 1)
    return [torch.multinomial(shares, 96, True, generator=draws).reshape(4, 24) for _ in range(n)]


def compressed(tied: bool, method: str = "svd", keep: float = 0.5) -> tuple[Any, Any]:
    return tensorlrf.compress(
        language(tied), keep_params=keep, method=method, calibration=texts(), **BOTH
    )


@pytest.mark.parametrize("method", ["svd", "tt"])
@pytest.mark.parametrize("tied", [False, True])
def test_laws_of_a_model_with_a_scaled_table(tmp_path: Path, tied: bool, method: str) -> None:
    model = language(tied)
    before = Snapshot(model)
    small, report = tensorlrf.compress(
        model, keep_params=0.5, method=method, calibration=texts(), **BOTH
    )
    before.check()
    assert type(small.embed) is FactoredEmbedding
    assert type(small.lm_head) is FactoredLinear
    assert small.embed.scale == SCALE
    assert report.layer("embed").kind == "Scaled"
    x, path = texts(1, seed=5)[0], tmp_path / "small.safetensors"
    torch.testing.assert_close(small.embed(x), SCALE * small.embed.weight[x])
    if tied:
        torch.testing.assert_close(small.lm_head.weight.clone(), small.embed.weight.clone())
    want = small(x)
    tensorlrf.save(small, path)
    with torch.device("meta"):
        blank = Language(tied).eval()
    for architecture in (language(tied), blank, copy.deepcopy(small)):
        back = tensorlrf.load(path, architecture)
        assert torch.equal(back(x), want)
        assert back.embed.scale == SCALE
        torch.testing.assert_close(tensorlrf.densify(back)(x), want)
    with pytest.raises(FileFormatError, match=r"multiplies what it looks up by 4, in the model by"):
        tensorlrf.load(path, language(tied, 5.0))
    dense, stock = tensorlrf.densify(small), tensorlrf.export(small)
    assert type(dense.embed) is Scaled
    assert (dense.lm_head.weight is dense.embed.weight) == tied
    for other in (dense, stock, copy.deepcopy(small)):
        torch.testing.assert_close(other(x), want)
    assert not any(type(m).__module__.startswith("tensorlrf") for m in stock.modules())
    tensorlrf.tune(small, x, progress=False)
    torch.testing.assert_close(small(x), want)


def test_a_tied_table_on_the_dense_path_leaves_tied() -> None:
    small, _ = compressed(True)
    single = tensorlrf.ops.PathTable.single("dense")
    small.embed.path_table = small.lm_head.path_table = single
    stock, x = tensorlrf.export(small), texts(1)[0]
    torch.testing.assert_close(stock(x), small(x))
    assert any(p is stock.lm_head.weight for p in stock.embed.parameters())


def test_a_model_loses_what_the_one_does_that_has_the_scale_in_its_table() -> None:
    scaled, plain = language(False), language(False, 1.0)
    with torch.no_grad():
        plain.embed.weight.mul_(SCALE)
    given: dict[str, Any] = {"keep_params": 0.5, "calibration": texts(), **BOTH}
    one, _ = tensorlrf.compress(scaled, **given)
    other, _ = tensorlrf.compress(plain, **given)
    x = texts(1, seed=3)[0]
    # Powers of two change no rounding, so that all choices are the same.
    torch.testing.assert_close(one(x), other(x))


def test_training_a_tied_table_keeps_it_one() -> None:
    small, _ = compressed(True)
    small.train()
    small(texts(1)[0]).square().sum().backward()
    assert small.embed.left is small.lm_head.left
    assert small.embed.left.grad is not None


def test_two_scales_on_one_table() -> None:
    """As of BART, whose encoder, decoder and head have one table."""

    class Both(Language):
        def __init__(self) -> None:
            super().__init__(True)
            self.more = Scaled(WORDS, WIDTH, 2.0)
            self.more.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens) + self.more(tokens.flip(-1))
            logits: Tensor = self.lm_head(torch.tanh(self.body(x)))
            return logits

    model = Both()
    set_weights(model)
    small, _ = tensorlrf.compress(model.eval(), keep_params=0.6, calibration=texts(), **BOTH)
    assert (small.embed.scale, small.more.scale) == (SCALE, 2.0)
    assert small.embed.left is small.more.left is small.lm_head.left
    x = texts(1)[0]
    for other in (tensorlrf.export(small), tensorlrf.densify(small)):
        torch.testing.assert_close(other(x), small(x))
