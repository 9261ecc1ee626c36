"""A vocabulary that grows after compression."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn import resize_token_embeddings

transformers = pytest.importorskip("transformers")
WORDS = 96


def llama(tied: bool) -> Any:
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=WORDS,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def compressed(tied: bool, include: list[str], method: str = "svd") -> Any:
    return tensorlrf.compress(
        llama(tied), keep_params=0.6, include=include, method=method, progress=False
    )[0]


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=tokens).logits
    return found


BOTH = ["embeddings", "heads"]
TOKENS = torch.arange(0, 24).reshape(2, 12)


@pytest.mark.parametrize(
    ("tied", "include"), [(True, BOTH), (False, BOTH), (False, ["heads"]), (False, ["embeddings"])]
)
@pytest.mark.parametrize("words", [WORDS + 5, WORDS, WORDS - 8])
def test_the_other_words_have_the_logits_of_before(
    tied: bool, include: list[str], words: int
) -> None:
    model = compressed(tied, include)
    before = logits(model, TOKENS)
    kinds = type(model.model.embed_tokens), type(model.lm_head)
    made = resize_token_embeddings(model, words)
    assert made is model.get_input_embeddings()
    after = logits(model, TOKENS)
    assert after.shape[-1] == words == model.config.vocab_size
    kept = min(words, WORDS)
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    assert (type(model.model.embed_tokens), type(model.lm_head)) == kinds
    if tied:
        assert model.model.embed_tokens.left is model.lm_head.left
    if words > WORDS:
        mean = before.mean(-1, keepdim=True).expand(*before.shape[:-1], words - WORDS)
        torch.testing.assert_close(after[..., WORDS:], mean, atol=1e-5, rtol=1e-4)
        grown = logits(model, torch.full((1, 3), words - 1))
        assert grown.isfinite().all()
    dense = tensorlrf.densify(model)
    torch.testing.assert_close(logits(dense, TOKENS), after, atol=1e-5, rtol=1e-4)


def test_a_train_has_no_rows_to_add_and_nothing_changes() -> None:
    model = compressed(False, ["embeddings"], "tt")
    before = copy.deepcopy(model)
    named = r"model\.embed_tokens runs on a TTMatrix, .*densify"
    with pytest.raises(UnsupportedError, match=named):
        resize_token_embeddings(model, WORDS + 1)
    assert model.config.vocab_size == WORDS
    torch.testing.assert_close(logits(model, TOKENS), logits(before, TOKENS))


def test_its_own_function_refuses_before_anything_changes() -> None:
    """That of transformers knows torch's layers alone, and says so by the type of ours."""
    model = compressed(True, BOTH)
    before = logits(model, TOKENS)
    with pytest.raises(TypeError, match="FactoredEmbedding"):
        model.resize_token_embeddings(WORDS + 1)
    torch.testing.assert_close(logits(model, TOKENS), before)


def test_what_cannot_be_is_refused() -> None:
    model = compressed(True, BOTH)
    with pytest.raises(ArgumentError, match="words=0"):
        resize_token_embeddings(model, 0)
    with pytest.raises(ArgumentError, match="a model of transformers"):
        resize_token_embeddings(nn.Linear(3, 3), 4)
    model.set_input_embeddings(nn.Identity())
    with pytest.raises(UnsupportedError, match="is a Identity, of which no rows are known"):
        resize_token_embeddings(model, 4)


def test_a_scaled_table_keeps_its_scale() -> None:
    """Of Gemma's kind, whose rows are multiplied by the root of the width."""

    class Scaled(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 4.0

    model = compressed(True, BOTH)
    with torch.device("cpu"):
        table = Scaled(WORDS, model.config.hidden_size)
    model.set_input_embeddings(tensorlrf.nn.factorize(table, "svd", 4))
    before = model.get_input_embeddings()(TOKENS)
    model.set_output_embeddings(nn.Linear(model.config.hidden_size, WORDS, device="cpu"))
    made = resize_token_embeddings(model, WORDS + 3)
    torch.testing.assert_close(made(TOKENS), before)
    dense = tensorlrf.densify(made)
    assert type(dense) is Scaled
    assert dense.num_embeddings == WORDS + 3
    torch.testing.assert_close(dense(TOKENS), before)
