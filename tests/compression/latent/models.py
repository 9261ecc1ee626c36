"""Decoders, tiny and random, with keys and values of layers of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf
from torch import nn

from tests.compression.modular import models
from tests.compression.modular.models import SMALL, batches

WIDE = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48}


def qwen3() -> nn.Module:
    """Keys go through a norm, head by head."""
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**WIDE, head_dim=8))


def phi() -> nn.Module:
    """Half of a head turns."""
    config = hf.PhiConfig(**WIDE, pad_token_id=0, bos_token_id=None, eos_token_id=None)
    return hf.PhiForCausalLM(config)


def mistral() -> nn.Module:
    """A window of six tokens."""
    config = hf.MistralConfig(**WIDE, sliding_window=6, bos_token_id=None, eos_token_id=None)
    return hf.MistralForCausalLM(config)


def opt() -> nn.Module:
    """Positions are added to words; as many heads of keys as of queries."""
    config = hf.OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return hf.OPTForCausalLM(config)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": models.llama, "qwen2": models.qwen2, "qwen3": qwen3, "cohere": models.cohere,
    "phi": phi, "mistral": mistral, "opt": opt,
}  # fmt: skip
WINDOW = ("mistral",)
FULL = 32
"""The rank at which nothing of them is lost: numbers of keys and values, or inputs of their
layers."""


def drawn(name: str, seed: int = 0) -> Any:
    """As those of whole modules are."""
    return models.drawn(name, seed, FAMILIES)


__all__ = ["FAMILIES", "FULL", "WINDOW", "batches", "drawn"]
