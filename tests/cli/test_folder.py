"""A folder with a model of transformers to another."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorlrf
from tensorlrf.cli._huggingface import read_model, read_tokenizer, write_model
from tensorlrf.cli._texts import batches_of, read_texts
from tensorlrf.files.replace import new_part
from tensorlrf.nn import FactoredLayer
from tests.cli.calls import Program, listing
from tests.cli.folders import bert_folder, gpt2_folder, llama_folder, text_file
from tests.compression.checkpoint.saved import equal, same
from tests.files.kills import killed

HALF = ("--keep-params", 0.5)
SMALL = ("--tokens", 32, "--batch-size", 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that tests only read."""
    folder = tmp_path_factory.mktemp("models")
    bert_folder(folder / "bert")
    llama_folder(folder / "llama")
    gpt2_folder(folder / "gpt2")
    text_file(folder / "news.txt")
    return folder


@pytest.fixture
def bert(made: Path, tmp_path: Path) -> Path:
    """A folder that a test may change."""
    return Path(shutil.copytree(made / "bert", tmp_path / "bert"))


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        y: torch.Tensor = model(torch.arange(4, 28).reshape(2, 12))[0]
    return y


@pytest.mark.parametrize(
    ("name", "more", "options"),
    [
        ("bert", (), {}),
        ("bert", ("--target", "original", "--affine"), {"target": "original", "affine": True}),
        ("llama", ("--skip", ""), {"skip": []}),
        ("gpt2", ("--max-batches", 3), {}),
        pytest.param(
            "bert", ("--allocation", "auto"), {"allocation": "auto"}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_folder_is_what_compress_gives(
    name: str,
    more: tuple[str, ...],
    options: dict[str, Any],
    made: Path,
    tmp_path: Path,
    program: Program,
) -> None:
    source, text, target = made / name, made / "news.txt", tmp_path / "small"
    state = torch.random.get_rng_state()
    done = program("compress", source, "-o", target, *HALF, "--text", text, *SMALL, *more, "--json")
    assert done.code == 0
    assert torch.equal(state, torch.random.get_rng_state())
    thin = name == "gpt2"
    assert done.err.count("\n") == thin
    assert done.err.startswith("warning: calibration is thin") == thin
    report = tensorlrf.compression.Report.from_json(done.out)
    again = tensorlrf.load(target)

    model = read_model(source, "float32")
    batches, _ = batches_of(
        read_texts([text]), read_tokenizer(source), model, tokens=32, batch_size=4,
        max_batches=3 if thin else None, seed=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        if thin:
            warnings.simplefilter("ignore", tensorlrf.errors.CalibrationWarning)
        ours, told = tensorlrf.compress(model, keep_params=0.5, calibration=batches, **options)
    assert equal(output(again), output(ours))
    assert same(again, ours)
    assert report == told
    assert report.held_out == max(1, len(batches) // 10)
    assert all(row.data_aware for row in report.layers if row.factored)
    assert any(isinstance(m, FactoredLayer) for m in again.modules())


def test_a_budget_of_flops_is_counted_on_the_text(made: Path, program: Program) -> None:
    text = ("--text", made / "news.txt", *SMALL)
    done = program("compress", made / "bert", "--plan-only", "--keep-flops", 0.5, *text, "--json")
    assert (done.code, done.err) == (0, "")
    allotment = tensorlrf.Plan.from_json(done.out).allotment
    assert allotment.dense_cost is not None
    assert allotment.cost is not None
    assert 0 < allotment.cost <= 0.5 * allotment.dense_cost
    for more in (("--keep-flops", 0.5), ("--keep-latency", 0.5), ("--allocation", "measured")):
        wrong = program("compress", made / "bert", "--plan-only", *more)
        assert "needs --text, from which the inputs come" in wrong.error


def test_small_files_go_along_and_weights_do_not(
    made: Path, tmp_path: Path, program: Program
) -> None:
    from transformers import AutoTokenizer

    target = tmp_path / "small"
    done = program("compress", made / "llama", "-o", target, *HALF)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == f"written to {target}"
    left = {name for name in listing(made / "llama") if name.startswith((".cache", "onnx"))}
    left |= {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"}
    ours = {"tensorlrf.safetensors", "model.safetensors"}
    assert listing(target) == listing(made / "llama") - left | ours
    assert listing(tmp_path) == {"small", "small.html", *(f"small/{n}" for n in listing(target))}
    assert (target / "2_Dense" / "model.safetensors").read_bytes() == b"of another module"
    again: Any = tensorlrf.load(target)
    assert again.generation_config.eos_token_id == 3
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(target)("w0 w1")["input_ids"] == [2, 4, 5, 3]
    seen = json.loads(program("inspect", target, "--verify", "--json").out)
    assert seen["verified"]
    assert len(seen["layers"]) == 14
    assert "compressed already" in program("compress", target, "-o", tmp_path / "x", *HALF).error


def test_a_plan_for_a_folder(made: Path, tmp_path: Path, program: Program) -> None:
    plan = program("compress", made / "bert", *HALF, "--plan-only", "--json")
    (tmp_path / "plan.json").write_text(plan.out)
    target = tmp_path / "small"
    follow = ("-o", target, "--plan", tmp_path / "plan.json")
    assert program("compress", made / "bert", *follow).code == 0
    assert program("compress", made / "bert", "-o", tmp_path / "direct", *HALF).code == 0
    assert same(tensorlrf.load(target), tensorlrf.load(tmp_path / "direct"))
    assert "another model" in program("compress", made / "gpt2", *follow, "--force").error


def test_dtypes(tmp_path: Path, program: Program) -> None:
    source = bert_folder(tmp_path / "half", torch.bfloat16)
    done = program("compress", source, "-o", tmp_path / "a", *HALF)
    assert done.code == 0
    assert "bfloat16" in done.err
    assert done.err.count("\n") == 1
    done = program("compress", source, "-o", tmp_path / "b", *HALF, "--dtype", "keep")
    assert (done.code, done.err) == (0, "")
    for name, dtype in (("a", torch.float32), ("b", torch.bfloat16)):
        assert {p.dtype for p in tensorlrf.load(tmp_path / name).parameters()} == {dtype}
    assert (
        "--dtype half" in program("compress", source, *HALF, "--plan-only", "--dtype", "half").error
    )


def test_what_is_there_is_replaced_only_when_asked(
    made: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "small"
    target.mkdir()
    given = ("compress", made / "bert", "-o", target)
    assert program(*given, *HALF).code == 0  # into an empty folder
    before = tensorlrf.load(target)
    assert "--force" in program(*given, *HALF).error
    files = listing(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    refused = program(*given, "--keep-params", 0.3, "--force").error
    assert "No space left" in refused
    assert f"'{target}'" in refused
    monkeypatch.undo()
    assert listing(tmp_path) == files
    assert same(tensorlrf.load(target), before)
    assert program(*given, "--keep-params", 0.3, "--force").code == 0
    assert listing(tmp_path) == files
    assert not same(tensorlrf.load(target), before)


def test_a_rename_that_fails_leaves_the_old_folder(
    made: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "small"
    given = ("compress", made / "bert", "-o", target, *HALF)
    assert program(*given).code == 0
    files, rename = listing(tmp_path), os.rename

    def refuse(source: Any, to: Any) -> None:
        if str(source).endswith(".part"):
            raise OSError(5, "Input/output error")
        rename(source, to)

    monkeypatch.setattr(os, "rename", refuse)
    assert "Input/output error" in program(*given, "--force").error
    assert listing(tmp_path) == files
    tensorlrf.load(target)


def test_a_kill_never_loses_the_old_folder(
    made: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    target = tmp_path / "small"
    given = ("compress", made / "bert", "-o", target)
    assert program(*given, *HALF).code == 0
    old = tensorlrf.load(target)
    shutil.copytree(target, tmp_path / "old")
    names = listing(target)
    assert program(*given, "--keep-params", 0.3, "--force").code == 0
    new = tensorlrf.load(target)

    def prepare() -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(tmp_path / "old", target)
        (target / "more").mkdir()

    seen = []
    for _ in killed(prepare, lambda: write_model(new, made / "bert", target, True), every=11):
        again = tensorlrf.load(target)
        seen.append(same(again, new))
        assert seen[-1] or same(again, old)
        assert {name for name in listing(target) if ".tensorlrf." not in name} in (
            names, {*names, "more"},
        )  # fmt: skip
    assert set(seen) == {True, False}
    assert program(*given, "--keep-params", 0.3, "--force").code == 0
    assert listing(target) == names
    assert listing(tmp_path) == {
        f"{folder}/{name}" for folder in ("small", "old") for name in names
    } | {"small", "small.html", "old"}


def test_a_kill_in_an_empty_folder_is_not_in_the_way(
    made: Path, tmp_path: Path, program: Program
) -> None:
    target = tmp_path / "small"
    target.mkdir()
    given = ("compress", made / "bert", "-o", target, *HALF)
    _, lock = new_part(target, "tensorlrf", as_folder=True)
    os.close(lock)
    _, lock = new_part(tmp_path, "small", as_folder=True)
    os.close(lock)
    assert program(*given).code == 0
    assert listing(tmp_path) == {"small", "small.html", *(f"small/{n}" for n in listing(target))}
    assert not [name for name in listing(target) if name.startswith(".")]


def test_folders_that_are_not_ours_are_never_replaced(
    bert: Path, tmp_path: Path, program: Program
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    given = ("compress", bert, *HALF, "--force", "-o")
    assert "was not written by compress" in program(*given, notes).error
    assert "is a file" in program(*given, notes / "mine.txt").error
    for inside in (bert, bert / "small", tmp_path, bert / ".." / "bert"):
        assert "lie in each other" in program(*given, inside).error
    assert "missing" in program(*given, tmp_path / "nowhere" / "small").error
    assert listing(notes) == {"mine.txt"}


def test_ctrl_c_while_writing(
    made: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    assert program("compress", made / "bert", "-o", tmp_path / "small", *HALF).code == 130
    assert listing(tmp_path) == set()


def test_folders_that_are_no_model(bert: Path, tmp_path: Path, program: Program) -> None:
    def refused() -> str:
        return program("compress", bert, "-o", tmp_path / "small", *HALF).error

    config = bert / "config.json"
    values = json.loads(config.read_text())
    for text, words in (
        ("{", "is no JSON"),
        ("[]", "architectures"),
        (json.dumps({**values, "architectures": []}), "architectures"),
        (json.dumps({**values, "architectures": ["MyModel"]}), "'MyModel' is none"),
        (json.dumps({**values, "architectures": ["AutoModel"]}), "'AutoModel' is none"),
        (json.dumps({**values, "hidden_size": 16}), "cannot load"),
        (json.dumps({**values, "num_hidden_layers": 3}), "encoder.layer.2"),
    ):
        config.write_text(text)
        assert words in refused()
    config.unlink()
    assert "no config.json" in refused()
    config.write_text(json.dumps(values))
    (bert / "pytorch_model.bin").unlink()
    (bert / "model.safetensors.index.json").unlink()
    (bert / "model.safetensors").write_bytes(b"x" * 50)
    assert "damaged or not a safetensors file" in refused()
    (bert / "model.safetensors").unlink()
    assert "has no model.safetensors" in refused()
    assert not (tmp_path / "small").exists()


def test_texts_that_cannot_be(bert: Path, made: Path, tmp_path: Path, program: Program) -> None:
    news = made / "news.txt"

    def refused(*more: object) -> str:
        return program("compress", bert, "-o", tmp_path / "small", *HALF, *more).error

    assert "is not a file" in refused("--text", tmp_path / "none.txt")
    (tmp_path / "blank.txt").write_text(" \n\n")
    assert "no text" in refused("--text", tmp_path / "blank.txt")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    assert "no UTF-8" in refused("--text", tmp_path / "latin.txt")
    assert "64 positions" in refused("--text", news, "--tokens", 65)
    assert "64 positions" in refused("--text", news)
    assert "--batch-size 0" in refused("--text", news, *SMALL, "--batch-size", 0)
    assert "--max-batches 0" in refused("--text", news, *SMALL, "--max-batches", 0)
    assert "target='next'" in refused("--text", news, *SMALL, "--target", "next")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bert / name).unlink()
    assert "tokenizer" in refused("--text", news, *SMALL)


def test_without_transformers_the_extra_is_named(
    made: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    error = program("compress", made / "bert", "-o", tmp_path / "small", *HALF).error
    assert "pip install 'tensorlrf[hf]'" in error
