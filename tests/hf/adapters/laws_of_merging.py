"""Adapters merged into factored layers, and taken out of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear
from torch import Tensor

from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn.tables.ties import tie
from tests.hf.adapters.samples import ATTENTION, adapted, base_of, drawn, factored, held, near, same
from tests.hf.models import IDS, MODELS, llama, on_factors, output, qwen2, with_table

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours

ALL = [name for name in MODELS if name not in ("every format", "qwen2")]


@pytest.mark.parametrize("name", ALL)
def test_merged_unmerged_and_saved(name: str, tmp_path: Path) -> None:
    base = MODELS[name]()
    plain, before, targets = output(base), held(base), dict(factored(base))
    targets = {n: m.factors.rank for n, m in targets.items() if m is not head_of(base)}
    model = adapted(base, "all-linear")
    beside = output(base_of(model))
    assert not near(plain, beside)
    model.merge_adapter()
    assert near(output(base_of(model)), beside)
    model.unmerge_adapter()
    assert torch.equal(output(base_of(model)), beside)
    assert same(held(model.unload()), before)
    assert torch.equal(output(base), plain)
    merged = adapted(base, "all-linear").merge_and_unload()
    ranks = {n: m.factors.rank for n, m in factored(merged) if n in targets}
    assert ranks == {n: rank + 3 for n, rank in targets.items()}
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    assert torch.equal(output(again), output(merged))


def head_of(model: Any) -> Any:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def test_layers_left_dense_get_what_peft_has_for_them() -> None:
    base = qwen2()
    model = adapted(base, "all-linear")
    kinds = {type(m) for m in base.modules() if isinstance(m, Linear)}
    assert Linear in kinds
    assert len(kinds) == 2
    beside = output(base)
    model.merge_adapter()
    assert near(output(base), beside)


def test_adapters_on_each_other_and_what_is_asked_of_layers_alone() -> None:
    base = on_factors(llama())
    before = held(base)
    model = adapted(base)
    model.add_adapter("b", LoraConfig(r=2, target_modules=["v_proj", "o_proj"], use_rslora=True))
    drawn(model, "b")
    one = output(base)
    model.set_adapter("b")
    two = output(base)
    model.merge_adapter()
    assert near(output(base), two)
    model.unmerge_adapter()
    assert torch.equal(output(base), two)
    model.base_model.set_adapter(["default", "b"])
    both = output(base)
    model.merge_adapter(["b"])
    model.merge_adapter(["default"], safe_merge=True)
    assert near(output(base), both)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        each.unmerge_adapter()
        each.set_adapter("default")
        assert torch.equal(output(base_of(each)), one)
        with each.disable_adapter():
            assert near(output(base_of(each)), output(on_top(before)))
    ids = IDS[:2]
    with torch.no_grad():
        mixed = model(input_ids=ids, adapter_names=["b", "__base__"]).logits[0]
    assert near(mixed.flatten(), two.reshape(2, -1)[0])
    model.delete_adapter("b")
    assert same(held(model.unload()), before)


def on_top(state: dict[str, Tensor]) -> Any:
    torch.manual_seed(0)
    model = on_factors(llama())
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("way", ["cat", "svd", "linear"])
def test_weighted_sums_of_adapters(way: str) -> None:
    base = on_factors(llama())
    plain = output(base)
    model = adapted(base)
    model.add_adapter("b", LoraConfig(r=3, lora_alpha=6, target_modules=ATTENTION))
    drawn(model, "b")
    model.add_weighted_adapter(["default", "b"], [0.5, 2.0], "sum", combination_type=way)
    model.set_adapter("sum")
    beside = output(base)
    assert not near(plain, beside)
    if way == "cat":  # which is exact
        _, layer = next(n for n in base.named_modules() if n[0].endswith("0.self_attn.q_proj"))
        wanted = 0.5 * layer.get_delta_weight("default") + 2 * layer.get_delta_weight("b")
        assert near(layer.get_delta_weight("sum"), wanted)
    assert near(output(model.merge_and_unload()), beside)


def test_half_precision_and_biases() -> None:
    base = qwen2().to(torch.bfloat16)
    before = held(base)
    model = adapted(base, bias="lora_only", lora_bias=False)
    own = {p.dtype for n, p in model.named_parameters() if "lora_" in n}
    assert own == {torch.float32}
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {
        "weight", "bias",
    }  # fmt: skip
    beside = output(base).float()
    model.merge_adapter()
    assert float((output(base).float() - beside).abs().max()) < 0.05 * float(beside.abs().max())
    model.unmerge_adapter()
    some = {n: t for n, t in before.items() if n.endswith((".left", ".right"))}
    after = {n.replace(".base_layer", ""): t for n, t in held(base).items()}
    assert same({n: after[n] for n in some}, some)


def test_a_bias_of_an_adapter_is_merged_where_the_layer_has_one() -> None:
    base = MODELS["bert"]()
    before = held(base)
    model = adapted(base, ["query"], lora_bias=True)
    beside = output(base)
    model.merge_adapter()
    assert near(output(base), beside)
    model.unmerge_adapter()
    assert same(held(model.unload()), before)
    base = on_factors(llama())
    model = adapted(base, lora_bias=True)
    before = held(base)
    with pytest.raises(UnsupportedError, match=r"q_proj' has no bias"):
        model.merge_adapter()
    assert same(held(base), before)


def test_a_right_factor_in_common_is_one_again() -> None:
    base = on_factors(llama())
    attention = base.model.layers[0].self_attn
    attention.v_proj = copy.deepcopy(attention.k_proj)
    tie(attention.v_proj, attention.k_proj, ("right",))
    model = adapted(base)
    beside = output(base)
    model.merge_adapter()
    assert near(output(base), beside)
    model.unmerge_adapter()
    attention = model.unload().model.layers[0].self_attn
    assert attention.v_proj.right is attention.k_proj.right


def test_a_head_on_the_table_gets_factors_of_its_own(tmp_path: Path) -> None:
    model = adapted(with_table(llama(tie_word_embeddings=True)), ["lm_head"])
    beside = output(base_of(model))
    merged = model.merge_and_unload()
    assert near(output(merged), beside)
    merged.save_pretrained(tmp_path)
    assert torch.equal(output(hf.AutoModelForCausalLM.from_pretrained(tmp_path)), output(merged))


def test_formats_that_take_no_terms_run_and_are_not_merged(tmp_path: Path) -> None:
    base = MODELS["every format"]()
    model = adapted(base, "all-linear")
    before, beside = held(base), output(base)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UnsupportedError, match=r"'encoder.*' is of format '.*keep the adapter"):
            merge()
    assert same(held(base), before)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model.unload(), tmp_path)
    assert torch.equal(output(base_of(loaded)), beside)
    few = adapted(loaded.unload(), r"encoder\.layer\.0\.attention\.self\.query")
    beside = output(base_of(few))
    assert near(output(few.merge_and_unload()), beside)


def test_numbers_that_are_none_are_seen() -> None:
    model = adapted(on_factors(llama()))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(float("nan"))
    with pytest.raises(ArgumentError, match="NaN"):
        model.merge_adapter(safe_merge=True)


def test_layers_on_disk(tmp_path: Path) -> None:
    base = on_factors(llama())
    base.save_pretrained(tmp_path / "m")
    adapted(base).save_pretrained(tmp_path / "a")
    beside = output(base)
    whole = ("model.embed_tokens", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    places = {**dict.fromkeys(whole, "cpu"), "model.layers.0": "disk"}
    away = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", device_map=places, offload_folder=tmp_path / "off"
    )
    inside = {f"base_model.model.{name}": place for name, place in places.items()}
    model = PeftModel.from_pretrained(
        away, tmp_path / "a", device_map=inside, offload_dir=tmp_path / "off too"
    ).eval()
    assert base_of(model).model.layers[0].self_attn.q_proj.base_layer.left.is_meta
    assert torch.equal(output(base_of(model)), beside)
    model.merge_adapter()
    assert near(output(base_of(model)), beside)
    model.unmerge_adapter()
    assert torch.equal(output(base_of(model)), beside)
