"""What config.json tells vLLM of a folder, and folders that are refused before they are read."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensorlrf.compression.checkpoint._store import pack
from tensorlrf.compression.checkpoint.folder import INDEX, TENSORS, WEIGHTS
from tensorlrf.compression.checkpoint.header import KEY
from tensorlrf.compression.checkpoint.pretrained.quantization import Quantization, guard
from tensorlrf.errors import FileFormatError, TensorlrfError, UnsupportedError
from tensorlrf.files.safetensors import write
from tensorlrf.nn import factorize
from tensorlrf.vllm._folder import check_folder
from tensorlrf.vllm._told import check_bias, parts_of, served, table_of
from tests.processes import ROOT


class Block(nn.Module):
    """Layers by the names of a language model, those of queries and keys on one basis."""

    def __init__(self) -> None:
        super().__init__()
        linear = nn.Linear(6, 8, bias=False, dtype=torch.float32, device="cpu")
        self.embed = factorize(nn.Embedding(9, 6, dtype=torch.float32, device="cpu"), "svd", 4)
        self.q_proj: Any = factorize(linear, "svd", 2)
        self.k_proj: Any = factorize(linear, "svd", 2)
        self.k_proj.right = self.q_proj.right
        self.v_proj = linear


def block() -> tuple[Block, dict[str, Any]]:
    model = Block()
    return model, Quantization.of_model(model).to_json()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Its tensors, as a model of transformers has them."""
    model, _ = block()
    told = Quantization.of_model(model)
    tensors = {k: t for k, t in model.state_dict().items() if k not in told.tied}
    write(tmp_path / WEIGHTS, tensors | {name: guard() for name in told.guards}, {})
    return tmp_path


def refused(error: type[TensorlrfError], text: str, call: Callable[..., Any], *given: Any) -> None:
    with pytest.raises(error, match=text) as caught:
        call(*given)
    assert "\n" not in str(caught.value)


def test_what_is_told_of_each_layer() -> None:
    layers = served(block()[1], "config.json")
    assert set(layers) == {"embed", "q_proj", "k_proj"}
    q, k, table = layers["q_proj"], layers["k_proj"], layers["embed"]
    assert (q.rows, q.rank, q.columns, q.bias) == (8, 2, 6, False)
    assert k.right == q.right == "q_proj.right"  # which is there once
    assert k.left == "k_proj.left"
    assert (table.linear, table.table, q.linear, q.table) == (False, True, True, False)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda q: q.update(format_version=2), FileFormatError, "version 2.*a newer one"),
        (lambda q: q.update(format_version=0), FileFormatError, "version 0.*write the folder anew"),
        (lambda q: q["layers"]["q_proj"].update(rank=3), FileFormatError, "q_proj.*rank 3.*rank 2"),
        (lambda q: q.update(folded=["norm"]), UnsupportedError, "'norm' has no normalisation"),
        (lambda q: q.update(tied={"a.bias": "b.bias"}), UnsupportedError, "'a.bias' is one with"),
        (
            lambda q: q["layers"]["embed"].update(type="FactoredEmbeddingBag"),
            UnsupportedError,
            "'embed' is a FactoredEmbeddingBag of 9 x 6.*for_='vllm'",
        ),
    ],
)
def test_what_vllm_does_not_serve(
    change: Callable[[Any], None], error: type[TensorlrfError], text: str
) -> None:
    _, values = block()
    change(values)
    refused(error, text, served, values, "config.json")


def test_other_formats_are_named() -> None:
    model: Any = Block()
    for name in ("q_proj", "v_proj"):
        setattr(model, name, factorize(model.v_proj, "kron", 1))
    refused(
        UnsupportedError,
        "'q_proj' is of format 'kron', .* 1 more .*write the folder anew from tensorlrf.export",
        served,
        Quantization.of_model(model).to_json(),
        "config.json",
    )


def test_a_whole_folder_has_what_it_tells_of(folder: Path) -> None:
    layers = served(block()[1], "config.json")
    assert check_folder(folder, layers) == frozenset()
    own = {"rotary.inv_freq": torch.ones(2, dtype=torch.float32, device="cpu")}
    write(folder / TENSORS, own, {})
    assert check_folder(folder, layers) == {"rotary.inv_freq"}


def test_folders_that_are_not_whole(folder: Path) -> None:
    _, values = block()
    values["layers"]["k_proj"].update(rank=3, parts={"left": [8, 3], "right": [3, 6]})
    refused(FileFormatError, r"k_proj.left' is \(8, 2\) in its file, and \(8, 3\)",
            check_folder, folder, served(values, "config.json"))  # fmt: skip
    _, values = block()
    del values["layers"]["k_proj"]
    refused(FileFormatError, "k_proj.weight' stands there for factors",
            check_folder, folder, served(values, "config.json"))  # fmt: skip
    layers = served(block()[1], "config.json")
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    names = {"q_proj.left": "model-1.safetensors", "v_proj.weight": "model-2.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    refused(
        FileFormatError, "'model-2.safetensors', which is missing", check_folder, folder, layers
    )
    write(folder / "model-2.safetensors", {}, {})
    names["norm.weight"] = names["norm.bias"] = "model-2.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    refused(FileFormatError, "'norm.bias' and 1 more are missing", check_folder, folder, layers)
    for name in ("v_proj.weight", "norm.weight", "norm.bias"):
        del names[name]
    write(folder / "model-1.safetensors", {"v_proj.weight": guard()}, {})
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    refused(FileFormatError, "embed.left' of a factored layer is missing",
            check_folder, folder, layers)  # fmt: skip


def test_a_tensor_that_our_header_tells_of(tmp_path: Path) -> None:
    """`tensorlrf.save` lists all of them, dense ones too."""
    tensors = {"v_proj.weight": torch.ones(2, dtype=torch.float32, device="cpu")}
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(tensors["v_proj.weight"]))
    packed, header = pack(model)
    assert set(packed) == {"w"}
    header = dataclasses.replace(header, shards={"w": WEIGHTS})
    write(tmp_path / TENSORS, {}, {KEY: header.to_text()})
    write(tmp_path / WEIGHTS, packed, {})
    assert check_folder(tmp_path, {}) == frozenset()
    write(tmp_path / WEIGHTS, tensors, {})
    refused(FileFormatError, "the tensor 'w' is missing", check_folder, tmp_path, {})


def test_parts_by_the_names_of_vllm() -> None:
    layers = served(block()[1], "config.json")
    above = {f"model.{name}": one for name, one in layers.items()}
    packed = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    found = parts_of("model.qkv_proj", above, packed)
    assert [name for name, _ in found] == ["model.q_proj", "model.k_proj", "model.v_proj"]
    assert [one is not None for _, one in found] == [True, True, False]
    assert parts_of("q_proj", layers, {}) == [("q_proj", layers["q_proj"])]
    whole = {"qkv_proj": layers["q_proj"]}
    assert parts_of("qkv_proj", whole, packed) == [("qkv_proj", layers["q_proj"])]
    assert parts_of("embed", layers, {}) == [("embed", None)]  # it is no linear layer


def test_tables_by_name_or_by_shape() -> None:
    layers = served(block()[1], "config.json")
    assert table_of("embed", (9, 6), layers, head=False) == "embed"
    assert table_of("other", (9, 6), layers, head=False) is None
    assert table_of("", (9, 6), layers, head=False) == "embed"
    assert table_of("", (8, 6), layers, head=False) is None  # linear layers are none
    assert table_of("", (9, 6), layers, head=True) is None
    two = {"embed": layers["embed"], "more": layers["embed"]}
    refused(UnsupportedError, "'embed' and 'more' are of one shape",
            lambda: table_of("", (9, 6), two, head=False))  # fmt: skip


def test_a_bias_that_vllm_would_leave_out() -> None:
    _, values = block()
    values["layers"]["q_proj"]["bias"] = True
    one = served(values, "config.json")["q_proj"]
    refused(UnsupportedError, "'q_proj' has a bias", check_bias, one, False)
    check_bias(one, True)
    check_bias(None, False)


def test_vllm_finds_it_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["vllm.general_plugins"]
    module, _, name = points["tensorlrf"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert "vllm" not in sys.modules
