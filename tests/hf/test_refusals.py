"""What cannot be loaded right is refused in one line, and no weights are drawn in its place."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from safetensors.torch import load_file, save_file

import tensorlrf
import tensorlrf.hf
from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.checkpoint.pretrained.card import CARD
from tensorlrf.errors import FileFormatError, TensorlrfError, TensorlrfWarning, UnsupportedError
from tensorlrf.hf import _register
from tests.hf.models import llama, on_factors, output
from tests.processes import python


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As save_pretrained writes it, in shards."""
    hf.utils.logging.disable_progress_bar()
    on_factors(llama()).save_pretrained(tmp_path / "m", max_shard_size="8KB")
    return tmp_path / "m"


def pretrained(folder: Path) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(folder)


def refused(folder: Path, text: str) -> None:
    for load in (pretrained, tensorlrf.load):
        with pytest.raises(TensorlrfError, match=text) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = folder / "config.json"
    values = json.loads(config.read_text())
    change(values["quantization_config"])
    config.write_text(json.dumps(values))


FIRST = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda q: q.update(format_version=2), "version 2.*reads up to 1, a newer one"),
        (lambda q: q.update(format_version=0), "version 0.*write the folder anew"),
        (lambda q: q["layers"][FIRST].update(rank=5), f"{re.escape(FIRST)}.* has rank 5 .* rank 2"),
        (
            lambda q: q["layers"][FIRST].update(rank=3, parts={"left": [32, 3], "right": [3, 32]}),
            r"q_proj.left.* is \(32, 2\).*\(32, 3\)",
        ),
        (lambda q: q["layers"][FIRST].update(format="braid"), "braid"),
        (lambda q: q["layers"][FIRST].pop("parts"), "damaged header"),
        (lambda q: q["layers"].update({"nowhere": q["layers"].pop(FIRST)}), "nowhere"),
        (lambda q: q.update(tied={f"{FIRST}.left": "nowhere.left"}), "nowhere.left"),
        (lambda q: q.update(more=1), "damaged header"),
    ],
)
def test_a_configuration_that_is_not_of_the_tensors(
    change: Callable[[dict[str, Any]], None], text: str, folder: Path
) -> None:
    edited(folder, change)
    refused(folder, text)


def test_missing_shards_and_tensors(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shard = folder / index[f"{FIRST}.left"]
    whole = load_file(shard)
    dense = folder / index["model.norm.weight"]
    kept = load_file(dense)
    save_file({k: t for k, t in whole.items() if k != f"{FIRST}.left"}, shard, {"format": "pt"})
    refused(folder, re.escape(f"{FIRST}.left"))
    save_file(whole, shard, {"format": "pt"})
    save_file({k: t for k, t in kept.items() if "norm" not in k}, dense, {"format": "pt"})
    with pytest.raises(FileFormatError, match="missing, 'model"):
        pretrained(folder)
    save_file(kept, dense, {"format": "pt"})
    assert tensorlrf.load(folder).config.vocab_size == 64
    shard.unlink()
    refused(folder, f"{shard.name}' ?.*missing")


def test_a_header_of_ours_and_a_configuration_of_others(tmp_path: Path) -> None:
    tensorlrf.save(on_factors(llama()), tmp_path / "m")
    edited(tmp_path / "m", lambda q: q["layers"].pop(FIRST))
    with pytest.raises(FileFormatError, match=f"not of the layers in {TENSORS}"):
        tensorlrf.load(tmp_path / "m")
    with pytest.raises(FileFormatError, match=rf"{FIRST}.weight.* factors, and .* tells of none"):
        pretrained(tmp_path / "m")


def test_a_folder_of_before(tmp_path: Path) -> None:
    """It had all in one file, of which transformers knows nothing."""
    model = on_factors(llama())
    tensorlrf.save(model, tmp_path / "m.safetensors")
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "m.safetensors").rename(folder / TENSORS)
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert output(tensorlrf.load(folder)).equal(output(model))
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        pretrained(folder)


def test_a_model_that_is_quantised_by_others(tmp_path: Path) -> None:
    model = on_factors(llama())
    model.hf_quantizer = type("Other", (), {"quantization_config": type("C", (), {})})()
    with pytest.raises(UnsupportedError, match="before it is quantised"):
        model.save_pretrained(tmp_path / "m")


PLAIN = """
import logging, sys, torch, transformers, tensorlrf
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
transformers.utils.logging.get_logger("transformers").addHandler(handler)
assert "tensorlrf.hf" not in sys.modules
for kind in (AutoModel, AutoModelForCausalLM, LlamaForCausalLM):
    said.clear()
    try:
        kind.from_pretrained(sys.argv[1])
    except RuntimeError as error:
        assert "ignore_mismatched_sizes" in str(error), error
    else:
        raise AssertionError("it has weights that nobody wrote")
    assert any("Unknown quantization type, got tensorlrf" in one for one in said), said
    assert any("q_proj.weight" in one and "MISMATCH" in one for one in said), said
model = tensorlrf.load(sys.argv[1])
try:
    model.save_pretrained(sys.argv[2])
except ValueError as error:
    assert "`import tensorlrf.hf`" in str(error), error
else:
    raise AssertionError("it was written as if transformers knew factors")
assert "tensorlrf.hf" not in sys.modules
import tensorlrf.hf
model.save_pretrained(sys.argv[2])
again = AutoModelForCausalLM.from_pretrained(sys.argv[2])
ids = torch.tensor([[3, 4, 5]])
assert torch.equal(again(ids)[0], model(ids)[0])
print("refused")
"""


def test_transformers_without_the_import(folder: Path, tmp_path: Path) -> None:
    """In a process of its own. The names of dense weights have tensors of no elements, which do not
    fit any model of its own."""
    run = python("-c", PLAIN, folder, tmp_path / "again")
    assert run.stdout.strip() == "refused", run.stderr
    assert (tmp_path / "again" / CARD).exists()


def test_a_peft_that_cannot_be_imported_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_register, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.warns(TensorlrfWarning, match=r"adapters.* need peft 0\.21 or newer"):
        _register.register()
