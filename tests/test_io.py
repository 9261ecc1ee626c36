from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tensorlrf import io
from tensorlrf.errors import ArgumentError, FileFormatError
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors


def layers() -> dict[str, Factors]:
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(4, 2, generator=g), torch.randn(2, 18, generator=g)
    core = torch.randn(2, 3, 3, 3, generator=g)
    return {
        "features.0": LowRank(left, right, (4, 2, 3, 3)),
        "a name with = and .": TuckerFactors(
            core, (left, right[:, :3].T.repeat(1, 2)[:, :3]), (0, 1)
        ),
        "head": CPFactors(torch.ones(2), (left, right.T)),
        "tied": LowRank(left, right),
    }


def test_a_collection_keeps_names_order_and_tied_tensors(tmp_path: Path) -> None:
    path = tmp_path / "layers.safetensors"
    io.save_factors_dict(layers(), path)
    again = io.load_factors_dict(path)
    assert list(again) == list(layers())
    for name, f in layers().items():
        assert type(again[name]) is type(f)
        torch.testing.assert_close(again[name].to_dense(), f.to_dense(), rtol=0, atol=0)


def test_one_and_many_are_told_apart(tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    io.save_factors(layers()["head"], one)
    io.save_factors_dict(layers(), many)
    with pytest.raises(FileFormatError, match="load_factors_dict"):
        io.load_factors(many)
    with pytest.raises(FileFormatError, match="load_factors"):
        io.load_factors_dict(one)


def test_refuses_what_is_no_factors_object(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="Tensor"):
        io.save_factors(torch.ones(2), tmp_path / "f")  # type: ignore[arg-type]
    for bad in ({}, {"": layers()["head"]}, {"a": 3}, [1]):
        with pytest.raises(ArgumentError, match="factors"):
            io.save_factors_dict(bad, tmp_path / "f")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        io.load_factors(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="no_folder"):
        io.save_factors(layers()["head"], tmp_path / "no_folder" / "f")


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    io.save_factors(layers()["head"], path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        io.save_factors(layers()["tied"], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_damaged(tmp_path: Path, share: float) -> None:
    path = tmp_path / "f"
    io.save_factors_dict(layers(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileFormatError, match="damaged"):
        io.load_factors_dict(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h.update(version=99), "version 99"),
        (lambda h: h.update(version="1"), "version '1'"),
        (lambda h: h["entries"][0].update(format="origami"), "origami"),
        (lambda h: h["entries"][0].pop("meta"), "damaged header"),
        (lambda h: h["entries"][0]["tensors"].pop("left"), "left"),
        (lambda h: h["entries"][0]["meta"].update(shape=[4, 5]), "do not fit"),
        (lambda h: h["entries"][0]["tensors"].update(left="gone"), "damaged"),
        (lambda h: h.pop("entries"), "damaged header"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, change, says: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "f"
    io.save_factors_dict(layers(), path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["tensorlrf"])
    change(header)
    save_file(load_file(path), path, metadata={"tensorlrf": json.dumps(header)})
    with pytest.raises(FileFormatError, match=says):
        io.load_factors_dict(path)


def test_a_foreign_safetensors_file_is_named_as_such(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "f")
    with pytest.raises(FileFormatError, match="without factors"):
        io.load_factors(tmp_path / "f")
