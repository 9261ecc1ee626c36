"""Transformers, tiny and random, of every kind whose structure is known, with batches for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS, LENGTH, BATCHES = 60, 12, 4


def llama(**options: Any) -> nn.Module:
    """Heads of 8 numbers, two of queries for each of keys."""
    config = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48, "bos_token_id": None,
              "eos_token_id": None}  # fmt: skip
    return hf.LlamaForCausalLM(hf.LlamaConfig(**config, **options))


def qwen2() -> nn.Module:
    """Biases of queries, keys and values, none behind them."""
    config = hf.Qwen2Config(**SMALL, num_key_value_heads=2, intermediate_size=48)
    return hf.Qwen2ForCausalLM(config)


def cohere() -> nn.Module:
    """Rotary pairs of neighbours."""
    config = hf.CohereConfig(**SMALL, num_key_value_heads=2, intermediate_size=48, pad_token_id=0,
                             bos_token_id=1, eos_token_id=2)  # fmt: skip
    return hf.CohereForCausalLM(config)


def phi3() -> nn.Module:
    """Queries, keys and values in one layer, of unequal numbers; gate and up in one."""
    config = hf.Phi3Config(**SMALL, num_key_value_heads=2, intermediate_size=48, pad_token_id=0,
                           bos_token_id=None, eos_token_id=None)  # fmt: skip
    return hf.Phi3ForCausalLM(config)


def gpt2() -> nn.Module:
    """Transposed layers, the three of attention in one."""
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32,
                      bos_token_id=None, eos_token_id=None)
    )  # fmt: skip


def bert() -> nn.Module:
    """Layers of one structure in two modules."""
    return hf.BertModel(
        hf.BertConfig(**SMALL, intermediate_size=48, max_position_embeddings=32),
        add_pooling_layer=False,
    )


def vit() -> nn.Module:
    """Without a mask."""
    return hf.ViTForImageClassification(
        hf.ViTConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                     num_attention_heads=4, image_size=16, patch_size=4, num_labels=5)
    )  # fmt: skip


def t5(gate: str = "relu") -> nn.Module:
    """Relative positions, attention across, no scale; d_kv is not d_model over heads."""
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=64, d_model=32, d_kv=6, d_ff=48, num_layers=1, num_heads=4,
                    decoder_start_token_id=0, feed_forward_proj=gate)
    )  # fmt: skip


def gated_t5() -> nn.Module:
    """With a gate beside."""
    return t5("gated-gelu")


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": llama, "qwen2": qwen2, "cohere": cohere, "phi3": phi3, "gpt2": gpt2, "bert": bert,
    "vit": vit, "t5": t5, "gated_t5": gated_t5,
}  # fmt: skip
KINDS = [
    name if name in ("llama", "gpt2", "bert", "t5") else pytest.param(name, marks=pytest.mark.slow)
    for name in FAMILIES
]
"""One of each kind, of laws that the others differ little in: those are slow ones."""
CAUSAL = ("llama", "qwen2", "cohere", "phi3", "gpt2")
TURNED = ("llama", "qwen2", "cohere", "phi3")
"""With rotary pairs."""


def drawn(
    name: str, seed: int = 0, families: Mapping[str, Callable[[], nn.Module]] = FAMILIES
) -> nn.Module:
    """A model in which all that can be known of a structure makes a difference: no bias is zero,
    and no score near zero."""
    draws = torch.Generator().manual_seed(seed)
    model = families[name]().eval()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=draws)
        scale = 0.1 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5
        parameter.data = scale * noise + (parameter.data if parameter.ndim == 1 else 0.0)
    return model


def batches(name: str, count: int = BATCHES, size: int = 16) -> list[dict[str, Tensor]]:
    """For such a model."""
    draws = torch.Generator().manual_seed(7)
    if name == "vit":
        return [
            {"pixel_values": torch.randn(size, 3, 16, 16, generator=draws)} for _ in range(count)
        ]
    if name.endswith("t5"):
        return [
            {"input_ids": _words(size, LENGTH, draws), "decoder_input_ids": _words(size, 8, draws)}
            for _ in range(count)
        ]
    return [{"input_ids": _words(size, LENGTH, draws)} for _ in range(count)]


def _words(size: int, length: int, draws: torch.Generator) -> Tensor:
    return torch.randint(3, WORDS, (size, length), generator=draws)
