"""Experts that a file has one by one, and the model in one tensor."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.calibration import _rerun
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.compression.scale.blocks._blockwise import Blockwise
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import UnsupportedError
from tensorlrf.files.safetensors import bytes_of
from tensorlrf.nn.packed._experts import FactoredExperts
from tests.compression.scale.blocks.networks import WORDS, contents, ids

hf: Any = importlib.import_module("transformers")

# Batches are few.
pytestmark = pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")

EXPERTS = "model.layers.1.mlp.experts"


def mixtral() -> Any:
    torch.manual_seed(0)
    config = hf.MixtralConfig(
        vocab_size=WORDS, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=3,
    )  # fmt: skip
    return hf.MixtralForCausalLM(config).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixtral") / "in"
    mixtral().save_pretrained(path)
    return path


def batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": one} for one in ids(3)]


def compressed(source: Path, out: Path, **more: Any) -> Any:
    given: dict[str, Any] = {"keep_params": 0.5, "calibration": batches(), "inputs": "prefix"}
    return tensorlrf.compress_checkpoint(source, out, threads=1, progress=False, **given | more)


def test_what_is_made_of_several_is_what_the_model_has(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, in pieces and in part."""
    files: list[str] = []
    read = StoredTensors.read

    def noted(self: StoredTensors, name: str) -> Tensor:
        files.append(name)
        return read(self, name)

    monkeypatch.setattr(StoredTensors, "read", noted)
    model = hf.MixtralForCausalLM.from_pretrained(source)
    known = Architecture.of(StoredTensors.of(source), apart=True)
    stored = StoredTensors.of(source).with_derived(known.derived)
    assert known.exact
    assert not known.left_out
    for name, wanted in model.state_dict().items():
        own = known.sources[name]
        assert torch.equal(stored.read(own), wanted)
        assert b"".join(stored.chunks(own, 100)) == bytes(bytes_of(wanted))
    for matrix in ("gate_up_proj", "down_proj"):
        whole = model.get_parameter(f"{EXPERTS}.{matrix}")
        for k, expert in enumerate(whole):
            place = known.sources[f"{EXPERTS}.{matrix}.{k}.weight"]
            assert torch.equal(stored.read(place), expert)
            # No more of them is read than has to be.
            assert all(f".{k}." in name for name in stored.derived[place].members) or k < 3
        assert torch.equal(stored.numbers(f"{EXPERTS}.{matrix}", 90, 40), whole.flatten()[90:130])
    names = [f"{EXPERTS}.gate_up_proj.1.weight", f"{EXPERTS}.gate_up_proj"]
    assert all(name in known.derived for name in names)


def test_experts_that_are_skipped_stay_packed(source: Path, tmp_path: Path) -> None:
    """A run that has ended is known again, too."""
    more: dict[str, Any] = {"skip": ["*.0.mlp.experts*", "lm_head"]}
    report = compressed(source, tmp_path / "out", **more)
    assert {n for n in report.stays if "experts" in n} == {
        f"model.layers.0.mlp.experts.{matrix}.{k}"
        for matrix in ("gate_up_proj", "down_proj")
        for k in range(3)
    }
    small, model = tensorlrf.load(tmp_path / "out"), mixtral()
    for name in ("gate_up_proj", "down_proj"):
        at = f"model.layers.0.mlp.experts.{name}"
        assert torch.equal(small.get_parameter(at), model.get_parameter(at))
    assert isinstance(small.get_submodule(EXPERTS), FactoredExperts)
    before = contents(tmp_path / "out")
    assert compressed(source, tmp_path / "out", **more).already
    assert contents(tmp_path / "out") == before


def test_experts_are_gathered_by_the_same_passes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is room for the moments of all."""
    passes = 0
    own = _rerun.call

    def counted(*given: Any) -> Any:
        nonlocal passes
        passes += 1
        return own(*given)

    monkeypatch.setattr(_rerun, "call", counted)
    found = []
    for name, room in (("together", 1 << 30), ("one by one", 0)):
        passes = 0
        monkeypatch.setattr(Blockwise, "_rooms", lambda self, limit, room=room: (room, 1e9))
        compressed(source, tmp_path / name)
        found.append(passes)
    # Of three batches in two blocks, two matrices of three experts.
    assert found[1] - found[0] == 3 * 2 * 2 * (3 - 1)
    assert contents(tmp_path / "together") == contents(tmp_path / "one by one")


def test_what_cannot_be(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(FactoredExperts, "differs", classmethod(_differs))
        with pytest.raises(
            UnsupportedError, match=r"layers\.0\.mlp\.experts is a Mix.*: it is odd"
        ):
            compressed(source, out)
    broken = tmp_path / "in"
    mixtral().save_pretrained(broken)
    file = broken / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if ".1." in name and ".w3." in name)
    for change in ({}, {lost: tensors[lost][:6]}, {lost: tensors[lost].bfloat16()}):
        held = {name: t for name, t in tensors.items() if name != lost} | change
        save_file(held, file, {"format": "pt"})
        with pytest.raises(UnsupportedError, match=r"needs the model, .* not known"):
            compressed(broken, out)


def _differs(cls: type[FactoredExperts], module: nn.Module) -> str:
    return "it is odd" if not next(module.parameters()).is_meta else ""
