"""Adapters written and put on again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel

import tensorlrf
from tensorlrf.errors import ShapeError, UnsupportedError
from tests.hf.adapters.samples import ATTENTION, adapted, base_of, held, near, same
from tests.hf.models import MODELS, SIZES, llama, on_factors, output

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours


def test_an_adapter_comes_back_onto_the_folder(tmp_path: Path) -> None:
    on_factors(llama()).save_pretrained(tmp_path / "m")
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    model = adapted(base, task_type="CAUSAL_LM")
    expected = output(base)
    model.save_pretrained(tmp_path / "a")
    fresh = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    told = LoraConfig.from_pretrained(tmp_path / "a")
    assert told.base_model_name_or_path == str(tmp_path / "m")
    assert told.target_modules == set(ATTENTION)
    for loaded in (
        base_of(PeftModel.from_pretrained(fresh, tmp_path / "a")),
        base_of(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a")),
        hf.AutoModelForCausalLM.from_pretrained(tmp_path / "a"),
    ):
        assert torch.equal(output(loaded), expected)
    # Of a model that transformers itself has put the adapter on, it alone is written.
    loaded.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b" / "config.json").exists()
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert torch.equal(output(again), expected)


def test_an_adapter_of_the_dense_model_fits_and_the_other_way_round(tmp_path: Path) -> None:
    for name, make in (("llama", llama), ("gpt2", gpt2)):
        targets = ATTENTION if name == "llama" else ["c_attn"]
        dense = make().eval()
        small = on_factors(copy.deepcopy(dense))
        of_dense = adapted(copy.deepcopy(dense), targets)
        of_dense.save_pretrained(tmp_path / name)
        put = PeftModel.from_pretrained(small, tmp_path / name)
        wanted = {n: t for n, t in held(of_dense).items() if "lora_" in n}
        assert same({n: t for n, t in held(put).items() if "lora_" in n}, wanted)
        beside = output(small)
        put.save_pretrained(tmp_path / f"{name} 2")
        back = PeftModel.from_pretrained(dense, tmp_path / f"{name} 2")
        assert torch.equal(output(base_of(back)), output(base_of(of_dense)))
        assert near(output(put.merge_and_unload()), beside)


def gpt2() -> Any:
    made = hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    return hf.GPT2LMHeadModel(made)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_and_modules_that_are_saved_beside_the_adapter_come_back(
    bias: str, tmp_path: Path
) -> None:
    base = MODELS["bert"]()
    fresh = copy.deepcopy(base)
    more: dict[str, Any] = {"bias": bias, "modules_to_save": ["decoder"]}
    model = adapted(base, ["query"], rank_pattern={"layer.1.*query": 2}, **more)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(output(base_of(loaded)), output(base))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"hidden_size": 64}, r"is \(\d+, \d+\), where this model takes \(\d+, \d+\)"),
        ({"num_hidden_layers": 1}, r"it has '.*layers\.1\..*no such layer"),
    ],
)
def test_an_adapter_of_another_base_is_one_line(
    sizes: dict[str, int], words: str, tmp_path: Path
) -> None:
    source = on_factors(llama())
    source.save_pretrained(tmp_path / "m")
    model = adapted(hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m"))
    model.save_pretrained(tmp_path / "a")
    config = hf.LlamaConfig(**{**SIZES, **sizes}, num_key_value_heads=1)
    other = on_factors(hf.LlamaForCausalLM(config))
    before, kinds = held(other), [type(m) for m in other.modules()]
    with pytest.raises(ShapeError, match=f"another base: .*{words}") as found:
        PeftModel.from_pretrained(other, tmp_path / "a")
    assert str(tmp_path / "m") in str(found.value)
    assert same(held(other), before)
    assert [type(m) for m in other.modules()] == kinds
    mine = adapted(other)
    beside = output(other)
    with pytest.raises(ShapeError, match="adapter 'b' is for another base"):
        mine.load_adapter(tmp_path / "a", "b")
    assert torch.equal(output(other), beside)


def test_a_model_with_an_adapter_inside_is_not_written_as_one_without(tmp_path: Path) -> None:
    base = on_factors(llama())
    adapted(base)
    for write in (base.save_pretrained, lambda path: tensorlrf.save(base, path)):
        with pytest.raises(UnsupportedError, match=r"q_proj'; merge it first.*write the adapter"):
            write(tmp_path / "m")
    assert not list((tmp_path / "m").glob("*.safetensors"))
