"""compress --stream --text: a folder fitted to texts, a block at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tensorlrf
from tests.cli.calls import Program
from tests.cli.folders import llama_folder, text_file

CALL = ("--keep-params", ".5", "--stream")


def test_as_the_model_in_memory(tmp_path: Path, program: Program) -> None:
    source, texts = llama_folder(tmp_path / "in"), text_file(tmp_path / "texts.txt")
    given = ("--text", texts, "--tokens", "24", "--batch-size", "4", "--target", "prefix")
    made = program(
        "compress", source, "-o", tmp_path / "blocks", *CALL, *given, "--holdout", "0",
        "--memory-limit", str(1 << 28), "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    wanted = program(
        "compress", source, "-o", tmp_path / "whole", "--keep-params", ".5", *given,
        "--holdout", "0", "--allocation", "uniform", "--metric", "outputs", "--json",
    )  # fmt: skip
    assert wanted.code == 0, wanted.err
    rows = {row["name"]: row for row in json.loads(wanted.out)["layers"] if row["rank"]}
    told = json.loads(made.out)["layers"]
    assert {row["name"] for row in told} == set(rows)
    for row in told:
        assert row["output_error"] == pytest.approx(rows[row["name"]]["output_error"], rel=1e-4)
    one, other = tensorlrf.load(tmp_path / "blocks"), tensorlrf.load(tmp_path / "whole")
    ids = torch.arange(4, 20, device="cpu")[None]
    with torch.no_grad():  # in float32, with sums over batches in another order
        torch.testing.assert_close(
            one.eval()(ids).logits, other.eval()(ids).logits, rtol=1e-4, atol=1e-4
        )
    again = program("compress", source, "-o", tmp_path / "blocks", *CALL, *given, "--holdout", "0",
                    "--memory-limit", str(1 << 28))  # fmt: skip
    assert "is left as it is" in again.out


def test_what_cannot_be(tmp_path: Path, program: Program) -> None:
    source, texts = llama_folder(tmp_path / "in"), text_file(tmp_path / "texts.txt")
    out = ("-o", tmp_path / "out", *CALL)
    assert "--target needs --text" in program("compress", source, *out, "--target", "prefix").err
    assert "--tokens needs --text" in program("compress", source, *out, "--tokens", "8").err
    wrong = program("compress", source, *out, "--text", texts, "--dry-run")
    assert "--dry-run is of runs by weights" in wrong.err
    few = ("--text", texts, "--tokens", "24")
    wrong = program("compress", source, *out, *few, "--memory-limit", "1000")
    assert "memory_limit=1000 is below what" in wrong.err
    (source / "config.json").unlink()
    wrong = program("compress", source, *out, *few)
    assert "it has no config.json" in wrong.err
    assert not (tmp_path / "out").exists()
