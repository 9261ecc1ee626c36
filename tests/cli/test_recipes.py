"""`--recipe` says what options would, a plan is written as a recipe, and what is wrong with one is
a line."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import pytest

import tensorlrf
from tensorlrf import Recipe
from tensorlrf.compression.recipe.keys import Texts, keys
from tensorlrf.errors import ArgumentError
from tests.cli.calls import Program, cnn, save_state
from tests.cli.folders import gpt2_folder, text_file


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return save_state(cnn(), tmp_path / "net.safetensors")


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_recipe_is_the_options_that_it_says(program: Program, net: Path, tmp_path: Path) -> None:
    recipe = written(
        tmp_path / "r.yaml",
        f"keep_params: .4\nmethod: tucker\nskip: '0'\noutput: {tmp_path / 'a.safetensors'}\n"
        "allocation:\n  rule: energy\n  least_share: .05\nrandom_state: 3\n",
    )
    told = program("compress", net, "--recipe", recipe)
    options = (
        *("--keep-params", 0.4, "--method", "tucker", "--skip", "0", "--allocation", "energy"),
        *("--least-share", 0.05, "--seed", 3, "-o", tmp_path / "b.safetensors"),
    )
    assert (told.code, told.err) == (0, "")
    assert program("compress", net, *options).code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_options_take_the_place_of_keys(program: Program, net: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", "keep_params: .9\nskip: ['0']\nmethod: kron\n")
    given = ("compress", net, "--recipe", recipe, "--plan-only")
    told = program(*given, "--keep-params", 0.5, "--skip", "", "--method", "svd")
    assert told.code == 0
    assert "keep_params 0.5" in told.out
    assert "skipped" not in told.out
    replaced = {line.partition(" takes the place of ")[0] for line in told.err.splitlines()}
    assert replaced == {"--keep-params", "--method", "--skip"}
    assert "two budgets" in program(*given, "--error", 0.5).error
    least = program(
        "compress", net, "--plan-only", "--yaml", "--least-share", 0.3,
        "--recipe", written(tmp_path / "s.yaml", "keep_params: .5\nallocation: {rule: energy}\n"),
    )  # fmt: skip
    assert least.code == 0


def test_a_plan_is_written_as_a_recipe(program: Program, net: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    made = program("compress", net, "--error", 0.4, "--skip", "0", "--plan-only", "--yaml", "-o", b)
    assert (made.code, made.err) == (0, "")
    recipe = Recipe.from_yaml(made.out)
    assert recipe.values["output"] == str(b)
    assert recipe.values["method"]["*"] is None
    recipe.write(tmp_path / "plan.yaml")
    assert program("compress", net, "--error", 0.4, "--skip", "0", "-o", a).code == 0
    assert program("compress", net, "--recipe", tmp_path / "plan.yaml").code == 0
    small, again = (tensorlrf.load(path, cnn()) for path in (a, b))
    wanted = small.state_dict()
    assert wanted.keys() == again.state_dict().keys()
    assert all(wanted[k].equal(t) for k, t in again.state_dict().items())


def test_a_recipe_with_texts_and_what_has_no_option(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text = tmp_path / "gpt2", text_file(tmp_path / "news.txt")
    gpt2_folder(folder)
    recipe = Recipe(
        {
            "keep_params": 0.7,
            "method": {"*.mlp.*": {"name": "svd", "metric": "diagonal"}, "*": "svd"},
            "calibration": {"text": str(text), "tokens": 32, "batch_size": 4},
            "allocation": "uniform",
            "metric": "outputs",
            "target": "prefix",
            "batch_norm": False,
            "groups": "documents",
        }
    )
    recipe.write(tmp_path / "r.yaml")
    called: list[dict[str, Any]] = []

    @wraps(tensorlrf.apply)
    def apply(*_: Any, **given: Any) -> None:
        called.append(given)
        raise ArgumentError("that is all")

    monkeypatch.setattr(tensorlrf.cli._compress, "apply", apply)
    told = program("compress", folder, "-o", tmp_path / "a", "--recipe", tmp_path / "r.yaml")
    assert told.error == "error: that is all"
    (given,) = called
    said = {key: given[key] for key in ("metric", "target", "batch_norm")}
    assert said == {"metric": "outputs", "target": "prefix", "batch_norm": False}
    assert len(given["groups"]) == len(given["calibration"])
    assert given["calibration"][0]["input_ids"].shape[0] <= 4
    made = program("compress", folder, "--recipe", tmp_path / "r.yaml", "--plan-only", "--yaml")
    again = Recipe.from_yaml(made.out)
    assert again.values["calibration"] == recipe.values["calibration"]
    assert again.values["method"]["transformer.h.0.mlp.c_fc"].metric == "diagonal"
    assert again.values["batch_norm"] is False
    assert "keep_params" not in again.values
    assert "allocation" not in again.values


def test_stream_takes_what_it_has_options_for(program: Program, net: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", "keep_params: .5\nmethod: {'5': svd, '*': null}\n")
    out = tmp_path / "out"
    assert program("compress", net, "-o", out, "--stream", "--recipe", recipe, "--json").code == 0
    recipe.write_text("keep_params: .5\nbatch_norm: false\n")
    refused = program("compress", net, "-o", tmp_path / "x", "--stream", "--recipe", recipe)
    assert "batch_norm: is not for --stream" in refused.error


def test_every_key_is_an_option_or_of_python(program: Program) -> None:
    """The words of a recipe are those of the command line."""
    helped = program("compress", "--help").out
    words = {key for key in keys() if f"--{key.replace('_', '-')} " not in helped}
    assert words == {"calibration", "random_state", "batch_norm", "objective", "progress"}
    assert all(f"--{key.replace('_', '-')} " in helped for key in vars(Texts()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keep_params: .5\nkeep_parms: .5\n", "r.yaml, line 2: keep_parms: there is no such key"),
        ("random_state: null\n", "random_state: null is for Recipe.compress"),
        ("keep_params: 2\n", "r.yaml, line 1: keep_params: keep_params=2"),
    ],
)
def test_what_is_wrong_is_one_line(
    program: Program, net: Path, tmp_path: Path, text: str, words: str
) -> None:
    recipe = written(tmp_path / "r.yaml", text)
    assert words in program("compress", net, "--recipe", recipe).error
    assert not list(tmp_path.glob("*small*"))


def test_yaml_is_for_plans(program: Program, net: Path, tmp_path: Path) -> None:
    given = ("compress", net, "--keep-params", 0.5, "--yaml")
    assert "--yaml is for --plan-only" in program(*given, "-o", tmp_path / "x.safetensors").error
    assert "--yaml is for --plan-only" in program(*given, "--plan-only", "--json").error
    assert "is no file" in program("compress", net, "--recipe", tmp_path / "none.yaml").error
