"""Models on factors, saved and loaded by transformers and by tensorlrf: the same outputs, bit for
bit, and the same folder, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import tensorlrf
import tensorlrf.hf
from tensorlrf.nn import FactoredEmbedding, FactoredLayer
from tests.hf.models import IDS, MODELS, llama, on_factors, output


@pytest.fixture(autouse=True)
def quiet() -> None:
    hf.utils.logging.disable_progress_bar()


def factored_in(model: Any) -> list[str]:
    return [name for name, one in model.named_modules() if isinstance(one, FactoredLayer)]


@pytest.mark.parametrize("name", MODELS)
def test_the_same_outputs_whoever_saves_and_loads(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    expected, kind = output(model), type(model)
    one, two, three = (tmp_path / n for n in ("save", "pretrained", "again"))
    tensorlrf.save(model, one)
    model.save_pretrained(two, max_shard_size="8KB")
    assert len(list(two.glob("model-*.safetensors"))) > 1
    for folder in (one, two):
        loaded, info = kind.from_pretrained(folder, output_loading_info=True)
        assert {key: len(found) for key, found in info.items() if found} == {}
        assert factored_in(loaded) == factored_in(model)
        assert not any(p.is_meta for p in loaded.parameters())
        assert torch.equal(output(loaded), expected)
        assert torch.equal(output(tensorlrf.load(folder)), expected)
    loaded.save_pretrained(three)
    assert torch.equal(output(kind.from_pretrained(three)), expected)
    # One and the same folder: configuration, names and values of tensors.
    assert (one / "config.json").read_text() == (three / "config.json").read_text()
    files = [load_file(folder / "model.safetensors") for folder in (one, three)]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(t, files[1][key]) for key, t in files[0].items())


def test_bodies_heads_and_dtypes(tmp_path: Path) -> None:
    model = on_factors(llama())
    model.save_pretrained(tmp_path / "m")
    body = hf.AutoModel.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(body(IDS)[0], model.model(IDS)[0])
    kind = hf.AutoModelForSequenceClassification
    classifier, info = kind.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert set(info["missing_keys"]) == {"score.weight"}  # new, and transformers says so
    assert len(factored_in(classifier)) == len(factored_in(model))
    body.save_pretrained(tmp_path / "body")
    whole, info = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "body", output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"lm_head.weight"}
    assert torch.equal(whole.model(IDS)[0], body(IDS)[0])
    half = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(tmp_path / "half")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert again.dtype == torch.bfloat16
    assert torch.equal(output(again), output(half))
    assert torch.equal(output(half.float()), output(again.float()))


def test_a_model_of_a_table_and_its_head_stays_one(tmp_path: Path) -> None:
    MODELS["llama with its table"]().save_pretrained(tmp_path / "m")
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    table = model.get_input_embeddings()
    assert isinstance(table, FactoredEmbedding)
    assert model.lm_head.left is table.left
    model.tie_weights()
    assert model.lm_head.right is table.right
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})


def test_generate_and_pipeline_as_before(tmp_path: Path) -> None:
    model = on_factors(llama())
    tensorlrf.save(model, tmp_path / "m")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    asked = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    tokens = [one.generate(IDS, attention_mask=mask, **asked) for one in (model, again)]
    assert torch.equal(*tokens)
    assert again.generation_config.eos_token_id == 2


def test_dense_and_stock_models_of_it_are_those_of_transformers(tmp_path: Path) -> None:
    on_factors(llama()).save_pretrained(tmp_path / "m")
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    dense = tensorlrf.densify(model)
    assert not hasattr(dense, "hf_quantizer")
    dense.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(output(again), output(dense))
    assert model.hf_quantizer.is_trainable
    # A dense model over a folder of ours: nothing of ours is left that would be read.
    tensorlrf.save(model, tmp_path / "m", overwrite=True)
    dense.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m" / "tensorlrf.safetensors").exists()
    assert torch.equal(
        output(hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")), output(dense)
    )


def test_the_card_is_written_once(tmp_path: Path) -> None:
    model = on_factors(llama())
    for save in (tensorlrf.save, lambda one, folder: one.save_pretrained(folder)):
        folder = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        save(model, folder)
        card = folder / "README.md"
        text = card.read_text()
        assert "import tensorlrf.hf" in text
        assert "AutoModelForCausalLM.from_pretrained" in text
        assert "`vllm serve FOLDER`" in text
        assert "| `model.layers.*.self_attn.q_proj` (2) | lowrank | 2 to 3 |" in text
        dense = sum(p.numel() for p in tensorlrf.densify(model).parameters())
        assert f"| {dense:,} | {sum(p.numel() for p in model.parameters()):,} (" in text
        card.write_text("mine")
        model.save_pretrained(folder)
        tensorlrf.save(model, folder, overwrite=True)
        assert card.read_text() == "mine"


def test_a_second_import_does_nothing() -> None:
    before = hf.PreTrainedModel.save_pretrained
    from tensorlrf.hf._register import register

    register()
    assert hf.PreTrainedModel.save_pretrained is before
