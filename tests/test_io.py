from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tensorlrf import io
from tensorlrf.errors import (
    ArgumentError,
    FileError,
    FileFormatError,
    TensorlrfError,
    UnsupportedError,
)
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.files.sealed import seal


def layers() -> dict[str, Factors]:
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(4, 2, generator=g), torch.randn(2, 18, generator=g)
    core = torch.randn(2, 3, 3, 3, generator=g)
    return {
        "features.0": LowRank(left, right, (4, 2, 3, 3)),
        "a name with = and é and \x1f.": TuckerFactors(
            core, (left, right[:, :3].T.repeat(1, 2)[:, :3]), (0, 1)
        ),
        "head": CPFactors(torch.ones(2), (left, right.T)),
        "tied": LowRank(left, right),
    }


def same(a: Factors, b: Factors) -> bool:
    """Equal bit for bit."""
    mine, other = a.tensors(), b.tensors()
    return (type(a), a.meta(), list(mine)) == (type(b), b.meta(), list(other)) and all(
        t.dtype == other[n].dtype
        and t.shape == other[n].shape
        and t.contiguous().numpy().tobytes() == other[n].contiguous().numpy().tobytes()
        for n, t in mine.items()
    )


def test_a_collection_keeps_names_order_and_tied_tensors(tmp_path: Path) -> None:
    path = tmp_path / "layers.safetensors"
    io.save_factors_dict(layers(), path)
    again = io.load_factors_dict(path)
    assert list(again) == list(layers())
    for name, f in layers().items():
        assert same(again[name], f)


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
    with pytest.raises(UnsupportedError, match="left is on the meta device"):
        io.save_factors(layers()["tied"].to("meta"), tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        io.load_factors(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="no_folder"):
        io.save_factors(layers()["head"], tmp_path / "no_folder" / "f")
    with pytest.raises(ArgumentError, match="device='nowhere'"):
        io.load_factors(tmp_path / "f", device="nowhere")


@pytest.mark.parametrize("path", [b"f", 3, None, "a\0b", ""])
def test_what_is_no_path_is_named(path: Any) -> None:
    for use in (io.load_factors, io.load_factors_dict):
        with pytest.raises(ArgumentError, match="path="):
            use(path)
    with pytest.raises(ArgumentError, match="path="):
        io.save_factors(layers()["head"], path)


def test_what_exists_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "f"
    io.save_factors(layers()["head"], path)
    before = path.read_bytes()
    for again in (
        lambda: io.save_factors(layers()["tied"], path),
        lambda: io.save_factors_dict(layers(), path),
    ):
        with pytest.raises(FileError, match="overwrite=True"):
            again()
    assert path.read_bytes() == before
    io.save_factors(layers()["tied"], path, overwrite=True)
    assert same(io.load_factors(path), layers()["tied"])
    io.save_factors_dict(layers(), path, overwrite=True)
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    io.save_factors(layers()["head"], path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(FileError, match=r"disk full.*as it was"):
            io.save_factors(layers()["tied"], path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ---- damage ------------------------------------------------------------------------------------


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    io.save_factors_dict({k: v for k, v in layers().items() if k != "features.0"}, path)
    whole = bytearray(path.read_bytes())
    head = 8 + int.from_bytes(whole[:8], "little")
    bits = [(at, 1 << at % 8) for at in range(head, len(whole), 3)]
    bits += [(at, 1 << k) for at in range(0, head, 4) for k in range(8)]
    with open(path, "r+b", buffering=0) as file:
        for at, bit in bits:
            os.pwrite(file.fileno(), bytes([whole[at] ^ bit]), at)
            with pytest.raises(FileFormatError):
                io.load_factors_dict(path)
            os.pwrite(file.fileno(), bytes([whole[at]]), at)
    io.load_factors_dict(path)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_damaged(tmp_path: Path, share: float) -> None:
    path = tmp_path / "f"
    io.save_factors_dict(layers(), path, overwrite=True)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileFormatError, match="damaged"):
        io.load_factors_dict(path)


def test_what_was_loaded_is_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "f"
    io.save_factors_dict(layers(), path)
    loaded = io.load_factors_dict(path)
    with open(path, "r+b") as file:  # in place: no map of the file may be left
        file.write(b"\xff" * path.stat().st_size)
    os.truncate(path, 1)
    for name, f in layers().items():
        assert same(loaded[name], f)


def test_a_file_that_shrinks_while_it_is_read_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    io.save_factors_dict(layers(), path)
    header, real = int.from_bytes(path.read_bytes()[:8], "little"), io._entry

    def cut(*args: Any) -> Any:
        os.truncate(path, header + 9)
        return real(*args)

    monkeypatch.setattr(io, "_entry", cut)
    with pytest.raises(FileFormatError, match="too early"):
        io.load_factors_dict(path)


def header_of(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads(file.metadata()["tensorlrf"])
    return header


def with_header(path: Path, text: str) -> None:
    save_file(load_file(path), path, metadata={"tensorlrf": text})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h.update(version=99), "version 99"),
        (lambda h: h.update(version="1"), "version is '1'"),
        (lambda h: h["entries"][0].update(format="origami"), "origami"),
        (lambda h: h["entries"][0].pop("meta"), "damaged header"),
        (lambda h: h["entries"][0]["tensors"].pop("left"), "left"),
        (lambda h: h["entries"][0]["meta"].update(shape=[4, 5]), "do not fit"),
        (lambda h: h["entries"][0]["meta"].update(shape=[4, "5"]), "do not fit"),
        (lambda h: h["entries"][0]["meta"].update(shape=[2.0, 18]), "do not fit"),
        (lambda h: h["entries"][0]["tensors"].update(left="gone"), "damaged"),
        (lambda h: h["entries"][0]["tensors"].update(left=3), "damaged"),
        (lambda h: h["entries"][0].update(name=3), "damaged"),
        (lambda h: h["entries"].append(h["entries"][0]), "one of a name"),
        (lambda h: h["entries"].pop(), "about all tensors"),
        (lambda h: h.update(entries=[]), "about all tensors"),
        (lambda h: h.pop("entries"), "damaged header"),
        (lambda h: h.update(entries={}), "damaged header"),
        (lambda h: h.update(more=1), "damaged header"),
    ],
)
@pytest.mark.parametrize("sealed", [True, False])
def test_a_header_that_does_not_fit_is_refused(
    tmp_path: Path, change: Any, says: str, sealed: bool
) -> None:
    path = tmp_path / "f"
    io.save_factors_dict(layers(), path)
    header = header_of(path)
    del header["checksum"]
    if not sealed:
        header = {"version": 1, "entries": header["entries"]}
    change(header)
    with_header(path, seal(header) if sealed or header["version"] == 99 else json.dumps(header))
    with pytest.raises(FileFormatError, match=says):
        io.load_factors_dict(path)


@pytest.mark.parametrize(
    "text", ["[]", "", "null", "[" * 100_000, '{"version": 1, "version": 1}', '{"version": 1e999}']
)
def test_a_header_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    io.save_factors_dict(layers(), path)
    with_header(path, text)
    with pytest.raises(FileFormatError, match="damaged header"):
        io.load_factors_dict(path)


def test_a_foreign_safetensors_file_is_named_as_such(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "f")
    with pytest.raises(FileFormatError, match="without factors"):
        io.load_factors(tmp_path / "f")


# ---- files of before ---------------------------------------------------------------------------


def save_first_version(factors: dict[str, Factors], path: Path) -> None:
    """As the first version of the format was written: no checksums."""
    tensors, entries = {}, []
    for k, (name, f) in enumerate(factors.items()):
        keys = {part: f"{k}.{part}" for part in f.tensors()}
        tensors.update({keys[part]: t.contiguous().clone() for part, t in f.tensors().items()})
        entries.append({"name": name, "format": f.format, "meta": f.meta(), "tensors": keys})
    header = {"version": 1, "entries": entries}
    save_file(tensors, path, metadata={"tensorlrf": json.dumps(header)})


def test_files_without_checksums_still_load(tmp_path: Path) -> None:
    save_first_version(layers(), tmp_path / "old")
    found = io.read(tmp_path / "old")
    assert not found.sealed
    assert list(found.factors) == list(layers())
    assert all(same(found.factors[name], f) for name, f in layers().items())
    io.save_factors_dict(layers(), tmp_path / "new")
    assert io.read(tmp_path / "new").sealed


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    io.save_factors_dict(layers(), tmp_path / "f")
    with_header(tmp_path / "f", json.dumps({**header_of(tmp_path / "f"), "version": 3}))
    with pytest.raises(TensorlrfError, match="a newer one"):
        io.load_factors_dict(tmp_path / "f")
