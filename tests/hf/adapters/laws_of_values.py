"""Adapters as values beside those of peft: one and the same, through its files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tensorlrf.adapters import Adapter, extract, initialize
from tests.hf.adapters.samples import adapted, base_of, drawn, near
from tests.hf.models import llama, on_factors, output

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours


PATTERNS = {
    "rank_pattern": {"v_proj": 5, "0.self_attn.q_proj": 2},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 7},
}


@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True}, {"use_dora": True}, PATTERNS], ids=" ".join
)
def test_what_peft_has_written(more: Any, tmp_path: Path) -> None:
    dense = llama().eval()
    model = adapted(copy.deepcopy(dense), **more)
    model.save_pretrained(tmp_path / "a")
    merged = Adapter.load(tmp_path / "a").merged_into(dense)
    assert near(output(merged), output(base_of(model)))


def test_what_peft_reads(tmp_path: Path) -> None:
    dense = llama().eval()
    tuned = adapted(copy.deepcopy(dense), ["q_proj", "down_proj"]).merge_and_unload()
    own = extract(dense, tuned, error=1e-5)
    assert set(own.ranks.values()) == {3}
    own.plus(extract(dense, tuned, 1).times(0.5)).save(tmp_path / "a")
    put = PeftModel.from_pretrained(copy.deepcopy(dense), tmp_path / "a").eval()
    assert near(output(base_of(put)), output(Adapter.load(tmp_path / "a").merged_into(dense)))
    # and on factors
    small = on_factors(copy.deepcopy(dense)).eval()
    beside = PeftModel.from_pretrained(copy.deepcopy(small), tmp_path / "a").eval()
    assert near(output(base_of(beside)), output(Adapter.load(tmp_path / "a").merged_into(small)))


def test_ranks_of_layers_whose_names_end_alike(tmp_path: Path) -> None:
    """peft takes the first key of rank_pattern that is the end of a name."""
    names = ["fc", "a.fc", "b.a.fc"]
    model = torch.nn.ModuleDict({"fc": torch.nn.Linear(6, 6), "a": torch.nn.ModuleDict({
        "fc": torch.nn.Linear(6, 6)}), "b": torch.nn.ModuleDict({"a": torch.nn.ModuleDict({
            "fc": torch.nn.Linear(6, 6)})})})  # fmt: skip
    ranks = dict(zip(names, (3, 2, 2), strict=True))
    put = drawn(get_peft_model(copy.deepcopy(model), LoraConfig(
        r=2, lora_alpha=2, target_modules=names, rank_pattern={"^fc": 3}, alpha_pattern={"^fc": 3},
    )))  # fmt: skip
    merged = put.merge_and_unload()
    own = extract(model, merged, error=1e-5)
    assert set(own.ranks) == set(names)
    own = Adapter({n: t.leading(min(t.rank, ranks[n])) for n, t in own.terms.items()})
    own.save(tmp_path / "a")
    again = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "a").merge_and_unload()
    for name in names:
        expected = model.get_submodule(name).weight + own.terms[name].to_dense()
        assert torch.allclose(again.get_submodule(name).weight, expected, atol=1e-5)


def test_a_start_is_the_model(tmp_path: Path) -> None:
    dense = llama().eval()
    adapter, rest = initialize(dense, "pissa", 4, targets=["*.q_proj", "*.v_proj"])
    adapter.save(tmp_path / "a")
    put = PeftModel.from_pretrained(rest, tmp_path / "a", is_trainable=True).eval()
    assert near(output(base_of(put)), output(dense))
    assert sum(p.requires_grad for p in put.parameters()) == 2 * len(adapter.terms)
