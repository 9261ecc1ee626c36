"""What a model is worth at every size, and a drop that is asked for, from a shell."""

from __future__ import annotations

from pathlib import Path

import pytest

import tensorlrf
from tensorlrf.cli._evaluate import read_evaluate
from tensorlrf.compression.plan.times import _seconds, _whole
from tests.cli.calls import Program, cnn, save_state
from tests.cli.folders import bert_folder, llama_folder, text_file

METRICS = """
import torch

IDS = torch.arange(4, 28).reshape(4, 6)
wanted = []


def cosine(model):
    found = model(input_ids=IDS).last_hidden_state.mean(1)
    if not wanted:
        wanted.append(found)
    return torch.nn.functional.cosine_similarity(found, wanted[0])


def broken(model):
    raise RuntimeError("no data")


number = 3
"""

TEXT = ("--tokens", 16, "--batch-size", 8, "--max-batches", 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that tests only read."""
    folder = tmp_path_factory.mktemp("models")
    bert_folder(folder / "bert")
    llama_folder(folder / "llama")
    text_file(folder / "news.txt")
    text_file(folder / "held_out.txt", lines=12)
    (folder / "short.txt").write_text("w1 w2 w3")
    (folder / "judged_by.py").write_text(METRICS)
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def test_a_frontier_is_a_table_json_and_a_picture(
    program: Program, here: Path, tmp_path: Path
) -> None:
    picture, page = tmp_path / "frontier.svg", tmp_path / "frontier.html"
    options = ("--text", "news.txt", "--shares", ".8,.4", *TEXT)
    done = program(
        "frontier",
        "bert",
        *options,
        "--evaluate",
        "judged_by:cosine",
        "--plot",
        picture,
        "--html",
        page,
    )
    assert done.code == 0, done.err
    assert "int8" in done.out
    assert picture.stat().st_size > 1000
    assert "<h1>bert, at every size</h1>" in page.read_text()
    done = program("frontier", "bert", *options, "--json")
    found = tensorlrf.Frontier.from_json(done.out)
    assert [point.share for point in found.factored] == [0.8, 0.4]
    assert not any(point.seconds for point in found.points)


def test_times_are_asked_for(program: Program, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((_seconds, "SECONDS"), (_whole, "SECONDS")):
        monkeypatch.setattr(module, name, 0.01)
    options = ("--text", "news.txt", "--shares", ".8,.4", *TEXT, "--example", "--json")
    found = tensorlrf.Frontier.from_json(program("frontier", "bert", *options).out)
    assert all(point.latency for point in found.points if point.kind != "int4")
    assert all(point.predicted_latency for point in found.factored)


def test_a_drop_is_asked_for(program: Program, here: Path, tmp_path: Path) -> None:
    drop = ("--max-drop", 0.3, "--evaluate", "judged_by:cosine", "--text", "news.txt", *TEXT)
    done = program("compress", "bert", "-o", tmp_path / "small", *drop, "--json")
    assert done.code == 0, done.err
    report = tensorlrf.Report.from_json(done.out)
    assert report.quality is not None
    assert report.quality.bound <= 0.3
    assert (tmp_path / "small").is_dir()
    done = program("compress", "bert", *drop, "--plan-only", "--json")
    assert tensorlrf.Plan.from_json(done.out).factored


def test_metrics_of_ours_are_words(program: Program, here: Path, tmp_path: Path) -> None:
    """On text of their own, and where there is none on that of --text, which is told."""
    options = ("--tokens", 16, "--json")
    for folder, word in (("llama", "perplexity"), ("bert", "cosine")):
        out = ("-o", tmp_path / folder, "--keep-params", 0.5)
        done = program("compress", folder, *out, "--evaluate", f"{word}:held_out.txt", *options)
        quality = tensorlrf.Report.from_json(done.out).quality
        assert quality is not None
        assert quality.judged == tensorlrf.compression.Judged(word, word == "cosine")
        # Of 40 words, nearly as likely as each other.
        assert 1 < quality.dense < 100 if word == "perplexity" else 0 < quality.compressed < 1
    look = ("--text", "news.txt", "--shares", ".5", *TEXT, "--allocation", "energy")
    done = program("frontier", "bert", *look, "--evaluate", "cosine")
    assert done.code == 0, done.err
    assert "cosine is of the calibration data" in done.out


def test_a_file_that_is_fitted_to_is_none_of_its_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = read_evaluate("cosine:./held_out.txt")
    assert asked is not None
    assert asked.own_file([here / "news.txt"]) == Path("held_out.txt")
    assert asked.own_file([here / "held_out.txt"]) is None
    assert asked.own_file([here / "news.txt", here / "held_out.txt"]) is not None
    assert "warning: --evaluate cosine:./held_out.txt: that file is in --text" in (
        capsys.readouterr().err
    )


def test_an_encoder_has_no_perplexity(program: Program, here: Path) -> None:
    done = program("frontier", "bert", "--text", "news.txt", *TEXT, "--evaluate", "perplexity")
    assert "evaluate fails on the given model: ArgumentError: the model returns 2" in done.error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--max-drop", 0.1, "--text", "news.txt"), "--max-drop needs --evaluate"),
        (("--max-drop", 0.1, "--evaluate", "judged_by:cosine"), "--max-drop needs --text"),
        (("--evaluate", "judged_by", "--keep-params", 0.5), "one of perplexity, agreement, cosine"),
        (("--evaluate", "cosine", "--keep-params", 0.5), "cosine has nothing to evaluate on"),
        (("--evaluate", "cosine:none.txt", "--keep-params", 0.5), "none.txt is not a file"),
        (("--evaluate", "cosine:", "--keep-params", 0.5), "what follows the colon is not a file"),
        (("--evaluate", "perplexity:short.txt", "--keep-params", 0.5), "3 tokens, fewer than one"),
        (("--evaluate", "cosine:news.txt", "--keep-params", 0.5), "above the 64 positions"),
        (("--evaluate", "nowhere:f", "--keep-params", 0.5), "ModuleNotFoundError"),
        (("--evaluate", "judged_by:f1", "--keep-params", 0.5), "judged_by has no f1"),
        (("--evaluate", "judged_by:number", "--keep-params", 0.5), "evaluate is a int"),
        (("--evaluate", "judged_by:broken", "--keep-params", 0.5), "RuntimeError: no data"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    program: Program, here: Path, tmp_path: Path, arguments: tuple[object, ...], says: str
) -> None:
    assert says in program("compress", "bert", "-o", tmp_path / "x", *arguments).error


def test_files_are_not_judged(program: Program, here: Path, tmp_path: Path) -> None:
    file = save_state(cnn(), tmp_path / "net.safetensors")
    out = ("-o", tmp_path / "x.safetensors", "--keep-params", 0.5)
    done = program("compress", file, *out, "--evaluate", "judged_by:cosine")
    assert "--evaluate runs the model" in done.error
    assert "is a file, and a frontier runs the model" in program("frontier", file).error
    assert "--text is missing" in program("frontier", "bert").error
    assert "is not there" in program("frontier", "nowhere", "--text", "news.txt").error
    done = program("frontier", "bert", "--text", "news.txt", "--shares", "half", *TEXT)
    assert "--shares half must be numbers" in done.error
