"""The format beside the library that defines it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tensorlrf.errors import ArgumentError, FileFormatError, MissingFileError, UnsupportedError
from tensorlrf.files.safetensors import DTYPES, check_storable, opened, plain, write
from tests.compression.checkpoint.saved import equal

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(
    lambda name: name != "__metadata__"
)


@st.composite
def tensors(draw: Any) -> dict[str, Tensor]:
    """Of every dtype, empty ones and single numbers among them."""
    made = {}
    for name in draw(st.lists(NAMES, max_size=6, unique=True)):
        dtype = draw(st.sampled_from(list(DTYPES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        numbers = torch.arange(1, 1 + int(torch.tensor(shape).prod() if shape else 1))
        made[name] = (numbers % 2 if dtype is torch.bool else numbers).to(dtype).reshape(shape)
    return made


def loaded(path: Path) -> dict[str, Tensor]:
    with opened(path) as file:
        assert file.verbatim
        return {name: file.tensor(name) for name in file.tensors}


SETTINGS = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(given_tensors=tensors(), metadata=st.dictionaries(NAMES, st.text('aé"\\\n\0\x1f')))
def test_the_library_reads_what_we_write_and_we_what_it_writes(
    given_tensors: dict[str, Tensor], metadata: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path / "ours", given_tensors, metadata)
    theirs = load_file(tmp_path / "ours")
    save_file(given_tensors, tmp_path / "theirs", metadata=metadata or None)
    for again in (theirs, loaded(tmp_path / "ours"), loaded(tmp_path / "theirs")):
        assert set(again) == set(given_tensors)
        assert all(equal(again[name], t) for name, t in given_tensors.items())
    with safe_open(tmp_path / "ours", framework="pt") as file:
        assert (file.metadata() or {}) == metadata
    with opened(tmp_path / "theirs") as ours:
        assert ours.metadata == metadata
    head = int.from_bytes((tmp_path / "ours").read_bytes()[:8], "little")
    assert head % 8 == 0


def file_of(head: Any, body: bytes, path: Path, length: int | None = None) -> Path:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + body)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"", b""),
        (b"[]", b""),
        (b"{" * 5000, b""),
        (b'{"a":' * 100_000, b""),
        (b'{"\xff": 1}', b""),
        ({"a": entry()}, b"1234567"),
        ({"a": entry()}, b"123456789"),
        ({"a": entry(offsets=(1, 9))}, b"123456789"),
        ({"a": entry(offsets=(8, 0))}, b"12345678"),
        ({"a": entry(offsets=(0,))}, b"12345678"),
        ({"a": entry(offsets=(0.0, 8))}, b"12345678"),
        ({"a": entry(), "b": entry()}, b"12345678"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, b"12345678" * 2),
        ({"a": entry(shape=(1 << 62, 1 << 62))}, b"12345678"),
        ({"a": entry(shape=(-2,))}, b"12345678"),
        ({"a": entry(shape=(2.0,))}, b"12345678"),
        ({"a": entry(shape=3)}, b"12345678"),
        ({"a": entry(dtype="F31")}, b"12345678"),
        ({"a": entry(dtype=None)}, b"12345678"),
        ({"a": {**entry(), "more": 1}}, b"12345678"),
        ({"a": 3}, b""),
        ({"__metadata__": {"a": 1}}, b""),
        ({"__metadata__": 3}, b""),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":3}', b""),
    ],
)
def test_what_is_no_file_of_the_format(head: Any, body: bytes, tmp_path: Path) -> None:
    path = file_of(head, body, tmp_path / "f")
    with pytest.raises(FileFormatError, match="damaged"), opened(path):
        pass


@pytest.mark.parametrize("length", [1, 1 << 62, (1 << 64) - 1, 100])
def test_a_header_of_another_length(length: int, tmp_path: Path) -> None:
    path = file_of({"a": entry()}, b"12345678", tmp_path / "f", length)
    with pytest.raises(FileFormatError, match="damaged"), opened(path):
        pass


def test_a_huge_file_with_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = file_of({}, b"", tmp_path / "f", 1 << 36)
    os.truncate(path, 1 << 37)  # sparse: it takes no room
    with pytest.raises(FileFormatError, match="header"), opened(path):
        pass


def test_a_dtype_that_torch_has_and_we_do_not(tmp_path: Path) -> None:
    path = file_of(
        {"a": entry("F8_E8M0", (8,)), "b": entry("U8", (1,), (8, 9))}, b"1" * 9, tmp_path / "f"
    )
    with opened(path) as file:
        assert file.tensor("b").tolist() == [49]
        with pytest.raises(UnsupportedError, match="F8_E8M0"):
            file.tensor("a")


def test_another_spelling_of_the_same_is_noticed(tmp_path: Path) -> None:
    path = file_of(b'{"__metadata__":{"a":"\\u001F"}}', b"", tmp_path / "f")
    with opened(path) as file:
        assert not file.verbatim
        assert file.metadata == {"a": "\x1f"}


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(MissingFileError, match="is not a file"), opened(path):
            pass


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no Unicode text"):
        write(tmp_path / "f", {"a\ud800": torch.zeros(1)}, {})


def test_tensors_are_written_as_their_values(tmp_path: Path) -> None:
    c = torch.complex(torch.arange(6.0), torch.arange(6.0) + 1).reshape(2, 3)
    views = {"conj": c.conj().T, "neg": c.conj().imag, "strided": torch.arange(12.0)[::3]}
    for name, t in views.items():
        check_storable(name, t)
    write(tmp_path / "f", {name: plain(t) for name, t in views.items()}, {})
    for name, t in loaded(tmp_path / "f").items():
        assert torch.equal(t, views[name].resolve_neg().resolve_conj())


def test_what_a_file_cannot_hold() -> None:
    lazy = nn.LazyLinear(3).weight
    kinds: list[Any] = [
        lazy,
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.zeros(2, dtype=torch.complex128),
    ]
    for kind in kinds:
        with pytest.raises(UnsupportedError, match=r"a\.b"):
            check_storable("a.b", kind)
