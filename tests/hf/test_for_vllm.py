"""Models as vLLM takes them: `export(model, for_="vllm")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import tensorlrf
import tensorlrf.hf
from tensorlrf.compression.checkpoint.pretrained.standard import told_in
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn import FactoredEmbedding, FactoredLayer, FactoredLinear, factorize
from tensorlrf.vllm._told import served
from tests.hf.models import IDS, MODELS, llama, on_factors, output, with_table
from tests.ops.samples import FORMATS, MATRIX_FORMATS

TOLERANCE = 1e-4  # logits in float32 after two blocks, sums in another order
"""Of outputs of float32, the largest about 1, when matrices are taken for their factors."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    hf.utils.logging.disable_progress_bar()


def test_every_format_becomes_one_that_is_served(tmp_path: Path) -> None:
    formats = (*FORMATS, *MATRIX_FORMATS)
    model = on_factors(llama(), formats=formats)
    before = output(model)
    found = tensorlrf.export(model, for_="vllm")
    assert torch.allclose(output(found), before, rtol=0, atol=TOLERANCE)
    assert torch.equal(output(model), before)
    layers = {name: one for name, one in found.named_modules() if isinstance(one, FactoredLayer)}
    given: dict[str, Any] = dict(model.named_modules())
    for name, one in layers.items():
        assert type(one) is FactoredLinear
        assert one.factors.format == "lowrank"
        whole = given[name].factors
        if whole.format == "lowrank":
            assert torch.equal(one.factors.to_dense(), whole.to_dense())
            assert one.recipe == given[name].recipe
        assert one.factors.n_params < whole.to_dense().numel()
    dense = [name for name, one in given.items() if isinstance(one, FactoredLayer)]
    kinds = {type(found.get_submodule(name)) for name in dense if name not in layers}
    assert kinds <= {nn.Linear}
    found.save_pretrained(tmp_path / "m")
    told = told_in(tmp_path / "m")
    assert told is not None
    assert set(served(told.to_json(), "config.json")) == set(layers)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(output(again), output(found))
    assert set(served(tensorlrf.export(again, for_="vllm") and told.to_json(), "")) == set(layers)


def test_a_rank_that_a_matrix_has_is_found() -> None:
    """A Tucker of a matrix is of low rank, one with blocks along its diagonal of full rank."""
    model: Any = llama().eval()
    mlp = model.model.layers[0].mlp
    mlp.up_proj = factorize(mlp.up_proj, "tucker", (5, 4))
    mlp.gate_proj = factorize(mlp.gate_proj, "monarch", 0.5)
    found: Any = tensorlrf.export(model, for_="vllm").model.layers[0].mlp
    assert found.up_proj.factors.rank == 4
    assert type(found.gate_proj) is nn.Linear
    expected = mlp.up_proj.factors.to_dense()  # in float32
    assert torch.allclose(found.up_proj.factors.to_dense(), expected, rtol=0, atol=1e-6)


def test_tables_and_heads_stay_one() -> None:
    model = with_table(llama(tie_word_embeddings=True))
    found: Any = tensorlrf.export(model, for_="vllm")
    assert type(found.model.embed_tokens) is FactoredEmbedding
    assert found.lm_head.left is found.model.embed_tokens.left
    assert found.lm_head.left is not model.get_submodule("lm_head").left
    assert torch.equal(output(found), output(model))


def test_without_the_import_it_is_still_refused_to_be_written_wrong(tmp_path: Path) -> None:
    """`save` writes it, and the mark that `save_pretrained` asks for is there."""
    found: Any = tensorlrf.export(on_factors(llama()), for_="vllm")
    tensorlrf.save(found, tmp_path / "m")
    assert torch.equal(output(tensorlrf.load(tmp_path / "m")), output(found))
    assert found.hf_quantizer is not None


def modular(**more: Any) -> tuple[Any, Any]:
    """A Llama with smaller perceptrons and heads."""
    torch.manual_seed(0)
    model = llama().eval()
    batches = [{"input_ids": IDS + k} for k in range(16)]
    kept = {"method": "modular", "keep_params": 0.6, "calibration": batches, **more}
    small, _ = tensorlrf.compress(model, **kept)
    return model, small


def test_modular_models_of_one_size_are_stock_ones(tmp_path: Path) -> None:
    """Whoever knows the architecture loads them, without anything of ours."""
    model, small = modular(allocation="uniform", target="independent")
    found: Any = tensorlrf.export(small, for_="vllm")
    assert found.config.intermediate_size < model.config.intermediate_size == 48
    assert small.config.intermediate_size == 48
    assert not any(isinstance(one, FactoredLayer) for one in found.modules())
    assert torch.allclose(output(found), output(small), rtol=0, atol=TOLERANCE)
    found.save_pretrained(tmp_path / "m")
    assert "tensorlrf" not in (tmp_path / "m" / "config.json").read_text()
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(output(again), output(found))


def test_what_vllm_cannot_be_given_is_named() -> None:
    small: Any = llama()
    mlp = small.model.layers[1].mlp
    for name in ("gate_proj", "up_proj"):
        old = getattr(mlp, name)
        new = nn.Linear(old.in_features, 16, bias=False)
        setattr(mlp, name, new)
    mlp.down_proj = nn.Linear(16, mlp.down_proj.out_features, bias=False)
    biased: Any = llama()
    affine = nn.Linear(48, 32, dtype=torch.float32, device="cpu")
    biased.model.layers[0].mlp.down_proj = factorize(affine, "svd", 3)
    for model, text in (
        (biased, r"no 'model.layers.0.mlp.down_proj.bias'.*affine=False"),
        (small, r"'model.layers.1.mlp.gate_proj.weight' is \(16, 32\) and \(48, 32\) by its"),
        (nn.Linear(3, 2), "model is a Linear; vLLM serves models of transformers"),
    ):
        with pytest.raises(UnsupportedError, match=text) as caught:
            tensorlrf.export(model, for_="vllm")
        assert "\n" not in str(caught.value)
    plain: Any = MODELS["llama"]()
    with pytest.raises(ArgumentError, match="for_='tgi' is unknown; choose one of vllm"):
        tensorlrf.export(plain, for_="tgi")  # type: ignore[arg-type]  # a word that it has not
    with pytest.raises(ArgumentError, match="rows=3 freezes a path"):
        tensorlrf.export(plain, rows=3, for_="vllm")
