"""A folder with a config.json is compressed as its model would be, and loads without one."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.checkpoint import source as sources
from tensorlrf.compression.checkpoint._reading import reading
from tensorlrf.compression.checkpoint.header import Header
from tensorlrf.compression.scale.architecture import PACKED, Architecture
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import ArgumentError
from tests.architectures.listed import ARCHITECTURES
from tests.compression.scale.test_checkpoint import contents

hf: Any = importlib.import_module("transformers")

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0), device="cpu")


def llama(*, tied: bool = True) -> Any:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            **SMALL, num_key_value_heads=1, intermediate_size=48, tie_word_embeddings=tied
        )
    )


def gpt2() -> Any:
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=64, **ends)
    )


def bert() -> Any:
    return hf.BertForMaskedLM(
        hf.BertConfig(**SMALL, intermediate_size=48, max_position_embeddings=32)
    )


def gemma() -> Any:
    """Scales what it looks up, by a buffer that no file has."""
    return hf.GemmaForCausalLM(
        hf.GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=16, intermediate_size=48)
    ).bfloat16()


def clip() -> Any:
    return hf.CLIPVisionModel(
        hf.CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            image_size=16, patch_size=8,
        )
    )  # fmt: skip


def qwen_moe() -> Any:
    """Experts in one tensor of three dimensions."""
    return hf.Qwen2MoeForCausalLM(
        hf.Qwen2MoeConfig(
            **SMALL, num_key_value_heads=1, intermediate_size=48, moe_intermediate_size=24,
            shared_expert_intermediate_size=24, num_experts=4, num_experts_per_tok=2,
        )
    )  # fmt: skip


MODELS = {"llama": llama, "gpt2": gpt2, "bert": bert, "gemma": gemma, "clip": clip}


def folder(model: Any, path: Path) -> Path:
    model.eval().save_pretrained(path)
    return path


def rewritten(source: Path, change: Any) -> None:
    """Have the weights of a folder other names or values."""
    file = source / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        if "CLIP" in type(model).__name__:
            pixels = torch.linspace(-1, 1, 768, device="cpu", dtype=torch.float32)
            out: Tensor = model(pixels.reshape(1, 3, 16, 16)).last_hidden_state
            return out
        logits: Tensor = model(input_ids=IDS).logits
        return logits


def header(path: Path) -> Header:
    with reading(path / "tensorlrf.safetensors") as file:
        return file.header


def slots(of: Header) -> set[tuple[str, tuple[tuple[str, Any], ...]]]:
    return {(slot.tensor, tuple(slot.at.items())) for slot in of.slots}


@pytest.mark.parametrize("name", MODELS)
def test_the_output_is_what_save_writes_of_the_compressed_model(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    source = folder(MODELS[name](), tmp_path / "in")
    before = contents(source)
    report = tensorlrf.compress_checkpoint(source, tmp_path / "out", keep_params=0.5, threads=1)
    assert contents(source) == before
    assert report.notes == ()
    config = json.loads((source / "config.json").read_text())
    cls = getattr(hf, config["architectures"][0])
    model = cls.from_pretrained(source, dtype="auto").eval()
    wanted, told = tensorlrf.compress(model, keep_params=0.5, progress=False)
    assert [row.name for row in report.layers] == [row.name for row in told.layers if row.factored]
    tensorlrf.save(wanted, tmp_path / "saved")
    ours, theirs = header(tmp_path / "out"), header(tmp_path / "saved")
    assert ours.tensors == theirs.tensors  # their checksums, too
    assert ours.architecture == theirs.architecture
    assert slots(ours) == slots(theirs)
    assert (ours.layers, ours.plan) == (theirs.layers, theirs.plan)
    small = tensorlrf.load(tmp_path / "out")
    assert torch.equal(outputs(small), outputs(wanted))
    again = tensorlrf.load(tmp_path / "out", model)
    assert torch.equal(outputs(again), outputs(wanted))


TAKEN_APART = {"GPT-OSS", "DBRX"}
"""Whose experts `compress` takes apart, and a run by layers leaves in one tensor."""

PUT_TOGETHER = {"DeepSeek-V3", "Mixtral"}
"""Whose experts transformers puts together while it loads."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_of_every_architecture(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    made = ARCHITECTURES[name].make().eval()
    source = folder(made, tmp_path / "in")
    report = tensorlrf.compress_checkpoint(source, tmp_path / "out", keep_params=0.5, threads=1)
    if name in PUT_TOGETHER:
        assert "of several tensors" in report.notes[0]
        return
    assert report.notes == ()
    small = tensorlrf.load(tmp_path / "out")
    if name in TAKEN_APART:
        assert any("experts" in module for module in report.stays)
        return
    model = type(made).from_pretrained(source, dtype="auto").eval()
    wanted, _ = tensorlrf.compress(model, keep_params=0.5, progress=False)
    tensorlrf.save(wanted, tmp_path / "saved")
    assert header(tmp_path / "out").tensors == header(tmp_path / "saved").tensors
    own = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    theirs = {**dict(wanted.named_parameters()), **dict(wanted.named_buffers())}
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)


def test_experts_in_one_tensor_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = qwen_moe()
    names = {name: f"{name}" for name in model.state_dict()}
    source = folder(model, tmp_path / "in")
    # As a file that has them fused already; transformers takes them apart where it saves.
    save_file(
        {name: model.state_dict()[name].clone() for name in names},
        source / "model.safetensors",
        {"format": "pt"},
    )
    report = tensorlrf.compress_checkpoint(source, tmp_path / "out", keep_params=0.5)
    assert report.notes == ()
    assert report.stays["model.layers.0.mlp.experts"] == PACKED
    small = tensorlrf.load(tmp_path / "out")
    own = dict(small.named_parameters())
    assert torch.equal(
        own["model.layers.0.mlp.experts.down_proj"], model.model.layers[0].mlp.experts.down_proj
    )


def test_experts_that_transformers_puts_together_are_layers_by_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = folder(qwen_moe(), tmp_path / "in")
    report = tensorlrf.compress_checkpoint(source, tmp_path / "out", keep_params=0.5)
    assert "by names and shapes" in report.notes[0]
    assert "of several tensors" in report.notes[0]
    assert any("experts.0" in row.name for row in report.layers)
    assert report.notes[0] in " ".join(str(report).split())


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): t for name, t in tensors.items()}


def _with_old_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def old(name: str) -> str:
        name = re.sub(r"LayerNorm\.weight", "LayerNorm.gamma", name)
        return re.sub(r"LayerNorm\.bias", "LayerNorm.beta", name)

    return {old(name): t for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("make", "change"), [(llama, _without_prefix), (bert, _with_old_names)], ids=["prefix", "old"]
)
def test_other_names_are_followed(tmp_path: Path, make: Any, change: Any) -> None:
    torch.manual_seed(0)
    source = folder(make(), tmp_path / "in")
    tensorlrf.compress_checkpoint(source, tmp_path / "whole", keep_params=0.5, threads=1)
    rewritten(source, change)
    report = tensorlrf.compress_checkpoint(source, tmp_path / "out", keep_params=0.5, threads=1)
    assert report.notes == ()
    assert header(tmp_path / "out").tensors == header(tmp_path / "whole").tensors
    for part, other in zip(
        tensorlrf.load(tmp_path / "out").parameters(),
        tensorlrf.load(tmp_path / "whole").parameters(),
        strict=True,
    ):
        assert torch.equal(part, other)


def test_tensors_that_are_tied_are_written_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = folder(llama(), tmp_path / "in")
    both = {"lm_head.weight": "model.embed_tokens.weight"}
    rewritten(source, lambda t: {**t, **{new: t[old].clone() for new, old in both.items()}})
    report = tensorlrf.compress_checkpoint(source, tmp_path / "out", keep_params=0.5)
    assert "1 tensors that the model does not need are left out" in report.notes[0]
    assert "lm_head.weight" not in header(tmp_path / "out").tensors
    small: Any = tensorlrf.load(tmp_path / "out")
    assert small.lm_head.weight is small.model.embed_tokens.weight
    # ... and where they differ the model is another one than the files
    rewritten(source, lambda t: {**t, "lm_head.weight": t["lm_head.weight"] + 1})
    other = tensorlrf.compress_checkpoint(source, tmp_path / "other", keep_params=0.5)
    assert "differ, which the model has as one" in other.notes[0]
    assert "lm_head.weight" in header(tmp_path / "other").tensors


def test_what_the_model_lacks_is_left_out_and_told(tmp_path: Path) -> None:
    source = folder(llama(tied=False), tmp_path / "in")
    more = torch.ones(3, device="cpu", dtype=torch.float32)
    rewritten(source, lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": more})
    report = tensorlrf.compress_checkpoint(source, tmp_path / "out", keep_params=0.5)
    assert "left out: model.layers.0.self_attn.rotary_emb.inv_freq" in report.notes[0]
    assert torch.isfinite(outputs(tensorlrf.load(tmp_path / "out"))).all()


def test_what_is_no_such_model_goes_by_names(tmp_path: Path) -> None:
    source = folder(llama(), tmp_path / "in")
    config = json.loads((source / "config.json").read_text())

    def notes(**change: Any) -> str:
        (source / "config.json").write_text(json.dumps({**config, **change}))
        found = Architecture.of(StoredTensors.of(source))
        assert not found.exact
        return found.notes[0]

    assert "is in none of the files" in notes(num_hidden_layers=3)
    assert "(48, 32)" in notes(intermediate_size=64)
    assert "weights are quantised" in notes(quantization_config={"bits": 4})
    assert "none of transformers" in notes(architectures=["NoSuchModel"])
    assert "far larger" in notes(num_hidden_layers=10**9)
    (source / "config.json").unlink()
    found = Architecture.of(StoredTensors.of(source))
    assert (found.exact, found.notes) == (False, ())


def test_without_transformers_it_goes_by_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder(llama(), tmp_path / "in")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    found = Architecture.of(StoredTensors.of(source))
    assert (found.exact, found.notes) == (False, ())


def test_parameters_never_have_memory(tmp_path: Path) -> None:
    source = folder(gemma(), tmp_path / "in")
    before = torch.get_default_dtype(), torch.get_rng_state()
    found = Architecture.of(StoredTensors.of(source))
    assert all(p.is_meta for p in found.model.parameters())
    assert not any(b.is_meta for b in found.model.buffers())
    assert torch.get_default_dtype() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    linear = nn.Linear(2, 2)  # and elsewhere they are what they were
    assert not linear.weight.is_meta


def test_parameters_of_the_old_constructor_have_none_either(tmp_path: Path) -> None:
    """torch.Tensor(n) asks for no default device."""
    source = folder(ARCHITECTURES["Wav2Vec2"].make(), tmp_path / "in")
    found = Architecture.of(StoredTensors.of(source))
    assert found.exact
    assert all(p.is_meta for p in found.model.parameters())
    report = tensorlrf.compress_checkpoint(source, tmp_path / "out", keep_params=0.5)
    assert any("conv_layers" in row.name for row in report.layers)
    tensorlrf.load(tmp_path / "out")


def test_buffers_that_are_too_large_stay_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorlrf.compression.scale import architecture

    source = folder(llama(), tmp_path / "in")
    monkeypatch.setattr(architecture, "ROOM", 0)
    monkeypatch.setattr(StoredTensors, "n_bytes", 0)
    report = tensorlrf.compress_checkpoint(source, tmp_path / "out", keep_params=0.5)
    assert "are not in the output: they have" in report.notes[0]
    model = llama().eval()
    assert torch.isfinite(outputs(tensorlrf.load(tmp_path / "out", model))).all()


def test_a_plan_of_the_model_is_one_of_the_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = folder(llama(), tmp_path / "in")
    model = hf.LlamaForCausalLM.from_pretrained(source).eval()
    plan = tensorlrf.plan(model, keep_params=0.4)
    report = tensorlrf.compress_checkpoint(source, tmp_path / "out", plan=plan)
    assert [row.name for row in report.layers] == [row.name for row in plan.factored]
    tables = tensorlrf.plan(model, keep_params=0.4, include=["embeddings", "heads"])
    with pytest.raises(ArgumentError, match=r"model\.embed_tokens is an embedding"):
        tensorlrf.compress_checkpoint(source, tmp_path / "other", plan=tables)
    with pytest.raises(ArgumentError, match="plan"):
        tensorlrf.compress_checkpoint(source, tmp_path / "other", plan=replace(plan, layers=()))
    assert not (tmp_path / "other").exists()


def test_one_layer_is_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(32, 32)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    tensorlrf.compress_checkpoint(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", keep_params=0.5
    )
    small: Any = tensorlrf.load(tmp_path / "b.safetensors", model)
    assert small.factors.rank == 8


def test_no_code_of_others_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(llama(), tmp_path / "in")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "mine.Llama"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "mine.py").write_text("raise SystemExit('run')")
    assert Architecture.of(StoredTensors.of(source)).exact
    assert sources.SAFE == {"trust_remote_code": False, "local_files_only": True}
