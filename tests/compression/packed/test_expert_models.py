"""Mixtures whose experts get their rows sorted are compressed, saved and packed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tensorlrf import compress, densify, load, save
from tests.compression.networks import UNIFORM, Snapshot, check_report

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "num_local_experts": 3,
}  # fmt: skip


def llama4() -> Any:
    config = hf.Llama4TextConfig(
        **SIZES, num_attention_heads=4, intermediate_size_mlp=48, head_dim=8, pad_token_id=0
    )
    return hf.Llama4ForCausalLM(config)


def jetmoe() -> Any:
    return hf.JetMoeForCausalLM(hf.JetMoeConfig(**SIZES, kv_channels=8, num_experts_per_tok=2))


def dbrx() -> Any:
    config = hf.DbrxConfig(
        d_model=24, n_heads=4, n_layers=1, max_seq_len=32, vocab_size=64,
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        ffn_config={
            "hidden_size": 24, "ffn_hidden_size": 32, "moe_num_experts": 3, "moe_top_k": 2,
        },
    )  # fmt: skip
    return hf.DbrxForCausalLM(config)


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.filterwarnings("ignore:calibration is thin", "ignore:calibration does not reach")
@pytest.mark.parametrize("make", [llama4, jetmoe, dbrx])
def test_experts_are_reached(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 3 or ".experts." in name:
                p.normal_(0, 0.1)
    batches = [{"input_ids": torch.randint(3, 64, (4, 12))} for _ in range(3)]
    ids = batches[0]["input_ids"]
    before = Snapshot(model)
    small, report = compress(model, keep_params=0.6, calibration=batches, skip=[], **UNIFORM)
    before.check()
    check_report(model, small, report)
    assert report.eligible.share <= 0.6
    assert report.eligible.params_before > 0.75 * report.model.params_before  # less the table
    wanted = logits(small, ids)
    assert bool(torch.isfinite(wanted).all())
    save(small, tmp_path / "small.safetensors")
    assert torch.equal(logits(load(tmp_path / "small.safetensors", model), ids), wanted)
    dense = densify(small)
    assert [n for n, _ in dense.named_parameters()] == [n for n, _ in model.named_parameters()]
    torch.testing.assert_close(logits(dense, ids), wanted, rtol=1e-4, atol=1e-4)
