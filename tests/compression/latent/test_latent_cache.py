"""`latent_cache`: what it keeps, what it costs, and what it refuses."""

from __future__ import annotations

import copy
import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache

from tensorlrf import compress, latent_cache
from tensorlrf.compression.latent._joint import ranks_within
from tensorlrf.errors import (
    ArgumentError,
    CalibrationWarning,
    RankError,
    UnsupportedError,
)
from tensorlrf.nn import FactoredLinear
from tests.compression.latent.models import FAMILIES, FULL, batches, drawn
from tests.compression.modular import models as others

QUIET: dict[str, Any] = {"progress": False}


def latent(name: str, **options: Any) -> Any:
    return latent_cache(drawn(name), batches(name), **QUIET, **options)


def bytes_of_a_token(model: Any, name: str) -> float:
    """That its cache holds."""
    tokens = batches(name)[0]["input_ids"][:2]
    held = DynamicCache(config=model.config)
    model(input_ids=tokens, past_key_values=held, use_cache=True)
    layers = [one for layer in held.layers for one in (layer.keys, layer.values)]
    seen = [one.numel() * one.element_size() / (2 * one.shape[2]) for one in layers]
    return sum(seen)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_cache_has_the_bytes_that_are_told(name: str) -> None:
    keep = 0.4
    model = drawn(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small, report = latent_cache(model, batches(name), keep_cache=keep, **QUIET)
    assert bytes_of_a_token(model, name) == report.bytes_before
    assert bytes_of_a_token(small, name) == report.bytes_after
    assert keep - 4 / report.bytes_before * report.itemsize < report.share <= keep
    assert [type(m).__name__ for m in model.modules() if "Linear" not in type(m).__name__] == [
        type(m).__name__ for m in small.modules() if "Linear" not in type(m).__name__
    ]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_errors_fall_with_the_rank_to_nothing(name: str) -> None:
    reports = [latent(name, rank=rank, metric="outputs")[1] for rank in (4, 16, FULL)]
    rows = list(zip(*(report.rows for report in reports), strict=True))
    for own in rows:
        lost = [row.keys_error**2 + row.values_error**2 for row in own]
        assert lost[0] > lost[1] > lost[2]
        # Products in float64 of weights that were rounded to float32.
        assert own[2].keys_error < 1e-6
        assert own[2].values_error < 1e-6


def test_heads_of_their_own_take_half_the_cache_for_nothing() -> None:
    """Keys and values each have as many numbers as their layers have inputs."""
    small, report = latent("opt", keep_cache=0.5)
    assert report.share == 0.5
    tokens = batches("opt")[0]["input_ids"]
    torch.testing.assert_close(small(tokens).logits, drawn("opt")(tokens).logits,
                               rtol=1e-4, atol=1e-4)  # fmt: skip  # products of float32 in turn


def test_both_metrics_and_a_readout_serve() -> None:
    _, report = latent("llama", keep_cache=0.5)
    assert report.metric == "loss"
    assert report.predicted is not None
    assert report.unit == "nats a row"
    _, report = latent("llama", keep_cache=0.5, metric="outputs")
    assert report.metric == "outputs"
    assert report.predicted is None
    _, report = latent("llama", rank=4, loss="relative", readout=lambda out: out.logits)
    assert report.unit == "squared relative error"


def test_what_counts_more_is_kept() -> None:
    """Of the loss, that less is lost in its own metric than by the other."""
    model, data = drawn("llama"), batches("llama", 8)
    wanted = model(**data[0]).logits.log_softmax(-1).detach()
    lost = {}
    for metric in ("loss", "outputs"):
        small, _ = latent_cache(model, data, keep_cache=0.5, metric=metric, **QUIET)
        told = small(**data[0]).logits.log_softmax(-1).detach()
        lost[metric] = float((wanted.exp() * (wanted - told)).sum(-1).mean())
    assert lost["loss"] < lost["outputs"]


def test_what_is_skipped_stays() -> None:
    small, report = latent("llama", rank=8, skip="model.layers.0.*")
    assert [row.name for row in report.rows] == ["model.layers.1.self_attn"]
    assert bytes_of_a_token(small, "llama") == report.bytes_after == 4 * (32 + 9)
    assert report.bytes_before == 4 * 64
    assert not isinstance(small.model.layers[0].self_attn.k_proj, FactoredLinear)


def test_a_report_is_a_table_and_json() -> None:
    _, report = latent("llama", keep_cache=0.5)
    assert "256 B to 128 B a token, 50.0%" in str(report)
    assert "model.layers.1.self_attn" in report.to_markdown()
    values = json.loads(report.to_json())
    assert values["bytes_after"] == report.bytes_after
    assert values["rows"][0]["rank"] == report.rows[0].rank


def test_the_rest_can_be_compressed_afterwards() -> None:
    small, _ = latent("llama", rank=8)
    smaller, report = compress(small, keep_params=0.5, calibration=batches("llama"), **QUIET)
    assert not any(row.eligible for row in report.layers if row.name.endswith("k_proj"))
    tokens = batches("llama")[0]["input_ids"][:2]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        smaller.generate(tokens, **options), smaller.generate(tokens, use_cache=False, **options)
    )
    assert bytes_of_a_token(smaller, "llama") == bytes_of_a_token(small, "llama")


@given(
    st.lists(
        st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=4),
        min_size=1, max_size=3,
    ),
    st.integers(0, 12),
)  # fmt: skip
def test_ranks_are_those_of_least_loss(drawn_energies: list[list[float]], more: int) -> None:
    energies = {
        str(k): torch.tensor(sorted(own, reverse=True), dtype=torch.float64)
        for k, own in enumerate(drawn_energies)
    }
    digits = dict.fromkeys(energies, 1)
    numbers = 2 * len(energies) + more
    found = ranks_within(energies, digits, numbers)
    assert sum(found.values()) + len(energies) <= numbers
    lost = sum(float(own[found[name] :].sum()) for name, own in energies.items())
    for ranks in itertools.product(*(range(1, len(own) + 1) for own in energies.values())):
        if sum(ranks) + len(energies) <= numbers:
            other = sum(
                float(own[r:].sum()) for r, own in zip(ranks, energies.values(), strict=True)
            )
            assert lost <= other + 1e-9 * (1 + other)  # sums in another order


# ---- what cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({}, ArgumentError, "keep_cache=None and rank=None"),
        ({"keep_cache": 0.5, "rank": 3}, ArgumentError, "give one of the two"),
        ({"keep_cache": 0.0}, ArgumentError, r"keep_cache=0.0 must be a share in \(0, 1\]"),
        ({"keep_cache": True}, ArgumentError, "keep_cache=True"),
        ({"keep_cache": 0.01}, ArgumentError, "take 4 at the least"),
        ({"rank": 0}, RankError, "rank=0 must be an int of at least 1"),
        ({"rank": 2.0}, RankError, "rank=2.0"),
        ({"rank": 33}, RankError, "rank=33 is above 32, .*model.layers.0.self_attn"),
        ({"rank": 3, "metric": "los"}, ArgumentError, "metric='los'"),
        ({"rank": 3, "skip": "layer.9"}, ArgumentError, "layer.9"),
        ({"rank": 3, "skip": "*self_attn"}, ArgumentError, "leaves no attention"),
    ],
)
def test_arguments_that_cannot_be(options: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        latent("llama", **options)


def test_without_inputs_nothing_is_known() -> None:
    with pytest.raises(ArgumentError, match="calibration=None"):
        latent_cache(drawn("llama"), None, rank=3)
    one = [{"input_ids": torch.zeros(4, 1, dtype=torch.long)}]
    with pytest.raises(ArgumentError, match="one token a sample"):
        latent_cache(drawn("llama"), one, rank=3, **QUIET)


def test_an_unknown_attention_is_named_and_the_model_stays() -> None:
    model = others.drawn("gpt2")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match=r"transformer.h.0.attn .*one linear layer of its own"):
        latent_cache(model, batches("gpt2"), rank=3, **QUIET)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_model_without_such_a_cache_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="cache"):
        latent_cache(others.drawn(name), batches(name), rank=3, **QUIET)


class Wrapped(nn.Module):
    """Hands on whatever it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped])
def test_a_model_that_knows_no_cache_is_told_so(wrap: Any) -> None:
    """Its own forward, or one within it, has no such keyword."""
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model, x = wrap(nn.Sequential(net)), [torch.zeros(2, 5, 8)]
    before = copy.deepcopy(model.state_dict())
    kind = type(model).__name__
    with pytest.raises(
        ArgumentError, match=rf"model: a {kind} keeps no cache of keys and val"
    ) as e:
        latent_cache(model, x, rank=3, **QUIET)
    assert "knows no use_cache=" in str(e.value)
    assert "use tensorlrf.compress" in str(e.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_fault_of_another_kind_keeps_its_own_words() -> None:
    with pytest.raises(ArgumentError, match="the model cannot take batch 0") as e:
        latent_cache(drawn("llama"), [{"input_ids": torch.zeros(1, 3)}], rank=3, **QUIET)
    assert "keeps no cache" not in str(e.value)


def test_a_latent_cache_is_made_once() -> None:
    small, _ = latent("llama", rank=3)
    with pytest.raises(ArgumentError, match="latent already"):
        latent_cache(small, batches("llama"), rank=3, **QUIET)


def test_layers_that_cannot_be_factored_are_named() -> None:
    model = drawn("llama")
    small, _ = compress(model, keep_params=0.5, calibration=batches("llama"), **QUIET)
    with pytest.raises(ArgumentError, match=r"self_attn\.._proj cannot be factored"):
        latent_cache(small, batches("llama"), rank=3, **QUIET)
    model.model.layers[1].self_attn.v_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ArgumentError, match=r"NaN"):
        latent_cache(model, batches("llama"), rank=3, **QUIET)


def test_few_samples_are_told() -> None:
    with pytest.warns(CalibrationWarning, match=r"self_attn.k_proj .* and 1 more"):
        latent_cache(drawn("llama"), batches("llama", 1, 2), rank=3, **QUIET)


def test_positions_are_asked_for_and_never_rounded() -> None:
    small, _ = latent("llama", rank=3)
    attention = small.model.layers[0].self_attn
    x: Tensor = torch.randn(1, 2, 32)
    tables = small.model.rotary_emb(x, torch.arange(2)[None])
    with pytest.raises(ArgumentError, match="position_ids=None"):
        attention(x, position_embeddings=tables, past_key_values=DynamicCache())
    few = DynamicCache()
    few.layers.append(SimpleNamespace(nbits=4))
    with pytest.raises(UnsupportedError, match="4 bits would round the positions"):
        attention(
            x, position_embeddings=tables, past_key_values=few, position_ids=torch.arange(2)[None]
        )


def test_a_layer_that_is_no_longer_of_low_rank_is_named() -> None:
    small, _ = latent("llama", rank=3)
    small.model.layers[0].self_attn.v_proj = torch.nn.Linear(32, 16)
    tokens = batches("llama")[0]["input_ids"]
    with pytest.raises(UnsupportedError, match=r"v_proj .*no longer of low rank"):
        small.generate(tokens, max_new_tokens=3, do_sample=False, pad_token_id=0)
