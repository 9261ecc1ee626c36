"""What is generated from a latent cache is what would be generated without a cache."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tensorlrf import latent_cache, rank_scale
from tests.compression.latent.models import FAMILIES, FULL, WINDOW, batches, drawn

QUIET: dict[str, Any] = {"progress": False}
PLAIN = [name for name in FAMILIES if name not in WINDOW]
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


@cache
def dense(name: str) -> Any:
    return drawn(name).double()


@cache
def small(name: str, rank: int) -> Any:
    """In float64: tokens are compared, which may hang on a rounding."""
    return latent_cache(dense(name), batches(name), rank=rank, **QUIET)[0]


def words(name: str) -> Tensor:
    return batches(name)[1]["input_ids"][:3]


def padded(name: str) -> tuple[Tensor, Tensor]:
    """(tokens, mask), on the left."""
    tokens, mask = words(name).clone(), torch.ones(3, 12, dtype=torch.long)
    tokens[1, :4], mask[1, :4] = 0, 0
    tokens[2, :7], mask[2, :7] = 0, 0
    return tokens, mask


def logits(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=tokens, **options).logits
    return found


def near(given: Tensor, wanted: Tensor, name: str) -> None:
    """Up to sums of some tens of terms in another order: far above rounding of float64, or of
    float32, in which Cohere turns whatever its dtype is."""
    apart = 1e-4 if name == "cohere" else 1e-9
    torch.testing.assert_close(given, wanted, rtol=apart, atol=apart)


@pytest.mark.parametrize("name", FAMILIES)
def test_at_full_rank_the_tokens_are_those_of_the_dense_model(name: str) -> None:
    wanted = dense(name).generate(words(name), **GREEDY)
    assert torch.equal(small(name, FULL).generate(words(name), **GREEDY), wanted)
    tokens, mask = padded(name)
    wanted = dense(name).generate(tokens, attention_mask=mask, **GREEDY)
    given = small(name, FULL).generate(tokens, attention_mask=mask, **GREEDY)
    assert torch.equal(given, wanted)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rank", [1, 7, FULL])
def test_logits_with_a_cache_are_those_without(name: str, rank: int) -> None:
    """In parts of several tokens and of one."""
    model, tokens = small(name, rank), words(name)
    wanted = logits(model, tokens, use_cache=False)
    held, parts = DynamicCache(config=model.config), []
    for first, last in ((0, 5), (5, 6), (6, 9), (9, 10), (10, 12)):
        parts.append(logits(model, tokens[:, first:last], past_key_values=held, use_cache=True))
    near(torch.cat(parts, 1), wanted, name)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_does_not_depend_on_the_cache(name: str) -> None:
    """Greedy, sampled, and by beams, which reorder it; padded on the left."""
    model, (tokens, mask) = small(name, 9), padded(name)
    for options in (
        {"do_sample": False}, {"do_sample": True, "top_k": 8}, {"num_beams": 3, "do_sample": False},
    ):  # fmt: skip
        found = []
        for use_cache in (True, False):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                found.append(
                    model.generate(
                        tokens, attention_mask=mask, max_new_tokens=6, pad_token_id=0,
                        use_cache=use_cache, **options,
                    )
                )  # fmt: skip
        assert torch.equal(*found)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_goes_on_from_its_cache(name: str) -> None:
    model = small(name, 9)
    first = model.generate(words(name), **GREEDY, return_dict_in_generate=True)
    more = torch.cat((first.sequences, words(name)[:, :2]), 1)
    wanted = model.generate(more, **GREEDY, use_cache=False)
    again = model.generate(more, **GREEDY, past_key_values=first.past_key_values)
    assert torch.equal(again, wanted)


@pytest.mark.parametrize("name", PLAIN)
def test_a_cache_of_fixed_length_serves_as_well(name: str) -> None:
    model = small(name, 9)
    wanted = model.generate(words(name), **GREEDY, use_cache=False)
    held = model.generate(words(name), **GREEDY, cache_implementation="static",
                          disable_compile=True)  # fmt: skip
    assert torch.equal(held, wanted)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_cache_that_is_cut_goes_on(name: str) -> None:
    model, tokens = small(name, 9), words(name)
    held = DynamicCache(config=model.config)
    logits(model, tokens, past_key_values=held, use_cache=True)
    held.crop(-4)
    given = logits(model, tokens[:, 8:], past_key_values=held, use_cache=True)
    wanted = logits(model, tokens, use_cache=False)[:, 8:]
    near(given, wanted, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_are_exact_in_half_precision(dtype: torch.dtype) -> None:
    """Beyond 256 whole numbers are rounded in bfloat16: turns would be wrong by radians."""
    model = latent_cache(drawn("llama"), batches("llama"), rank=16, **QUIET)[0].to(dtype)
    tokens = batches("llama")[0]["input_ids"].flatten().repeat(2)[None, :300]
    held = DynamicCache(config=model.config)
    logits(model, tokens[:, :-1], past_key_values=held, use_cache=True)
    given = logits(model, tokens[:, -1:], past_key_values=held, use_cache=True).float()
    wanted = logits(model, tokens, use_cache=False)[:, -1:].float()
    # Of the dtype: both round activations in some ten products, one after the other.
    assert (given - wanted).norm() < 10 * torch.finfo(dtype).eps * wanted.norm()


def test_a_part_of_the_ranks_is_cached_where_a_part_runs() -> None:
    model, tokens = small("llama", 16), words("llama")
    whole = logits(model, tokens, use_cache=False)
    with rank_scale(model, 0.5):
        wanted = logits(model, tokens, use_cache=False)
        held = DynamicCache(config=model.config)
        logits(model, tokens[:, :-1], past_key_values=held, use_cache=True)
        given = logits(model, tokens[:, -1:], past_key_values=held, use_cache=True)
    assert held.layers[0].keys.shape[-1] == 8 + 1
    near(given, wanted[:, -1:], "llama")
    assert not torch.allclose(wanted, whole)


@pytest.mark.parametrize("way", ["eager", "sdpa"])
def test_every_attention_of_transformers_serves(way: str) -> None:
    model = small("llama", 9)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(way)
        wanted = model.generate(words("llama"), **GREEDY, use_cache=False)
        assert torch.equal(model.generate(words("llama"), **GREEDY), wanted)
    finally:
        model.set_attn_implementation(before)
