"""Windows of text, losses and perplexity of a language model."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import smollm2
import torch
from torch import Tensor, nn


class Characters:
    """A tokenizer whose tokens are the code points."""

    def __call__(self, text: str, return_tensors: str) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[ord(character) % 7 for character in text]])}


class Constant(nn.Module):
    """The same logits (7,) at every place."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, 7))


def test_windows_are_the_first_tokens_in_order() -> None:
    text = ["ab" * 300, "c" * 600]
    made = smollm2.windows(Characters(), text, 2)
    whole = Characters()("\n".join(text), return_tensors="pt")["input_ids"][0]
    assert made.shape == (2, 512)
    assert torch.equal(made.flatten(), whole[:1024])
    with pytest.raises(ValueError, match=r"n=3 windows take 1536 tokens.*1201"):
        smollm2.windows(Characters(), text, 3)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    tokens = torch.randint(7, (4, 512), generator=torch.Generator().manual_seed(0))
    nats = smollm2.losses(Constant(torch.zeros(7)), tokens)
    assert nats.shape == (4, 511)
    value, (low, high) = smollm2.perplexity(nats)
    assert value == pytest.approx(7, rel=1e-12)
    assert low == pytest.approx(7, rel=1e-12) == high


def test_losses_are_those_of_the_next_token() -> None:
    logits = torch.arange(7.0)
    tokens = torch.tensor([[0, 6, 3]])
    expected = torch.logsumexp(logits.double(), 0) - torch.tensor([6.0, 3.0], dtype=torch.float64)
    assert torch.allclose(smollm2.losses(Constant(logits), tokens)[0], expected)


def test_the_interval_holds_the_perplexity() -> None:
    nats = torch.rand(4, 511, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, (low, high) = smollm2.perplexity(nats)
    assert low < value < high
    assert value == pytest.approx(math.exp(nats.mean()))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_dense_model_and_its_bare_architecture() -> None:
    model, tokenizer = smollm2.load_smollm2(), smollm2.load_tokenizer()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    bare = smollm2.architecture()
    assert all(p.is_meta for p in bare.parameters())
    shapes = {name: p.shape for name, p in model.state_dict().items()}
    assert {name: p.shape for name, p in bare.state_dict().items()} == shapes
    value, _ = smollm2.perplexity(smollm2.losses(model, smollm2.unseen_windows(tokenizer)))
    assert value == pytest.approx(32, abs=0.5)


def test_each_third_window_is_of_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "background", lambda: ["a" * 512 * 9])
    monkeypatch.setattr(smollm2, "docstrings", lambda: ["b" * 512 * 20])
    batches = smollm2.mixed_batches(Characters(), 8)
    kinds = [batch["input_ids"].unique().tolist() for batch in batches]
    a, b = [ord("a") % 7], [ord("b") % 7]
    assert kinds == [a, a, b, a, a, b, a, a]
