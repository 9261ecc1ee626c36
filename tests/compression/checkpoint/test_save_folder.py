"""Models of transformers in folders."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensorlrf.compression.checkpoint import folder, source
from tensorlrf.compression.checkpoint._file import load, save
from tensorlrf.compression.checkpoint._inspect import inspect
from tensorlrf.compression.checkpoint._store import pack
from tensorlrf.errors import FileError, FileFormatError, MissingExtraError, UnsupportedError
from tensorlrf.factors import LowRank
from tensorlrf.nn import FactoredHFConv1D, FactoredLinear
from tests.compression.checkpoint.saved import equal, same
from tests.files.kills import content, killed, quick_disk, refused

__all__ = ["quick_disk"]

transformers: Any = importlib.import_module("transformers")

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def bert() -> nn.Module:
    model: nn.Module = transformers.BertModel(transformers.BertConfig(**SIZES))
    return model


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=40, bos_token_id=1, eos_token_id=2
    )
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


MODELS = [bert, llama, gpt2]

WRITTEN = {"config.json", "model.safetensors", "tensorlrf.safetensors", "README.md"}
GENERATES = {*WRITTEN, "generation_config.json"}


def factored(model: nn.Module) -> nn.Module:
    """All linear layers of the model, but the head, on random factors of rank 2; in eval mode."""
    g = torch.Generator().manual_seed(0)
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and "head" not in name:
            out, columns = layer.weight.shape
            make: Any = FactoredLinear
        elif type(layer).__name__ == "Conv1D":
            columns, out = layer.weight.shape  # type: ignore[union-attr, misc]
            make = FactoredHFConv1D
        else:
            continue
        left, right = torch.randn(out, 2, generator=g), torch.randn(2, columns, generator=g)
        parent, _, child = name.rpartition(".")
        new = make.from_factors(LowRank(left, right), layer)
        setattr(model.get_submodule(parent), child, new)
    return model.eval()


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        y: torch.Tensor = model(torch.arange(12).reshape(2, 6))[0]
    return y


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_loads_in_one_call(make: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model = factored(make()).to(dtype)
    save(model, tmp_path / "new")
    state = torch.random.get_rng_state()
    again: Any = load(tmp_path / "new")
    assert torch.equal(state, torch.random.get_rng_state())
    assert equal(output(again), output(model))
    assert same(again, model)
    assert not again.training
    if again.can_generate():
        assert again.lm_head.weight is again.get_input_embeddings().weight
        assert again.generation_config.eos_token_id == 2
    assert inspect(tmp_path / "new", verify=True).layers


@pytest.mark.parametrize("make", MODELS)
def test_a_file_on_an_architecture_with_values(make: Any, tmp_path: Path) -> None:
    model = factored(make())
    save(model, tmp_path / "m.safetensors")
    for architecture in (make().eval(), factored(make())):
        again = load(tmp_path / "m.safetensors", architecture)
        assert equal(output(again), output(model))


def test_a_rotary_table_on_meta_comes_from_the_file(tmp_path: Path) -> None:
    model = factored(llama())
    save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        blank = llama().eval()
    again: Any = load(tmp_path / "m.safetensors", blank)
    assert same(again, model)
    assert equal(again.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)  # type: ignore[union-attr, arg-type]


def test_other_files_of_a_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    save(factored(bert()), tmp_path)
    assert set(os.listdir(tmp_path)) == {"tokenizer.json", *WRITTEN}
    with pytest.raises(FileError, match="overwrite=True"):
        save(factored(bert()), tmp_path)
    save(factored(bert()), tmp_path, overwrite=True)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertModel"]


def test_a_generation_config_goes_with_its_model(tmp_path: Path) -> None:
    save(factored(llama()), tmp_path / "new")
    assert (tmp_path / "new" / "generation_config.json").exists()
    save(factored(bert()), tmp_path / "new", overwrite=True)
    assert set(os.listdir(tmp_path / "new")) == WRITTEN
    assert same(load(tmp_path / "new"), load(tmp_path / "new"))


@pytest.mark.usefixtures("quick_disk")
def test_a_kill_leaves_the_old_model_or_the_new(tmp_path: Path) -> None:
    one, two = factored(bert()), factored(llama())
    save(one, tmp_path / "one")
    (tmp_path / "one" / "tokenizer.json").write_text("{}")
    folder = tmp_path / "models" / "m"

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "one", folder)

    seen = []
    for _ in killed(prepare, lambda: save(two, folder, overwrite=True), every=5):
        again = load(folder)
        seen.append(same(again, two))
        assert seen[-1] or same(again, one)
        assert inspect(folder, verify=True).layers
        save(two, folder, overwrite=True)
        assert set(os.listdir(folder)) == {*GENERATES, "tokenizer.json"}
    assert set(seen) == {True, False}
    assert os.listdir(folder.parent) == ["m"]


@pytest.mark.usefixtures("quick_disk")
def test_a_full_disk_leaves_the_old_model_and_says_so(tmp_path: Path) -> None:
    one, two = factored(bert()), factored(llama())
    folder = tmp_path / "m"
    save(one, folder)
    before = content(folder)

    def prepare() -> None:
        if content(folder) != before:
            save(one, folder, overwrite=True)

    for error in refused(prepare, lambda: save(two, folder, overwrite=True), errno.ENOSPC, False):
        assert isinstance(error, FileError)
        assert "is as it was" in str(error) or "is written, but" in str(error)
        assert content(folder) == before or same(load(folder), two)
    assert same(load(folder), two)


def test_two_who_save_to_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = factored(bert()), factored(llama())

    def slow(model: nn.Module) -> Any:
        packed = pack(model)
        if model is one:
            save(two, tmp_path / "m")  # while the other is at it
        return packed

    monkeypatch.setattr(folder, "pack", slow)
    with pytest.raises(FileError, match="exists"):
        save(one, tmp_path / "m")
    assert same(load(tmp_path / "m"), two)
    assert set(os.listdir(tmp_path / "m")) == GENERATES


def test_what_is_replaced_while_it_is_loaded_is_loaded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = factored(bert()), factored(llama())
    save(one, tmp_path / "m")
    real, calls = source.blank, []

    def late(path: Path, tensors: int, dtype: Any = None) -> nn.Module:
        calls.append(path)
        if len(calls) == 1:
            save(two, path, overwrite=True)
        return real(path, tensors)

    monkeypatch.setattr(source, "blank", late)
    assert same(load(tmp_path / "m"), two)
    assert len(calls) == 2


def test_a_failure_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = factored(bert())

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(FileError, match="No space left"):
        save(model, tmp_path / "new")
    with pytest.raises(FileError, match="missing"):
        save(model, tmp_path / "nowhere" / "new")
    assert list(tmp_path.iterdir()) == []


def test_inspect_refuses_what_load_refuses(tmp_path: Path) -> None:
    save(factored(bert()), tmp_path / "new")
    assert inspect(tmp_path / "new", verify=True).verified
    config = tmp_path / "new" / "config.json"
    values = json.loads(config.read_text())
    for text in ("", "[]", "{}", json.dumps({**values, "hidden_size": 32})):
        config.write_text(text)
        inspect(tmp_path / "new")
        for read in (load, lambda path: inspect(path, verify=True)):
            with pytest.raises(FileFormatError):
                read(tmp_path / "new")
    # An architecture of one's own is given to load, and is nothing that is wrong with the folder.
    config.write_text(json.dumps({**values, "architectures": ["MyModel"]}))
    assert inspect(tmp_path / "new", verify=True).verified
    tensors = tmp_path / "new" / "tensorlrf.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FileFormatError, match="checksum"):
        inspect(tmp_path / "new", verify=True)


def test_without_transformers_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(factored(bert()), tmp_path / "new")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tensorlrf\[hf\]'"):
        load(tmp_path / "new")


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    save(factored(bert()), tmp_path / "new")
    config = tmp_path / "new" / "config.json"
    values = json.loads(config.read_text())
    for text in ("", "[]", "{}", json.dumps({**values, "architectures": None})):
        config.write_text(text)
        with pytest.raises(FileFormatError, match="architecture"):
            load(tmp_path / "new")
    config.write_text(json.dumps({**values, "architectures": ["MyModel"]}))
    with pytest.raises(UnsupportedError, match="MyModel"):
        load(tmp_path / "new")
    config.write_text(json.dumps({**values, "hidden_size": 32}))
    with pytest.raises(FileFormatError, match="embeddings"):
        load(tmp_path / "new")
    assert same(load(tmp_path / "new", bert()), load(tmp_path / "new", bert()))
