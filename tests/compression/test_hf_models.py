"""Models of transformers, tiny and random: what is factored, what stays and why, and that the
compressed model runs and is close at a high share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tensorlrf import apply, compress, plan
from tensorlrf.compression.calibration._outputs import tensors_of
from tests.compression.networks import UNIFORM, Snapshot, check_report, relative, set_weights

IDS = torch.randint(3, 60, (4, 24), generator=torch.Generator().manual_seed(0))
TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert_config() -> Any:
    return hf.BertConfig(**SMALL, intermediate_size=48, max_position_embeddings=32)


def llama(*, tied: bool) -> nn.Module:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            **SMALL, num_key_value_heads=1, intermediate_size=48, tie_word_embeddings=tied
        )
    )


def t5() -> nn.Module:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2,
                    decoder_start_token_id=0)
    )  # fmt: skip


def clip() -> nn.Module:
    return hf.CLIPVisionModel(
        hf.CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                            num_attention_heads=2, image_size=16, patch_size=8)
    )  # fmt: skip


def vit() -> nn.Module:
    return hf.ViTForImageClassification(
        hf.ViTConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                     num_attention_heads=2, image_size=16, patch_size=8, num_labels=9)
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """make     the model
    batch    for it
    left     name of a layer that stays -> part of the reason
    factored  ends of names of layers among those factored
    """

    make: Callable[[], nn.Module]
    batch: Mapping[str, Any]
    left: Mapping[str, str]
    factored: tuple[str, ...]


PIXELS = {"pixel_values": torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))}
CASES = {
    "bert": Case(
        lambda: hf.BertModel(bert_config()),
        TEXT,
        {"pooler.dense": "a head", "embeddings.word_embeddings": "an embedding"},
        ("encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense"),
    ),
    "bert classifier": Case(
        lambda: hf.BertForSequenceClassification(bert_config()),
        TEXT,
        {"classifier": "a head", "bert.pooler.dense": "a head"},
        ("bert.encoder.layer.1.intermediate.dense",),
    ),
    "gpt2": Case(
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32)
        ),
        TEXT,
        {
            "lm_head": "shares its storage with transformer.wte.weight",
            "transformer.wte": "shares its weight with lm_head",
        },
        ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"),
    ),
    "llama": Case(
        lambda: llama(tied=False),
        TEXT,
        {"lm_head": "a head", "model.norm": "neither"},
        ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"),
    ),
    "llama, tied": Case(
        lambda: llama(tied=True),
        TEXT,
        {"lm_head": "shares its storage with model.embed_tokens.weight"},
        ("model.layers.0.mlp.gate_proj",),
    ),
    "t5": Case(
        t5,
        {**TEXT, "decoder_input_ids": IDS[:, :5]},
        {"lm_head": "shares its storage with", "shared": "shares its weight with lm_head"},
        ("encoder.block.0.layer.1.DenseReluDense.wo", "decoder.block.1.layer.1.EncDecAttention.k"),
    ),
    "clip vision": Case(clip, PIXELS, {}, ("embeddings.patch_embedding", "layers.1.mlp.fc2")),
    "vit": Case(vit, PIXELS, {"classifier": "a head"}, ("patch_embeddings.projection",)),
}


def outputs(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """All that it returns, as one vector."""
    with torch.no_grad():
        return torch.cat([t.flatten() for t in tensors_of(model(**batch))])


@pytest.mark.filterwarnings("ignore:calibration is thin")
@pytest.mark.parametrize("case", CASES)
def test_structure(case: str) -> None:
    one = CASES[case]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = set_weights(one.make())
    before = Snapshot(model)
    wanted = outputs(model, one.batch)
    small, report = compress(model, keep_params=0.9, calibration=[one.batch], **UNIFORM)
    before.check()
    assert torch.equal(outputs(model, one.batch), wanted)
    check_report(model, small, report)
    for name, reason in one.left.items():
        row = report.layer(name)
        assert reason in row.reason, row
        assert not row.factored
    for name in one.factored:
        (row,) = (row for row in report.layers if row.name.endswith(name))
        assert row.data_aware, row
    assert relative(outputs(small, one.batch), wanted) < 0.5
    # With every rank full the model computes what it did, up to rounding.
    whole = plan(model, keep_params=0.9)
    for row in whole.factored:
        whole = whole.edit(row.name, rank=min(row.shape[0], row.params // row.shape[0]))
    exact, _ = apply(model, whole)
    assert relative(outputs(exact, one.batch), wanted) < 1e-4
    # Its own ways of saving, resizing and asking go on: parameters are listed, dtype is known.
    assert small.dtype == torch.float32
    assert small.num_parameters() == report.model.params_after


def test_a_language_model_generates() -> None:
    for make in (CASES["gpt2"].make, lambda: llama(tied=True)):
        model = set_weights(make())
        small, _ = compress(model, keep_params=0.8)
        tokens = small.generate(
            IDS[:1], attention_mask=torch.ones(1, 24), max_new_tokens=4, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        assert tokens.shape == (1, 28)


def test_tied_weights_stay_tied() -> None:
    model = set_weights(CASES["gpt2"].make())
    small, _ = compress(model, keep_params=0.8, skip=[])
    assert small.lm_head.weight is small.transformer.wte.weight
