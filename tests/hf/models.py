"""Tiny models of transformers on factors, and what they put out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tensorlrf.nn import FactoredHFConv1D, FactoredLinear, factorize
from tests.ops.samples import FORMATS, MATRIX_FORMATS, random_factors

IDS = torch.arange(3, 27, device="cpu", dtype=torch.int64).reshape(2, 12)
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def on_factors(model: nn.Module, *, every: int = 1, **kept: Any) -> nn.Module:
    """The model in eval mode with layers on random factors, of ranks that differ from layer to
    layer; of `every` so many one stays dense. `format` names one for all linear layers."""
    formats = kept.get("formats", ("lowrank",))
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or type(module).__name__ == "Conv1D") and "head" not in name
    ]
    for k, (name, module) in enumerate(linears):
        if every > 1 and k % every == 0:
            continue
        weight: Any = module.weight
        turned = type(module) is not nn.Linear
        shape = tuple(weight.shape[::-1] if turned else weight.shape)
        factors = random_factors(
            formats[k % len(formats)], shape, rank=2 + k % 3, seed=k, dtype=torch.float32
        )
        make: Any = FactoredHFConv1D if turned else FactoredLinear
        new = make.from_factors(factors.map(lambda t: t * 0.3), module)
        new.recipe = {"version": 2, "method": {"name": "svd"}}
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    return model.eval()


def llama(**more: Any) -> Any:
    config = hf.LlamaConfig(**SIZES, num_key_value_heads=1, **more)
    return hf.LlamaForCausalLM(config)


def with_table(model: Any) -> Any:
    """A head that is tied to an embedding, both on the same factors."""
    from tensorlrf import compress_

    compress_(model, keep_params=0.6, include=["embeddings", "heads"])
    return model.eval()


def qwen2() -> Any:
    """Biases, mixed ranks, every third layer dense."""
    config = hf.Qwen2Config(**SIZES, num_key_value_heads=1)
    model = hf.Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return on_factors(model, every=3)


def bert() -> Any:
    return on_factors(hf.BertForMaskedLM(hf.BertConfig(**SIZES, max_position_embeddings=32)))


def gpt2() -> Any:
    config = hf.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return on_factors(hf.GPT2LMHeadModel(config))


def t5() -> Any:
    config = hf.T5Config(
        vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return with_table(hf.T5ForConditionalGeneration(config))


def vit() -> Any:
    config = hf.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8, num_labels=9,
    )  # fmt: skip
    model = on_factors(hf.ViTForImageClassification(config))
    patches: Any = model.vit.embeddings.patch_embeddings
    patches.projection = factorize(patches.projection, "svd", 4)
    return model


def every_format() -> Any:
    formats = (*FORMATS, *MATRIX_FORMATS)
    return on_factors(hf.BertModel(hf.BertConfig(**SIZES)), formats=formats)


MODELS: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: on_factors(llama()),
    "llama with its table": lambda: with_table(llama(tie_word_embeddings=True)),
    "qwen2": qwen2,
    "bert": bert,
    "gpt2": gpt2,
    "t5": t5,
    "vit": vit,
    "every format": every_format,
}


def output(model: Any) -> Tensor:
    """All that it returns for one batch, as a vector."""
    name = type(model).__name__
    if name.startswith("ViT"):
        pixels = torch.linspace(-1, 1, 2 * 3 * 256, device="cpu", dtype=torch.float32)
        batch = {"pixel_values": pixels.reshape(2, 3, 16, 16).to(model.dtype)}
    else:
        batch = {"input_ids": IDS}
        if name.startswith("T5"):
            batch["decoder_input_ids"] = IDS[:, :5]
    with torch.no_grad():
        first: Tensor = model(**batch)[0]
    return first.flatten()
