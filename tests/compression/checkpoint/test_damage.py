"""A damaged file is an error of ours or the very same model, and nothing else."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensorlrf.compression.checkpoint._file import load, save
from tensorlrf.compression.checkpoint._inspect import inspect
from tensorlrf.compression.checkpoint.header import KEY
from tensorlrf.errors import FileFormatError
from tensorlrf.files.sealed import canonical, checksum_of
from tests.compression.checkpoint.saved import Net, compressed, net, same
from tests.json_trees import put, ways


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "model.safetensors"
    save(compressed(), path)
    return path


@pytest.fixture(scope="module")
def architecture() -> Net:
    return net(seed=3)


def test_a_thousand_damaged_files(file: Path, architecture: Net, tmp_path: Path) -> None:
    whole = file.read_bytes()
    wanted = load(file, architecture)
    (header,) = struct.unpack("<Q", whole[:8])
    draw = random.Random(20)
    path = tmp_path / "damaged"
    equal = 0
    for k in range(1000):
        # Every other one hits the header, which is much of a small file and little of a large one.
        end = 8 + header if k % 2 else len(whole)
        damaged = bytearray(whole)
        at = draw.randrange(end)
        match draw.randrange(4):
            case 0:
                del damaged[at:]
            case 1:
                damaged[at] ^= 1 << draw.randrange(8)
            case 2:
                damaged[at] = draw.randrange(256)
            case _:
                for _ in range(draw.randrange(2, 20)):
                    damaged[draw.randrange(end)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = load(path, architecture)
        except FileFormatError:
            continue
        assert same(loaded, wanted), k
        equal += 1
    assert equal < 50  # a byte that is drawn to be what it was; few


def test_a_flipped_bit_is_refused_wherever_it_is(
    file: Path, architecture: Net, tmp_path: Path
) -> None:
    whole = file.read_bytes()
    head = 8 + struct.unpack("<Q", whole[:8])[0]
    at = [*range(16), *range(16, head, 97), *range(head, len(whole), 197)]
    path = tmp_path / "flipped"
    path.write_bytes(whole)
    with open(path, "r+b", buffering=0) as flipped:
        for k, here in enumerate(at):
            os.pwrite(flipped.fileno(), bytes([whole[here] ^ 1 << k % 8]), here)
            for read in (lambda: load(path, architecture), lambda: inspect(path, verify=True)):
                with pytest.raises(FileFormatError):
                    read()
            os.pwrite(flipped.fileno(), whole[here : here + 1], here)
    assert same(load(path, architecture), load(file, architecture))


def test_a_loaded_model_is_a_copy(file: Path, architecture: Net, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(file.read_bytes())
    loaded = load(path, architecture)
    with open(path, "r+b") as rewritten:
        rewritten.write(b"\xff" * path.stat().st_size)
    os.truncate(path, 1)
    assert same(loaded, load(file, architecture))


@pytest.mark.parametrize("where", ["length", "padding"])
def test_a_header_of_absurd_length(
    file: Path, architecture: Net, where: str, tmp_path: Path
) -> None:
    whole = file.read_bytes()
    length = struct.pack("<Q", 1 << 62 if where == "length" else len(whole))
    (tmp_path / "m").write_bytes(length + whole[8:])
    with pytest.raises(FileFormatError, match="damaged"):
        load(tmp_path / "m", architecture)


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 8, b"\x02" + b"\0" * 7 + b"{}"])
def test_files_that_are_none(content: bytes, architecture: Net, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(FileFormatError):
        load(tmp_path / "m", architecture)


# ---- headers that were made by hand, their checksums right -------------------------------------


def split(whole: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """(what safetensors says, what we say, the tensors)."""
    (length,) = struct.unpack("<Q", whole[:8])
    outer = json.loads(whole[8 : 8 + length])
    return outer, json.loads(outer["__metadata__"][KEY]), whole[8 + length :]


def joined(outer: dict[str, Any], text: str, body: bytes) -> bytes:
    # In the one spelling that writers have: another is refused as a flipped bit is.
    head = json.dumps({**outer, "__metadata__": {KEY: text}}, separators=(",", ":")).encode()
    return struct.pack("<Q", len(head)) + head + body


def signed(values: Any) -> str:
    """The header with all its checksums made right."""
    if isinstance(values, dict):
        values["plan_checksum"] = checksum_of(canonical(values.get("plan")))
        values.pop("checksum", None)
        values["checksum"] = checksum_of(canonical(values))
    return json.dumps(values)


def attacked(file: Path, change: Callable[[Any], Any], path: Path) -> Path:
    """`file` with its header changed, and signed again."""
    outer, values, body = split(file.read_bytes())
    changed = change(values)
    path.write_bytes(joined(outer, signed(values if changed is None else changed), body))
    return path


def set_at(*keys: Any, to: Any) -> Callable[[Any], None]:
    return lambda values: put(values, keys, to)


def swap(values: Any) -> None:
    """Two tensors of one shape in each other's place."""
    tensors = values["tensors"]
    a, b = "features.1.weight", "features.1.running_mean"
    tensors[a], tensors[b] = tensors[b], tensors[a]


ATTACKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "newer version": (set_at("version", to=2), "newer"),
    "version true": (set_at("version", to=True), "version is True"),
    "version of words": (set_at("version", to="1"), "version is '1'"),
    "no version": (lambda v: v.pop("version") and None, "version"),
    "a list": (lambda v: [v], "mapping"),
    "a number": (lambda v: 3, "mapping"),
    "unknown entry": (set_at("more", to=1), "mapping"),
    "absurd shape": (set_at("tensors", "head.left", "shape", to=[1 << 62, 1 << 62]), "head.left"),
    "negative shape": (set_at("tensors", "head.left", "shape", to=[-16, 2]), "whole number"),
    "shape true": (set_at("tensors", "head.left", "shape", to=[True, 2]), "whole number"),
    "shape of halves": (set_at("tensors", "head.left", "shape", to=[16.0, 2]), "whole number"),
    "deep shape": (set_at("tensors", "head.left", "shape", to=[1] * 1000), "at most 64"),
    "other dtype": (set_at("tensors", "head.left", "dtype", to="I32"), "head.left"),
    "unknown dtype": (set_at("tensors", "head.left", "dtype", to="F31"), "head.left"),
    "other checksum": (set_at("tensors", "head.left", "checksum", to="0" * 32), "head.left"),
    "swapped": (swap, "features.1"),
    "no permutation": (set_at("tensors", "head.left", "order", to=[0, 0]), "permutation"),
    "tensor missing": (lambda v: v["tensors"].pop("head.left") and None, "head.left"),
    "tensor too many": (
        set_at("tensors", "more", to={"dtype": "F32", "shape": [1], "checksum": ""}),
        "more",
    ),
    "alias to nothing": (set_at("slots", 0, "tensor", to="nowhere"), "nowhere"),
    "a slot of itself": (set_at("slots", 0, to={"tensor": {"tensor": "a"}, "at": {}}), "string"),
    "slot without place": (set_at("slots", 0, "at", to={}), "names"),
    "unknown role": (set_at("slots", 0, "at", to={"table": "weight"}), "roles"),
    "unknown place": (
        lambda v: v["slots"][2]["at"].update({"nowhere.weight": "parameter"}),
        "nowhere.weight",
    ),
    "name twice": (lambda v: v["slots"].append(v["slots"][0]), "twice"),
    "view of too much": (
        set_at("slots", 0, "view", to={"shape": [17], "stride": [1], "offset": 0}),
        "part of a tensor",
    ),
    "view from afar": (
        set_at("slots", 0, "view", to={"shape": [2], "stride": [1 << 62], "offset": 1}),
        "part of a tensor",
    ),
    "layer of nothing": (set_at("layers", 0, "places", to=["nowhere"]), "nowhere"),
    "layer without place": (set_at("layers", 0, "places", to=[]), "places"),
    "layer in a norm": (set_at("layers", 0, "places", to=["features.1"]), "features"),
    "layer elsewhere": (set_at("layers", 0, "places", to=["head"]), "head"),
    "unknown format": (set_at("layers", 2, "format", to="pickle"), "pickle"),
    "other format": (set_at("layers", 2, "format", to="cp"), "head"),
    "absurd part": (set_at("layers", 2, "parts", "left", to=[1 << 40, 1 << 22]), "head"),
    "other part": (set_at("layers", 2, "parts", to={"left": [16, 2]}), "head"),
    "no parts": (set_at("layers", 2, "parts", to={}), "head"),
    "other rank": (set_at("layers", 2, "parts", to={"left": [16, 9], "right": [9, 24]}), "head"),
    "other shape": (set_at("layers", 2, "shape", to=[24, 16]), "head"),
    "meta of words": (set_at("layers", 2, "meta", to={"shape": "x"}), "head"),
    "meta empty": (set_at("layers", 2, "meta", to={}), "head"),
    "meta no mapping": (set_at("layers", 2, "meta", to=[1]), "mapping"),
    "bias is one": (set_at("layers", 2, "bias", to=1), "true or false"),
    "bias denied": (set_at("layers", 2, "bias", to=False), "head.bias"),
    "tables no tables": (set_at("layers", 2, "measured", to={"cpu": [[1, "chain"]]}), "path table"),
    "tables of pairs": (set_at("layers", 2, "measured", to={"cpu": [["chain"]]}), "rows, path"),
    "plan no mapping": (set_at("plan", to=[]), "mapping"),
    "architecture of numbers": (set_at("architecture", to={"": 3}), "string"),
    "another fingerprint": (set_at("fingerprint", to="0" * 64), "hash"),
    "fingerprint alone": (set_at("architecture", to=None), "hash"),
    "extra state of nothing": (set_at("extra_state", to={"nowhere": 1}), "nowhere"),
    "extra state of a relu": (set_at("extra_state", to={"features.2": 1}), "features.2"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_header_that_lies(name: str, file: Path, architecture: Net, tmp_path: Path) -> None:
    change, told = ATTACKS[name]
    with pytest.raises(FileFormatError, match=told):
        load(attacked(file, change, tmp_path / "m"), architecture)


OF_THE_MODEL = {*("unknown place", "other rank", "extra state of nothing", "extra state of a relu")}
"""Lies that only the model can tell."""


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - OF_THE_MODEL))
def test_inspect_refuses_a_header_that_lies(name: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError):
        inspect(attacked(file, ATTACKS[name][0], tmp_path / "m"), verify=True)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"version": 1, "version": 1}',
        '{"version": NaN}',
        '{"version": 1e999}',
        '{"version": ' + "9" * 5000 + "}",
        "",
        "null",
        '"version"',
        '{"version": 1, "checksum": "\\ud800"}',
    ],
    ids=lambda text: text[:24],
)
def test_a_header_that_is_no_header(
    text: str, file: Path, architecture: Net, tmp_path: Path
) -> None:
    outer, _, body = split(file.read_bytes())
    (tmp_path / "m").write_bytes(joined(outer, text, body))
    for read in (lambda path: load(path, architecture), inspect):
        with pytest.raises(FileFormatError):
            read(tmp_path / "m")


def test_a_plan_that_was_changed(file: Path, architecture: Net, tmp_path: Path) -> None:
    outer, values, body = split(file.read_bytes())
    values["plan"]["hidden"]["rank"] = 4
    values.pop("checksum")
    values["checksum"] = checksum_of(canonical(values))
    (tmp_path / "m").write_bytes(joined(outer, json.dumps(values), body))
    with pytest.raises(FileFormatError, match="checksum of the plan"):
        load(tmp_path / "m", architecture)


def test_tensors_that_change_places_in_the_file(
    file: Path, architecture: Net, tmp_path: Path
) -> None:
    outer, values, body = split(file.read_bytes())
    a, b = outer["features.1.running_mean"], outer["features.1.bias"]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
    (tmp_path / "m").write_bytes(joined(outer, json.dumps(values), body))
    inspect(tmp_path / "m")
    for read in (lambda path: load(path, architecture), lambda path: inspect(path, verify=True)):
        with pytest.raises(FileFormatError, match=r"'features\.1\.\w+' is damaged"):
            read(tmp_path / "m")


NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
    st.sampled_from(["head", "features.3", "lowrank", "cp", "grouped", "F32", "parameter", ""]),
    st.lists(st.integers(-1, 5), max_size=3),
    st.dictionaries(st.sampled_from(["shape", "head", "left"]), st.integers(0, 3), max_size=2),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), value=NASTY)
def test_any_value_anywhere_in_the_header(
    data: st.DataObject, value: Any, file: Path, architecture: Net, tmp_path: Path
) -> None:
    """With right checksums, a lie may pass where nothing hangs on it; it never passes on as
    another error, and the tensors stay those of the file."""
    _, values, _ = split(file.read_bytes())
    keys = data.draw(st.sampled_from(ways(values)))
    path = attacked(file, set_at(*keys, to=value), tmp_path / "m")
    try:
        loaded = load(path, architecture)
    except FileFormatError:
        return
    wanted = {id_of(p) for p in load(file, architecture).parameters()}
    assert {id_of(p) for p in loaded.parameters()} == wanted


def id_of(t: torch.Tensor) -> bytes:
    return bytes(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
