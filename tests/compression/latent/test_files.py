"""Latent caches in files, in copies, and without this library."""

from __future__ import annotations

import copy
import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tensorlrf import densify, export, inspect, latent_cache, load, save
from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.errors import FileFormatError
from tensorlrf.nn.latent.attention import latents_of
from tests.compression.latent.models import FAMILIES, batches, drawn

OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


@cache
def small_of(name: str) -> Any:
    return latent_cache(drawn(name), batches(name), rank=9, progress=False)[0]


def generated(model: Any, name: str) -> torch.Tensor:
    tokens: torch.Tensor = model.generate(batches(name)[0]["input_ids"][:3], **OPTIONS)
    return tokens


def is_latent(model: Any) -> bool:
    return any(latents_of(module) is not None for module in model.modules())


def widths(model: Any, name: str) -> list[int]:
    """Of what the cache has in place of keys."""
    found = model(**batches(name)[0], use_cache=True).past_key_values
    return [layer.keys.shape[1] * layer.keys.shape[-1] for layer in found.layers]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_gives_the_same_model(name: str, tmp_path: Path) -> None:
    small = small_of(name)
    wanted, path = generated(small, name), tmp_path / "small.safetensors"
    save(small, path)
    assert fingerprint(small) == fingerprint(drawn(name))
    for given in (drawn(name, seed=3), small):
        again = load(path, given).eval()
        assert torch.equal(generated(again, name), wanted)
        assert widths(again, name) == widths(small, name)
        attention = next(m for m in again.modules() if latents_of(m) is not None)
        latents = latents_of(attention)
        assert latents is not None
        keys, values = (attention.get_submodule(n) for n in (latents.keys, latents.values))
        assert keys.right is values.right
    assert inspect(path, verify=True).params_after < inspect(path).params_before


def test_a_model_of_before_gets_its_cache_back(tmp_path: Path) -> None:
    save(drawn("llama"), tmp_path / "dense.safetensors")
    again = load(tmp_path / "dense.safetensors", drawn("llama", seed=4))
    assert not is_latent(again)


def test_a_folder_of_transformers_loads_without_a_model(tmp_path: Path) -> None:
    small = small_of("llama")
    save(small, tmp_path / "folder")
    again = load(tmp_path / "folder")
    assert torch.equal(generated(again, "llama"), generated(small, "llama"))
    assert widths(again, "llama") == [10, 10]


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_have_tables_of_their_own(name: str) -> None:
    small = small_of(name)
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(generated(twin, name), generated(small, name))
        own = {id(module) for module in twin.modules()}
        tables = [m.latent_tables for m in twin.modules() if latents_of(m) is not None]
        assert tables
        assert all(one is None or id(one) in own for one in tables)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("leave", [export, densify])
def test_without_this_library_the_cache_is_an_ordinary_one(name: str, leave: Any) -> None:
    small = small_of(name)
    plain = leave(small)
    assert not is_latent(plain)
    assert is_latent(small)
    assert {type(m).__module__.partition(".")[0] for m in plain.modules()} <= {
        "torch", "transformers",
    }  # fmt: skip
    assert widths(plain, name) == widths(drawn(name), name)
    torch.testing.assert_close(
        plain(**batches(name)[0]).logits, small(**batches(name)[0]).logits, rtol=1e-4, atol=1e-4
    )  # products in another order


def test_a_header_that_cannot_be_is_refused(tmp_path: Path) -> None:
    from tensorlrf.compression.checkpoint._store import pack
    from tensorlrf.compression.checkpoint.header import KEY
    from tensorlrf.files.sealed import seal, write_sealed

    tensors, header = pack(small_of("llama"))
    good = json.loads(header.to_text())
    wrong: list[tuple[str, Any]] = [
        ("place", "model.nowhere"), ("tables", "model.nowhere"), ("tables", ""), ("place", 3),
        ("keys", "q_proj"), ("values", "nothing"), ("turn", "twice"), ("turn", ""),
        ("heads", 0), ("by_head", 1), ("norm", "no_norm"), ("positions", ""),
    ]  # fmt: skip
    for key, value in wrong:
        values = json.loads(json.dumps(good))
        entry = values["latents"][0]
        (entry if key in entry else entry["made"])[key] = value
        values.pop("checksum", None)
        path = tmp_path / "wrong.safetensors"
        write_sealed(path, KEY, seal(values), tensors, overwrite=True)
        with pytest.raises(FileFormatError):
            load(path, drawn("llama"))
