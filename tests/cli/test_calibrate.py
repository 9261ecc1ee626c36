"""`tensorlrf calibrate`, and `compress --moments`: from text to moments to a smaller model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import tensorlrf
from tensorlrf.compression import Moments
from tests.cli.calls import Program
from tests.cli.folders import bert_folder, text_file


def test_from_text_to_a_smaller_model(tmp_path: Path, program: Program) -> None:
    model, text = bert_folder(tmp_path / "bert"), text_file(tmp_path / "news.txt", 200)
    moments = tmp_path / "moments.safetensors"
    call = ("calibrate", model, "--text", text, "--tokens", "16", "--batch-size", "8")
    done = program(*call, "-o", moments)
    assert done.code == 0, done.err
    assert "written to" in done.out
    assert "as encoder.layer.0.attention.self.query" in done.out
    assert "exists" in program(*call, "-o", moments).error
    told = json.loads(program(*call, "-o", moments, "--force", "--json").out)
    assert told["batches"] == Moments.load(moments).batches
    twice = tmp_path / "twice.safetensors"
    assert program(*call, "--add", moments, "-o", twice).code == 0
    assert Moments.load(twice).batches == 2 * told["batches"]
    assert "is what is to be added" in program(*call, "--add", twice, "-o", twice, "--force").error

    by_model = program(
        "compress", model, "-o", tmp_path / "small", "--keep-params", ".5", "--moments", moments
    )
    assert by_model.code == 0, by_model.err
    assert "batches in given moments, target independent" in by_model.out
    by_layers = program(
        "compress", model, "-o", tmp_path / "other", "--keep-params", ".5", "--stream",
        "--moments", moments,
    )  # fmt: skip
    assert by_layers.code == 0, by_layers.err
    one, two = (tensorlrf.load(tmp_path / name) for name in ("small", "other"))
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():  # float32, twelve layers
        torch.testing.assert_close(
            one(input_ids=ids)[0], two(input_ids=ids)[0], rtol=1e-3, atol=1e-4
        )


def test_what_does_not_go_together_is_told(tmp_path: Path, program: Program) -> None:
    model, text = bert_folder(tmp_path / "bert"), text_file(tmp_path / "news.txt")
    moments = tmp_path / "moments.safetensors"
    call = ("compress", model, "-o", tmp_path / "small", "--keep-params", ".5")
    assert (
        "--moments is in the place of --text"
        in program(*call, "--moments", moments, "--text", text).error
    )
    assert "is not a file" in program(*call, "--moments", moments).error
    assert "--refine needs --text" in program(*call, "--moments", moments, "--refine", "1").error
    assert "give such a name" in program("calibrate", model, "--text", text, "-o", "m.pt").error
    assert (
        "no folder with a model" in program("calibrate", text, "--text", text, "-o", moments).error
    )
    missing = program(
        "calibrate", model, "--text", text, "--tokens", "16", "--add", tmp_path / "no.safetensors",
        "-o", moments,
    )  # fmt: skip
    assert "is not a file" in missing.error
