"""Bases in common in models as libraries build them: attention with grouped queries, fused experts,
and torch's encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import compress, densify, export, load, save
from tensorlrf.nn import FactoredLinear
from tensorlrf.ops import PathTable
from tests.draws import generator, seeded, seeded32

hf = pytest.importorskip("transformers")

SETTINGS: dict[str, Any] = {"allocation": "uniform", "metric": "outputs", "progress": False}


def with_one_row_space(model: nn.Module) -> nn.Module:
    """The same with all matrices of n columns near multiples of one of rank 4."""
    draws = generator(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            *rows, n = parameter.shape
            one = torch.randn(*rows, 4, generator=draws) @ seeded32(4, n, seed=n) / n**0.5
            noise = 0.05 * torch.randn(parameter.shape, generator=draws)
            parameter.data = (one + noise) / 2
    return model.eval()


def llama() -> nn.Module:
    config = hf.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return with_one_row_space(hf.LlamaForCausalLM(config))


def mixtral() -> nn.Module:
    config = hf.MixtralConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=40, num_local_experts=3, num_experts_per_tok=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    config._experts_implementation = "eager"
    return with_one_row_space(hf.MixtralForCausalLM(config))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    return with_one_row_space(nn.TransformerEncoder(layer, 2))


def tokens() -> list[dict[str, Tensor]]:
    draws = generator(3)
    return [{"input_ids": torch.randint(0, 64, (8, 24), generator=draws)} for _ in range(5)]


def held(model: nn.Module) -> Iterator[list[str]]:
    """Names of layers on each right factor that several have."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, FactoredLinear) and "right" in module._parameters:
            found.setdefault(id(module.right), []).append(name)
    return (names for names in found.values() if len(names) > 1)


def ends(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def run(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(**batch).logits if isinstance(batch, dict) else model(batch)
    return out


def check_files_and_exchange(small: nn.Module, model: nn.Module, batch: Any, path: Path) -> None:
    """A file of it, and torch's layers in its place, compute what it does."""
    expected = run(small, batch)
    assert torch.isfinite(expected).all()
    save(small, path)
    back = load(path, model)
    assert sorted(held(back)) == sorted(held(small))
    torch.testing.assert_close(run(back, batch), expected)
    for module in small.modules():
        if isinstance(module, FactoredLinear):
            module.path_table = PathTable.single("chain")
    for other in (export(small), densify(small)):
        # Rounding in float32, a few layers deep, added in another order.
        torch.testing.assert_close(run(other, batch), expected, atol=1e-4, rtol=1e-3)
    numbers = sum(p.numel() for p in export(small).parameters())
    assert numbers == sum(p.numel() for p in small.parameters())


def test_llama_shares_what_attention_and_perceptron_read(tmp_path: Path) -> None:
    model, batches = llama(), tokens()
    small, report = compress(
        model, keep_params=0.4, calibration=batches, shared="inputs", **SETTINGS
    )
    groups = list(held(small))
    assert {"q_proj", "k_proj", "v_proj"} in [ends(names) for names in groups]
    assert {"gate_proj", "up_proj"} in [ends(names) for names in groups]
    assert report.eligible.share <= 0.4
    assert report.model.params_after == sum(p.numel() for p in small.parameters())
    check_files_and_exchange(small, model, batches[0], tmp_path / "small.safetensors")


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")  # few tokens an expert
def test_fused_experts_share(tmp_path: Path) -> None:
    model, batches = mixtral(), tokens()
    small, report = compress(
        model, keep_params=0.4, calibration=batches, shared="experts", target="prefix", **SETTINGS
    )
    kept = [basis for basis in report.bases if basis.kept]
    assert kept
    assert all(len(basis.layers) == 3 for basis in kept)
    assert report.model.params_after == sum(p.numel() for p in small.parameters())
    save(small, tmp_path / "small.safetensors")
    back = load(tmp_path / "small.safetensors", model)
    torch.testing.assert_close(run(back, batches[0]), run(small, batches[0]))
    torch.testing.assert_close(
        # Rounding in float32, a few layers deep, added in another order.
        run(densify(small), batches[0]),
        run(small, batches[0]),
        atol=1e-4,  # sums of float32 in another order
        rtol=1e-3,
    )


def test_torchs_encoder_shares_in_its_packed_projection(tmp_path: Path) -> None:
    model = encoder()
    batches = [seeded(8, 12, 32, seed=k, dtype=torch.float32) for k in range(5)]
    small, report = compress(
        model, keep_params=0.4, calibration=batches, shared="inputs", **SETTINGS
    )
    assert {"q_proj", "k_proj", "v_proj"} in [ends(names) for names in held(small)]
    assert report.eligible.share <= 0.4
    save(small, tmp_path / "small.safetensors")
    back = load(tmp_path / "small.safetensors", model)
    torch.testing.assert_close(run(back, batches[0]), run(small, batches[0]))


def test_by_default_rules_and_metrics_too_it_keeps_the_budget() -> None:
    model, batches = llama(), tokens()
    small, report = compress(
        model, keep_params=0.5, calibration=batches, shared=["inputs", "layers"], progress=False
    )
    assert report.bases
    assert report.eligible.share <= 0.5
    tensorlrf.refine(small, model, batches, seconds=0.5, progress=False)
    for names in held(small):
        assert len({id(small.get_submodule(n).right) for n in names}) == 1
