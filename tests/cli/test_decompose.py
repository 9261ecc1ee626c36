"""`tensorlrf decompose` and what `inspect` says of its files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tensorlrf import decomposition, io
from tensorlrf.cli._arrays import read_tensor
from tensorlrf.errors import FileFormatError
from tests.cli.calls import Program, listing
from tests.test_io import save_first_version


def exact(rank: int, *shape: int) -> np.ndarray:
    """A tensor of that CP rank, float64."""
    draw = np.random.default_rng(0)
    parts = [draw.standard_normal((n, rank)) for n in shape]
    letters = "abcdef"[: len(shape)]
    tensor: np.ndarray = np.einsum(",".join(f"{x}z" for x in letters) + "->" + letters, *parts)
    return tensor


@pytest.mark.parametrize(
    ("method", "rank", "ranks"),
    [("cp", "3", 3), ("svd", "3", 3), ("tucker", "3,3,2", (3, 3, 2)), ("tucker", "3", (3, 3, 3))],
)
def test_factors_of_an_exact_tensor(
    method: str, rank: str, ranks: object, tmp_path: Path, program: Program
) -> None:
    tensor = exact(2 if rank == "3,3,2" else 3, 8, 7, 6)
    np.save(tmp_path / "t.npy", tensor)
    target = tmp_path / "f.safetensors"
    more = ("--method", method, "--rank", rank, "-o", target, "--json")
    done = program("decompose", tmp_path / "t.npy", *more)
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    factors = io.load_factors(target)
    assert factors.rel_error(torch.from_numpy(tensor)) < 1e-6
    assert told["error"] < 1e-6
    assert told["params_after"] == factors.n_params
    assert factors.rank == ranks
    seen = json.loads(program("inspect", target, "--verify", "--json").out)
    assert seen["factors"][0]["format"] == factors.format
    assert seen["verified"]
    assert repr(factors) in program("inspect", target).out


@pytest.mark.parametrize(
    ("method", "format", "options"),
    [
        ("tt", "tt", ("--modes", "1,0")),
        ("tr", "tr", ()),
        ("kron", "kron", ()),
        ("tt_matrix", "tt_matrix", ()),
        ("blr", "blr", ()),
        ("hodlr", "blr", ()),
        ("monarch", "monarch", ()),
        ("blast", "blast", ()),
        ("svd", "lowrank", ("--rank", "auto")),
    ],
)
def test_every_method_writes_its_format(
    method: str, format: str, options: tuple[str, ...], tmp_path: Path, program: Program
) -> None:
    np.save(tmp_path / "t.npy", exact(3, 96, 128))
    target = tmp_path / "f.safetensors"
    budget = () if "auto" in options else ("--rank", ".6")
    more = ("--method", method, *budget, *options, "-o", target, "--json")
    done = program("decompose", tmp_path / "t.npy", *more)
    assert (done.code, done.err) == (0, "")
    factors = io.load_factors(target)
    assert factors.format == format
    assert json.loads(done.out)["params_after"] == factors.n_params


def test_an_error_in_place_of_a_rank(tmp_path: Path, program: Program) -> None:
    save_file({"w": torch.from_numpy(exact(5, 9, 8, 7))}, tmp_path / "t.safetensors")
    more = ("--method", "tucker", "--modes", "0,1", "--error", 0.3)
    done = program("decompose", tmp_path / "t.safetensors", *more, "-o", tmp_path / "f.safetensors")
    assert done.code == 0
    assert "relative error" in done.out
    factors = io.load_factors(tmp_path / "f.safetensors")
    assert factors.rel_error(torch.from_numpy(exact(5, 9, 8, 7))) <= 0.3
    assert len(factors.tensors()) == 3


def test_a_share_and_same(tmp_path: Path, program: Program) -> None:
    np.save(tmp_path / "t.npy", exact(9, 20, 20))
    for text, share in ((".5", 0.5), ("same", 1.0)):
        more = ("--rank", text, "-o", tmp_path / "f.safetensors", "--force", "--json")
        told = json.loads(program("decompose", tmp_path / "t.npy", *more).out)
        assert told["params_after"] <= share * 400


@settings(deadline=None, max_examples=25)
@given(
    order=st.sampled_from("CF"),
    dtype=st.sampled_from(["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]),
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
)
def test_arrays_of_any_layout(
    order: Any, dtype: str, shape: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "t.npy"
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    np.save(path, np.asarray(array, order=order))
    tensor = read_tensor(path, None)
    assert tensor.is_floating_point()
    assert np.array_equal(tensor.numpy(), array)


@pytest.mark.parametrize(
    "dtype", ["i8", "u2", "?", "c8", "g", "S3", "M8[s]", [("a", "f4"), ("b", "i4")]]
)
def test_arrays_of_other_things(dtype: Any, tmp_path: Path, program: Program) -> None:
    np.save(tmp_path / "t.npy", np.zeros((4, 4), dtype=dtype))
    more = ("--rank", 1, "-o", tmp_path / "f.safetensors")
    assert "has dtype" in program("decompose", tmp_path / "t.npy", *more).error
    assert listing(tmp_path) == {"t.npy"}


def test_files_that_are_no_tensor(tmp_path: Path, program: Program) -> None:
    def refused(name: str, *more: object) -> str:
        target = ("-o", tmp_path / "f.safetensors")
        return program("decompose", tmp_path / name, "--rank", 1, *target, *more).error

    assert "is not a file" in refused("missing.npy")
    np.savez(tmp_path / "t.npz", a=np.ones((4, 4)))
    assert "neither .npy" in refused("t.npz")
    (tmp_path / "t.npz").rename(tmp_path / "z.npy")
    assert "archive" in refused("z.npy")
    np.save(tmp_path / "o.npy", np.array([[{}]]), allow_pickle=True)
    assert "no .npy of numbers" in refused("o.npy")
    np.save(tmp_path / "t.npy", np.ones((40, 40)))
    whole = (tmp_path / "t.npy").read_bytes()
    for length in (0, 5, 60, 128, len(whole) - 1):
        (tmp_path / "cut.npy").write_bytes(whole[:length])
        assert "damaged" in refused("cut.npy")
    assert "one array" in refused("t.npy", "--name", "w")
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 20)
    assert "damaged" in refused("cut.safetensors")
    two = {"a": torch.ones(4, 4), "b": torch.ones(4, 4, dtype=torch.int8)}
    save_file(two, tmp_path / "two.safetensors")
    assert "a, b" in refused("two.safetensors")
    assert "a, b" in refused("two.safetensors", "--name", "c")
    assert "int8" in refused("two.safetensors", "--name", "b")
    assert not (tmp_path / "f.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "rank or error"),
        (("--rank", 2, "--error", 0.1), "rank or error"),
        (("--rank", "two"), "--rank two"),
        (("--rank", 0), "rank=0"),
        (("--rank", -3), "rank=-3"),
        (("--rank", 1.5), "rank=1.5"),
        (("--rank", 9), "at most 4"),
        (("--rank", "2,2"), "rank=(2, 2)"),
        (("--rank", 2, "--method", "lu"), "method='lu'"),
        (("--rank", 2, "--modes", "0"), "--modes is for"),
        (("--rank", 2, "--method", "tucker", "--modes", "0,x"), "--modes 0,x"),
        (("--rank", 2, "--method", "tucker", "--modes", "0,7"), "7"),
        (("--error", 2), "error=2"),
    ],
)
def test_options_that_cannot_be(
    more: tuple[object, ...], words: str, tmp_path: Path, program: Program
) -> None:
    np.save(tmp_path / "t.npy", np.ones((4, 5, 6)))
    target = ("-o", tmp_path / "f.safetensors")
    assert words in program("decompose", tmp_path / "t.npy", *target, *more).error
    assert listing(tmp_path) == {"t.npy"}


def test_values_and_targets_that_cannot_be(tmp_path: Path, program: Program) -> None:
    target = tmp_path / "f.safetensors"
    for name, array in (("nan", np.full((3, 3), np.nan)), ("row", np.ones(3))):
        np.save(tmp_path / f"{name}.npy", array)
        assert program("decompose", tmp_path / f"{name}.npy", "--rank", 1, "-o", target).error
    np.save(tmp_path / "t.npy", np.ones((3, 3)))
    given = ("decompose", tmp_path / "t.npy", "--rank", 1, "-o")
    assert ".safetensors" in program(*given, tmp_path / "f.npy").error
    assert not target.exists()


def test_inspect_refuses_what_load_refuses(tmp_path: Path, program: Program) -> None:
    target = tmp_path / "f.safetensors"
    f = decomposition.svd(torch.randn(6, 5), rank=2)
    io.save_factors(f, target)
    assert "checksums of the header and of all tensors are right" in program("inspect", target).out
    whole = bytearray(target.read_bytes())
    for at in (60, len(whole) - 20):
        target.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(FileFormatError):
            io.load_factors(target)
        assert "damaged" in program("inspect", target, "--verify").error
    save_first_version({"": f}, target)
    assert "before files of factors had checksums" in program("inspect", target, "--verify").out
    assert not json.loads(program("inspect", target, "--verify", "--json").out)["verified"]


def test_nothing_is_replaced_without_force(tmp_path: Path, program: Program) -> None:
    np.save(tmp_path / "t.npy", np.eye(4))
    target = tmp_path / "f.safetensors"
    given = ("decompose", tmp_path / "t.npy", "--rank", 1, "-o", target)
    target.write_bytes(before := b"mine")
    assert "--force" in program(*given).error
    os.mkfifo(tmp_path / "pipe.safetensors")
    for force in ((), ("--force",)):
        error = program(*given[:-1], tmp_path / "pipe.safetensors", *force).error
        assert "is no file" in error
    assert target.read_bytes() == before
    assert program(*given, "--force").code == 0
    assert io.load_factors(target).rank == 1


def test_inspect_of_foreign_files(tmp_path: Path, program: Program) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert "no model file of tensorlrf" in program("inspect", tmp_path / "a.safetensors").error
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 20)
    assert "damaged" in program("inspect", tmp_path / "cut.safetensors").error
    assert "is not a file" in program("inspect", tmp_path).error
