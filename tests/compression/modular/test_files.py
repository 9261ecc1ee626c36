"""What `method="modular"` makes, in files and without this library."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tensorlrf import compress, export, inspect, load, save
from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.errors import FileFormatError, ShapeError
from tests.compression.modular.models import FAMILIES, KINDS, TURNED, batches, drawn
from tests.compression.modular.test_modular import outputs


def small_of(name: str, keep: float = 0.6, **options: Any) -> Any:
    return compress(
        drawn(name), method="modular", keep_params=keep, calibration=batches(name), progress=False,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_file_gives_the_same_model_from_the_architecture_it_came_from(
    name: str, tmp_path: Path
) -> None:
    small, report = small_of(name)
    batch = batches(name)[0]
    wanted = outputs(small, batch)
    save(small, tmp_path / "small.safetensors")
    assert fingerprint(small) == fingerprint(drawn(name))
    given = drawn(name, seed=3).train()
    again = load(tmp_path / "small.safetensors", given)
    assert again.training
    for a, b in zip(outputs(again.eval(), batch), wanted, strict=True):
        assert torch.equal(a, b)
    assert [tuple(p.shape) for p in given.parameters()] != [
        tuple(p.shape) for p in again.parameters()
    ]
    again = load(tmp_path / "small.safetensors", small)
    for a, b in zip(outputs(again, batch), wanted, strict=True):
        assert torch.equal(a, b)
    about = inspect(tmp_path / "small.safetensors", verify=True)
    assert about.params_before - about.params_after == (
        report.model.params_before - report.model.params_after
    )


def test_a_folder_of_transformers_loads_without_a_model(tmp_path: Path) -> None:
    small, _ = small_of("llama")
    save(small, tmp_path / "folder")
    again = load(tmp_path / "folder")
    batch = batches("llama")[0]
    assert torch.equal(outputs(again, batch)[0], outputs(small, batch)[0])
    words = batch["input_ids"][:2]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(words, **options), small.generate(words, **options))


def test_a_model_without_values_is_an_architecture(tmp_path: Path) -> None:
    small, _ = small_of("gpt2")
    save(small, tmp_path / "small.safetensors")
    with torch.device("meta"):
        blank = FAMILIES["gpt2"]()
    again = load(tmp_path / "small.safetensors", blank).eval()
    batch = batches("gpt2")[0]
    assert torch.equal(outputs(again, batch)[0], outputs(small, batch)[0])


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    small, _ = small_of("bert")
    save(small, tmp_path / "small.safetensors")
    for name in ("llama", "vit"):
        with pytest.raises(FileFormatError):
            load(tmp_path / "small.safetensors", drawn(name))
    save(drawn("bert"), tmp_path / "dense.safetensors")
    with pytest.raises(FileFormatError):
        load(tmp_path / "dense.safetensors", small)


def test_a_header_that_cannot_be_is_refused(tmp_path: Path) -> None:
    from tensorlrf.compression.checkpoint._store import pack
    from tensorlrf.compression.checkpoint.header import KEY
    from tensorlrf.files.sealed import seal, write_sealed

    small, _ = small_of("llama")
    tensors, header = pack(small)
    good = json.loads(header.to_text())
    wrong = [
        ("sizes", {"head_dim": 0}), ("sizes", {"no_such": 4}), ("table", [0, 0]), ("table", [99]),
        ("shapes", {"weight": [10**9, 4]}), ("places", []), ("places", ["model.nowhere"]),
    ]  # fmt: skip
    for key, value in wrong:
        values = json.loads(json.dumps(good))
        at = next(e for e in values["resized"] if bool(e["shapes"]) == (key == "shapes"))
        at[key] = value
        values.pop("checksum", None)
        path = tmp_path / "wrong.safetensors"
        write_sealed(path, KEY, seal(values), tensors, overwrite=True)
        with pytest.raises(FileFormatError):
            load(path, drawn("llama"))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_it_is_pickled_and_copied_as_what_it_is(name: str) -> None:
    small, _ = small_of(name)
    again = pickle.loads(pickle.dumps(small))
    assert torch.equal(outputs(again, batches(name)[0])[0], outputs(small, batches(name)[0])[0])


@pytest.mark.parametrize("name", KINDS)
def test_exported_it_is_made_of_stock_modules_alone(name: str) -> None:
    """Those without rotary pairs as small as they are."""
    small, report = small_of(name)
    stock = export(small)
    batch = batches(name)[0]
    for a, b in zip(outputs(stock, batch), outputs(small, batch), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert [type(m) for m in stock.modules()] == [type(m) for m in drawn(name).modules()]
    assert not any(
        "tensorlrf" in type(value).__module__ for m in stock.modules() for value in vars(m).values()
    )
    numbers = sum(p.numel() for p in stock.parameters())
    if name in TURNED:
        assert report.model.params_after < numbers < report.model.params_before
    else:
        assert numbers == report.model.params_after


def test_it_takes_the_tables_by_place_or_by_name_and_no_others() -> None:
    small, _ = small_of("llama", allocation="uniform")
    attention = small.model.layers[0].self_attn
    states = torch.randn(1, 3, 32)
    tables = small.model.rotary_emb(states, torch.arange(3)[None])
    with torch.no_grad():
        one = attention(states, tables, None)[0]
        other = attention(states, position_embeddings=tables, attention_mask=None)[0]
        assert torch.equal(one, other)
        with pytest.raises(ShapeError, match="4 entries"):
            attention(states, position_embeddings=tuple(t[..., :4] for t in tables))
