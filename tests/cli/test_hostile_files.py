"""Checkpoints and arrays made by strangers: taken, or refused in one line."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tensorlrf.cli import _checkpoint
from tensorlrf.compression.checkpoint import by_name
from tensorlrf.compression.checkpoint.named_tensors import ancestors_of
from tests.cli.calls import Program
from tests.files.mutants import changed, file_of, parts_of

HALF = ("--keep-params", 0.5)


def outcome(program: Program, *arguments: object) -> bool:
    """Whether the command was refused; nothing else but success may be."""
    done = program(*arguments, "--force")
    assert done.code in (0, 2), done.err
    assert "Traceback" not in done.err
    return done.code == 2


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))])
def test_changed_checkpoints(seed: int, tmp_path: Path, program: Program) -> None:
    tensors = {"a.weight": torch.ones(16, 8), "a.bias": torch.ones(16), "b.weight": torch.eye(4)}
    save_file(tensors, tmp_path / "f.safetensors")
    head, body = parts_of((tmp_path / "f.safetensors").read_bytes())
    draw, refused = random.Random(seed), 0
    path, target = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    for _ in range(25):
        path.write_bytes(file_of(changed(head, draw), body))
        refused += outcome(program, "compress", path, "-o", target, *HALF)
        refused += outcome(program, "decompose", path, "-o", target, "--name", "a.weight")
    assert refused > 20


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_changed_arrays(seed: int, tmp_path: Path, program: Program) -> None:
    np.save(tmp_path / "k.npy", np.ones((6, 5)))
    data, draw, refused = (tmp_path / "k.npy").read_bytes(), random.Random(seed), 0
    for _ in range(60):
        mutant = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            mutant[draw.randrange(130)] = draw.choice([draw.randrange(256), *b"9(,'"])
        (tmp_path / "k.npy").write_bytes(mutant)
        given = ("decompose", tmp_path / "k.npy", "-o", tmp_path / "o.safetensors", "--rank", 1)
        refused += outcome(program, *given)
    assert refused > 20


@pytest.mark.parametrize(
    "shape", [f"({1 << 40},)", f"({1 << 62}, 4)", "(-1, 5)", "(" * 150 + ")" * 150, "9" * 5000]
)
def test_an_array_of_a_shape_that_it_has_not(shape: str, tmp_path: Path, program: Program) -> None:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = len(head).to_bytes(2, "little")
    (tmp_path / "k.npy").write_bytes(b"\x93NUMPY\x01\x00" + size + head + bytes(96))
    given = ("decompose", tmp_path / "k.npy", "-o", tmp_path / "o.safetensors", "--rank", 1)
    assert outcome(program, *given)


@pytest.mark.parametrize("name", ["." * 70, "x." * 2000 + "weight", f"layers.{'9' * 5000}.weight"])
def test_names_that_make_no_modules(name: str, tmp_path: Path, program: Program) -> None:
    save_file({name: torch.ones(2, 2), "b.weight": torch.eye(4)}, tmp_path / "f.safetensors")
    given = ("compress", tmp_path / "f.safetensors", "-o", tmp_path / "o.safetensors", *HALF)
    assert "make no modules" in program(*given).error


def test_each_name_of_a_checkpoint_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def counted(name: str) -> Iterator[str]:
        looks.append(name)
        return ancestors_of(name)

    monkeypatch.setattr(by_name, "ancestors_of", counted)
    number = 2000
    tensors = {f"layers.{k}.norm": torch.ones(1) for k in range(number)}
    save_file(tensors, tmp_path / "f.safetensors")
    read = _checkpoint.read_checkpoint(tmp_path / "f.safetensors")
    assert len(list(read.layers.model.named_parameters())) == len(looks) == number
    assert "holds other modules" not in "".join(read.layers.reasons.values())
