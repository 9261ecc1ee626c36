"""`bench` and `compare` on folders, files and plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tensorlrf.compression.benchmark import _bench
from tensorlrf.ops import time_calls
from tests.cli.calls import Program, cnn, save_state
from tests.cli.folders import bert_folder, llama_folder, text_file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that tests only read, dense and compressed."""
    from tensorlrf.cli import main

    folder = tmp_path_factory.mktemp("models")
    bert_folder(folder / "bert", torch.bfloat16)
    llama_folder(folder / "llama")
    text_file(folder / "held_out.txt", lines=8)
    save_state(cnn(), folder / "net.safetensors")
    half = ("--keep-params", ".5", "--json")
    for name in ("bert", "llama"):
        assert (
            main(["compress", str(folder / name), "-o", str(folder / f"{name}-small"), *half]) == 0
        )
    net = ("compress", str(folder / "net.safetensors"), "-o")
    assert main([*net, str(folder / "small.safetensors"), *half]) == 0
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)

    def quickly(calls: Any, **options: Any) -> Any:
        return time_calls(calls, **{**options, "seconds": 1e-3})

    monkeypatch.setattr(_bench, "time_calls", quickly)
    return made


SIZES = ("--tokens", 16, "--batch-size", 1, "--batch-size", 3)


def test_two_folders_are_timed_in_turn(program: Program, here: Path) -> None:
    options = (*SIZES, "--new-tokens", 4)
    done = program("bench", "llama-small", "--against", "llama", *options, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [row["what"] for row in told["rows"]] == ["forward", "decoding"] * 2
    assert [row["tokens"] for row in told["rows"]] == [16, 4, 48, 12]
    assert all(row["ratio"]["pairs"] >= 6 for row in told["rows"])
    assert told["bytes"] < told["against_bytes"]
    assert told["dtypes"] == told["against_dtypes"] == ["float32"]


def test_a_dense_one_is_in_the_dtype_of_the_other(program: Program, here: Path) -> None:
    """`compress` makes float32 of bfloat16, which alone would be faster or slower."""
    done = program("bench", "bert-small", "--against", "bert", "--batch-size", 1)
    assert done.code == 0, done.err
    assert "other dtypes" not in done.out
    assert "decoding" not in done.out
    assert "input_ids (1, 64)" in done.out  # of 128, as many as it has positions for
    assert "in turn, medians" in done.out


def test_inputs_may_be_given(program: Program, here: Path, tmp_path: Path) -> None:
    data = tmp_path / "inputs.safetensors"
    save_file({"input_ids": torch.ones(2, 5, dtype=torch.long)}, data)
    done = program("bench", "bert", "--data", data, "--device", "cpu", "--json")
    told = json.loads(done.out)
    assert [row["input"] for row in told["rows"]] == ["input_ids (2, 5)"]
    assert told["rows"][0]["ratio"] is None
    told = json.loads(program("compare", "bert", "bert-small", "--data", data, "--json").out)
    assert told["outputs"]["rows"] == 12  # tokens, and what the pooler makes of each row


def test_two_models_are_compared(program: Program, here: Path, tmp_path: Path) -> None:
    text = ("--text", "held_out.txt", "--tokens", 16)
    done = program("compare", "llama", "llama-small", *text, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert 0 < told["outputs"]["agreement"] <= 1
    assert told["outputs"]["kl"] > 0
    factored = [row for row in told["layers"] if row["b"]["format"] == "lowrank"]
    assert len(factored) == 14
    assert all(row["difference"] > 0 for row in factored)
    done = program("compare", "llama", "llama")
    assert "layers are alike" in done.out
    done = program("compare", "small.safetensors", "small.safetensors", "--json")
    assert all(row["a"] == row["b"] for row in json.loads(done.out)["layers"])
    plan = tmp_path / "plan.json"
    plan.write_text(
        program("compress", "net.safetensors", "--plan-only", "--keep-params", 0.3, "--json").out
    )
    done = program("compare", plan, "small.safetensors")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("bench", "none"), "none is not there"),
        (("bench", "net.safetensors"), "is a file, of which the architecture is not known"),
        (("bench", "bert", "--against", "none"), "none is not there"),
        (("bench", "bert", "--data", "x.npy"), "--data x.npy must be a .safetensors"),
        (("bench", "bert", "--data", "x.safetensors"), "--data x.safetensors is not a file"),
        (("bench", "bert", "--data", "net.safetensors"), "are no names of inputs"),
        (("bench", "bert", "--data", "net.safetensors", "--tokens", 9), "--tokens is of drawn"),
        (("bench", "bert", "--tokens", 65), "--tokens 65 is above the 64 positions"),
        (("bench", "bert", "--device", "tape"), "device='tape' is not to be had here"),
        (("bench", "bert", "--batch-size", 0), "--batch-size 0 must be at least 1"),
        (("bench", "bert", "--tokens", 8, "--seconds", 0), "seconds=0.0 must be above zero"),
        (("bench", "llama", "--tokens", 8, "--new-tokens", 90), "above the 64 positions"),
        (("compare", "bert", "none"), "none is not there"),
        (("compare", "bert", "net.safetensors", "--text", "held_out.txt"), "is a file, of which"),
        (("compare", "bert", "bert-small", "--tokens", 8), "--tokens needs --text"),
        (("compare", "bert", "bert-small", "--text", "none.txt"), "--text none.txt is not a file"),
        (("compare", "bert", "held_out.txt"), "held_out.txt"),
        (("compare", "bert", "llama", "--text", "held_out.txt", "--tokens", 8), "are of shape"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    program: Program, here: Path, arguments: tuple[object, ...], says: str
) -> None:
    assert says in program(*arguments).error


def test_a_json_of_something_else(program: Program, here: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert "text is no report" in program("compare", path, path).error
