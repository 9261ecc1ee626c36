"""Perplexity against its definition, and whatever cannot have one."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, FileError, FileFormatError, ShapeError
from tensorlrf.metrics import perplexity

WORDS = 11


class Language(nn.Module):
    """Logits of the next word, by the word and its place."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(words, words, generator=g))
        self.place = nn.Parameter(torch.randn(64, words, generator=g))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        logits = self.table[input_ids] + self.place[: input_ids.shape[1]]
        return SimpleNamespace(logits=logits.cumsum(1))


def words(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, WORDS, (n,), generator=torch.Generator().manual_seed(seed))


def directly(model: nn.Module, ids: Tensor, tokens: int) -> float:
    """exp of the mean cross entropy, window by window."""
    lost = []
    for window in ids.split(tokens):
        logits = model(window[None]).logits[0, :-1].double()
        lost.append(F.cross_entropy(logits, window[1:], reduction="none"))
    return float(torch.cat(lost).mean().exp().detach())


@settings(max_examples=20)
@given(st.integers(8, 70), st.integers(2, 8), st.integers(1, 9))
def test_it_is_the_exp_of_the_cross_entropy_however_it_is_batched(
    n: int, tokens: int, batch_size: int
) -> None:
    model, ids = Language(), words(n)
    found = perplexity(ids, tokens=tokens, batch_size=batch_size)(model)
    # Sums of at most 70 numbers of size 10 in float64, of logits in float32 both.
    # Sums in float64, in another order; so below.
    assert found == pytest.approx(directly(model, ids, tokens), rel=1e-12)


def test_padding_does_not_count_on_either_side() -> None:
    model = nn.Embedding(WORDS, WORDS)
    rows = [words(n, n) for n in (9, 4, 6)]
    alone = directly_of(model, rows)
    for left in (False, True):
        ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
        for k, row in enumerate(rows):
            at = slice(9 - len(row), None) if left else slice(len(row))
            ids[k, at], mask[k, at] = row, 1
        batch = {"input_ids": ids, "attention_mask": mask}
        assert perplexity([batch])(Masked(model)) == pytest.approx(alone, rel=1e-12)


class Masked(nn.Module):
    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = self.table(input_ids)
        return found.masked_fill((attention_mask == 0)[..., None], 50.0)


def directly_of(model: nn.Module, rows: list[Tensor]) -> float:
    lost = [F.cross_entropy(model(row)[:-1].double(), row[1:], reduction="none") for row in rows]
    return float(torch.cat(lost).mean().exp().detach())


def test_of_words_that_are_all_as_likely_it_is_their_number() -> None:
    model = nn.Embedding(WORDS, WORDS)
    nn.init.constant_(model.weight, 3.0)
    assert perplexity(words(40), tokens=7)(model) == pytest.approx(WORDS, rel=1e-12)
    assert perplexity(words(40).reshape(5, 8))(model) == pytest.approx(WORDS, rel=1e-12)


def test_a_model_of_no_use_is_infinitely_perplexed() -> None:
    model = nn.Embedding(WORDS, WORDS)
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.weight[:, 0] = 1e6  # all else is impossible
    assert perplexity(words(40), tokens=8)(model) == math.inf


def test_text_is_read_by_any_tokenizer(tmp_path: Path) -> None:
    text = tmp_path / "held_out.txt"
    text.write_text(" ".join(str(int(k)) for k in words(40)))

    def plain(text: str) -> list[int]:
        return [int(k) for k in text.split()]

    def of_transformers(text: str, add_special_tokens: bool = True, **more: Any) -> Any:
        ids = plain(text)
        return {"input_ids": [0, *ids, 0] if add_special_tokens else ids}

    of_tokenizers = SimpleNamespace(encode=lambda text: SimpleNamespace(ids=plain(text)))
    model = Language()
    wanted = perplexity(words(40), tokens=16)(model)
    for tokenizer in (plain, of_transformers, of_tokenizers):
        assert perplexity(text, tokenizer, tokens=16)(model) == wanted
    assert repr(perplexity(str(text), plain, tokens=16)) == (
        "perplexity of 3 windows of 16 tokens, the smaller the better"
    )


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    text, empty, bytes_ = (tmp_path / name for name in ("text", "empty", "bytes"))
    text.write_text("one two three")
    empty.write_text(" \n")
    bytes_.write_bytes(b"\xff\xfe\xff")

    def fails(text: str) -> list[int]:
        raise KeyError("vocabulary")

    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (tmp_path / "none", {}, FileError, "is not a file; give the path"),
        (bytes_, {"tokenizer": str.split}, FileFormatError, "no UTF-8"),
        (empty, {"tokenizer": str.split}, ArgumentError, "no text in it"),
        (text, {}, ArgumentError, r"give tokenizer=, such as transformers\.AutoTokenizer"),
        (text, {"tokenizer": "gpt2"}, ArgumentError, "tokenizer is a str"),
        (text, {"tokenizer": fails}, ArgumentError, "KeyError: 'vocabulary'"),
        (text, {"tokenizer": len}, ArgumentError, "tokenizer fails"),
        (
            text,
            {"tokenizer": lambda text: [1, 2, 3]},
            ArgumentError,
            "3 tokens, fewer than one .*=3",
        ),
        ([1, 2, 3], {"tokens": 1}, ArgumentError, "tokens=1 must be an int of at least 2"),
        ([1, 2, 3], {"batch_size": 0}, ArgumentError, "batch_size=0"),
        (torch.rand(3), {}, ArgumentError, "token ids are integers"),
        (torch.ones(3, 1, dtype=torch.long), {}, ArgumentError, "no window of two tokens"),
        ([torch.ones(2, 3, dtype=torch.long)], {"tokens": 8}, ArgumentError, "tokens= is for text"),
        (lambda model: None, {}, ArgumentError, "is a function"),
        ([], {}, ArgumentError, "yields nothing"),
        (3, {}, ArgumentError, "data is a int"),
        (words(20), {"readout": "logits"}, ArgumentError, "readout is a str"),
    ]
    for given_, more, kind, says in cases:
        with pytest.raises(kind, match=says):
            perplexity(given_, **more)


def test_models_that_predict_no_words_are_refused() -> None:
    ids = words(20)

    class Returns(nn.Module):
        def __init__(self, value: Any) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Any:
            return self.value(x)

    def nan(x: Tensor) -> Tensor:
        return torch.full((*x.shape, WORDS), torch.nan)

    cases: list[tuple[Any, type[Exception], str]] = [
        (nan, ArgumentError, "hold NaN"),
        (lambda x: torch.zeros(*x.shape, 3), ArgumentError, "the tokenizer its own"),
        (lambda x: torch.zeros(len(x), WORDS), ShapeError, "predict the next token"),
        (lambda x: (torch.zeros(3), torch.zeros(3)), ArgumentError, "returns 2 floating-point"),
        (lambda x: None, ArgumentError, "returns 0 floating-point"),
        (lambda x: F.one_hot(x.flip(1), WORDS).float(), ArgumentError, "sees the words"),
    ]
    for value, kind, says in cases:
        with pytest.raises(kind, match=says):
            perplexity(ids, tokens=5)(Returns(value))
    alone = {"input_ids": words(4)[None], "attention_mask": torch.tensor([[1, 0, 1, 0]])}
    with pytest.raises(ArgumentError, match="no token follows"):
        perplexity([alone])(Language())
    with pytest.raises(ArgumentError, match="no token ids"):
        perplexity([torch.rand(3, 4)])(nn.Linear(4, 3))
    with pytest.raises(ArgumentError, match="readout returns a int"):
        perplexity(ids, tokens=5, readout=lambda output: 3)(Language())


def test_the_model_stays_as_it_is() -> None:
    model = Language().train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    perplexity(words(20), tokens=5)(model)
    assert model.training
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
