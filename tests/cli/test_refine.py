"""Refinement, sensitivities and groups, from a shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tensorlrf
from tensorlrf.cli._texts import batches_of, read_labels
from tensorlrf.errors import ArgumentError
from tests.cli.calls import Program, cnn, listing, save_state
from tests.cli.folders import bert_folder, text_file, tokenizer
from tests.cli.test_texts import Model

TEXT = ("--tokens", 16, "--batch-size", 8, "--max-batches", 4)
HALF = ("--keep-params", 0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that tests only read."""
    folder = tmp_path_factory.mktemp("models")
    bert_folder(folder / "bert")
    text_file(folder / "news.txt")
    tensorlrf.save(
        tensorlrf.compress(tensorlrf_model(folder / "bert"), keep_params=0.5)[0], folder / "small"
    )
    return folder


def tensorlrf_model(folder: Path) -> object:
    import transformers

    return transformers.AutoModel.from_pretrained(folder).eval()


def test_a_folder_is_refined_and_a_journal_gives_the_same_at_once(
    program: Program, made: Path, tmp_path: Path
) -> None:
    given = (made / "small", made / "bert", "--text", made / "news.txt", *TEXT)
    more = ("--steps", 8, "--loss", "relative", "--journal", tmp_path / "course")
    picture, page = tmp_path / "curve.svg", tmp_path / "curve.html"
    drawn = ("--plot", picture, "--html", page)
    done = program("refine", *given, *more, "-o", tmp_path / "one", *drawn)
    assert done.code == 0, done.err
    assert "refinement: held-out loss" in done.out
    assert "is written" not in done.err
    assert picture.stat().st_size > 1000
    assert "<h1>small, refined</h1>" in page.read_text(encoding="utf-8")
    again = program("refine", *given, *more, "-o", tmp_path / "two", "--json")
    report = tensorlrf.Refinement.from_json(again.out)
    assert report.steps == 8
    assert report.after is not None
    assert report.before is not None
    assert report.after <= report.before
    one, two = (tensorlrf.load(tmp_path / name) for name in ("one", "two"))
    assert str(one) == str(two) == str(tensorlrf.load(made / "small"))
    assert program("inspect", tmp_path / "one", "--verify").code == 0


def test_sensitivities_and_plans_go_on_from_a_journal(
    program: Program, made: Path, tmp_path: Path
) -> None:
    given, course = (made / "bert", "--text", made / "news.txt", *TEXT, "--json"), tmp_path / "c"
    one, two = (
        program("sensitivity", *given, "--journal", course / "layers").out for _ in range(2)
    )
    assert one == two
    assert tensorlrf.Sensitivity.from_json(one).rule == "fisher"
    other = program("sensitivity", *given, "--journal", course / "layers", "--rule", "energy")
    assert "rule was 'auto', is 'energy'" in other.error
    plans = [
        program("compress", *given, *HALF, "--plan-only", *more).out
        for more in ((), ("--journal", course / "plan"), ("--journal", course / "plan"))
    ]
    assert plans[0] == plans[1] == plans[2]
    assert listing(course) == {
        "layers", "layers/measured.journal", "layers/directions-0.safetensors",
        "plan", "plan/measured.journal", "plan/directions-0.safetensors",
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(plans[0])
    for options, says in (
        (("--stream", *HALF), "--journal is not for --stream"),
        (("--plan", tmp_path / "plan.json"), "leave out --journal"),
    ):
        done = program(
            "compress", made / "bert", "-o", tmp_path / "o", "--journal", course, *options
        )
        assert says in done.error


def test_phases_and_groups(program: Program, made: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join("abcd"[k % 4] for k in range(40)))
    given = (made / "small", made / "bert", "--text", made / "news.txt", "-o", tmp_path / "out")
    for groups in ("documents", tmp_path / "labels.txt"):
        done = program(
            "refine", *given, *TEXT, "--steps", 4, "--phases", "local,global", "--groups", groups,
            "--force", "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        phases = {one.phase for one in tensorlrf.Refinement.from_json(done.out).curve}
        assert phases == {"given", "local", "global"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "bert", "--text", "news.txt"), "nowhere is not there"),
        (("bert", "bert", "--text", "news.txt"), "bert has no tensorlrf.safetensors"),
        (("small", "nowhere", "--text", "news.txt"), "nowhere is not there"),
        (("small", "news.txt", "--text", "news.txt"), "is a file, and refinement runs the models"),
        (("small", "small", "--text", "news.txt"), "small is compressed already"),
        (("small", "bert"), "--text is missing"),
        (("small", "bert", "--text", "none.txt"), "--text none.txt is not a file"),
        (("small", "bert", "--text", "news.txt"), "give one budget"),
        (("small", "bert", "--text", "news.txt", "--steps", 0), "steps=0"),
        (("small", "bert", "--text", "news.txt", "--steps", 2, "--phases", "all"), "'all'"),
        (("small", "bert", "--text", "news.txt", "--steps", 2, "--loss", "mse"), "mse"),
        (("small", "bert", "--text", "news.txt", "--steps", 2, "--journal", "news.txt"), "news"),
        (("small", "bert", "--text", "news.txt", "--steps", 2, "--groups", "x"), "--groups x is"),
    ],
    ids=str,
)
def test_what_cannot_be_refined_is_told(
    program: Program,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    says: str,
) -> None:
    monkeypatch.chdir(made)
    assert says in program("refine", *arguments, *TEXT, "-o", tmp_path / "out").error
    assert listing(tmp_path) == set()


def test_an_interrupt_writes_the_best_so_far(
    program: Program, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorlrf.compression.refinement import _course

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_course.Course, "_step", interrupt)
    done = program(
        "refine", made / "small", made / "bert", "--text", made / "news.txt", *TEXT, "--steps", 4,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 130
    assert "interrupted" in done.out
    assert tensorlrf.load(tmp_path / "out") is not None


def test_sensitivities_are_a_table_and_a_file_that_compress_reads(
    program: Program, made: Path, tmp_path: Path
) -> None:
    layers = tmp_path / "layers.json"
    given = (made / "bert", "--text", made / "news.txt", *TEXT)
    done = program("sensitivity", *given, "--rule", "fisher", "-o", layers)
    assert done.code == 0, done.err
    assert "sensitivity, fisher" in done.out
    found = tensorlrf.Sensitivity.from_json(layers.read_text())
    told = program("sensitivity", *given, "--rule", "fisher", "--json")
    assert tensorlrf.Sensitivity.from_json(told.out) == found
    plan = program("compress", made / "bert", *HALF, "--sensitivity", layers, "--plan-only")
    assert "fisher" in plan.out
    assert "exists" in program("sensitivity", *given, "-o", layers).error
    assert program("sensitivity", *given, "-o", layers, "--force").code == 0


def test_sensitivities_of_weights_alone(program: Program, tmp_path: Path) -> None:
    file = save_state(cnn(), tmp_path / "net.safetensors")
    done = program("sensitivity", file, "-o", tmp_path / "layers.json", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == json.loads((tmp_path / "layers.json").read_text())
    assert "--text is for folders" in program("sensitivity", file, "--text", "x.txt").error
    assert "fisher" in program("sensitivity", file, "--rule", "fisher").error
    assert "greed" in program("sensitivity", file, "--rule", "greed").error
    wrong = program("sensitivity", file, "-o", tmp_path / "layers.txt")
    assert "are written as .json" in wrong.error
    assert "is not there" in program("sensitivity", tmp_path / "none").error


def test_compress_takes_a_metric_and_refines(program: Program, made: Path, tmp_path: Path) -> None:
    given = ("compress", made / "bert", *HALF, "--text", made / "news.txt", *TEXT, "--json")
    more = ("--metric", "loss", "--refine", 0.5, "--groups", "documents")
    done = program(*given, "-o", tmp_path / "small", *more)
    assert done.code == 0, done.err
    report = tensorlrf.Report.from_json(done.out)
    assert report.metric == "loss"
    assert report.refinement is not None
    done = program(*given, "-o", tmp_path / "other", "--metric", "errors")
    assert "metric='errors' is unknown" in done.error
    for option, value in (("--metric", "loss"), ("--refine", 1), ("--groups", "documents")):
        done = program("compress", made / "bert", *HALF, option, value, "-o", tmp_path / "other")
        assert f"{option} needs --text" in done.error


def test_a_batch_is_of_whole_groups_or_part_of_one() -> None:
    texts = [" ".join(["w0"] * n) for n in (60, 5, 5, 40, 7, 3, 9, 30)]
    labels = list("aabbccde")
    made, groups = batches_of(
        texts, tokenizer(), Model(), tokens=16, batch_size=4, max_batches=None, seed=0,
        labels=labels,
    )  # fmt: skip
    assert groups is not None
    assert len(made) == len(groups)
    assert all(len(own) <= 4 for own in groups)
    of = {label: [own for own in groups if label in own] for label in set(labels)}
    for label, places in of.items():
        assert len(places) == 1 or all(own == [label] for own in places)


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\n")
    assert read_labels(str(tmp_path / "labels.txt"), ["x", "y"]) == ["a", "b"]
    assert read_labels("documents", ["x", "y"]) == ["0", "1"]
    assert read_labels(None, ["x"]) is None
    with pytest.raises(ArgumentError, match="has 2 labels, and --text 3 documents"):
        read_labels(str(tmp_path / "labels.txt"), ["x", "y", "z"])
