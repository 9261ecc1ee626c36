"""The sentence encoder: its published figure, padding, and its bare architecture."""

from __future__ import annotations

from typing import Any

import minilm
import pytest
import texts
import torch
from torch import nn

pytestmark = pytest.mark.slow  # reads the packages of requirements-examples.txt


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return minilm.load_tokenizer()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return minilm.load_minilm()


def test_size_is_the_published_one(model: nn.Module) -> None:
    assert sum(p.numel() for p in model.parameters()) == 22_713_216
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert sum(name.startswith("encoder.") for name in linears) == 36
    assert not model.training


def test_the_architecture_is_bare_and_fits(model: nn.Module) -> None:
    bare = minilm.architecture()
    assert all(p.is_meta for p in bare.parameters())
    shapes = {name: p.shape for name, p in model.state_dict().items()}
    assert {name: p.shape for name, p in bare.state_dict().items()} == shapes


def test_the_dense_encoder_agrees_with_people_as_is_known(model: nn.Module, tokenizer: Any) -> None:
    rows = minilm.embed(model, tokenizer, texts.documents())
    found = texts.pearson(rows.numpy(), texts.human_similarities())
    assert found == pytest.approx(0.656, abs=1e-3)


def test_padding_and_order_do_not_matter(model: nn.Module, tokenizer: Any) -> None:
    some = [*texts.documents()[:5], "short", "a little longer"]
    together = minilm.embed(model, tokenizer, some)
    alone = torch.cat([minilm.embed(model, tokenizer, [text]) for text in some])
    # six layers, sums of at most 1,536 terms in float32, on rows of length 1
    tolerance = 6 * 1536 * torch.finfo(torch.float32).eps
    assert (together - alone).norm(dim=1).max() < tolerance
    assert torch.allclose(together.norm(dim=1), torch.ones(7), atol=1e-6)
    same, (low, high) = minilm.mean_cosine(together, together)
    assert same == pytest.approx(1, abs=1e-6)
    assert low <= same <= high + 1e-12


def test_batches_hold_every_text_once_with_little_padding(tokenizer: Any) -> None:
    some = texts.background()[:50]
    made = minilm.batches(tokenizer, some)
    rows = sum(len(batch["input_ids"]) for batch in made)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in made)
    expected = sum(
        len(ids) for ids in tokenizer(some, truncation=True, max_length=256)["input_ids"]
    )
    assert (rows, tokens) == (50, expected)
    assert sum(batch["attention_mask"].numel() for batch in made) < 1.25 * tokens


def test_the_timed_batch_has_no_padding(tokenizer: Any) -> None:
    batch = minilm.example(tokenizer)
    assert batch["input_ids"].shape == (16, 128)
    assert batch["attention_mask"].all()
