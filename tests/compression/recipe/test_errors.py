"""What is wrong with a recipe is told by its file, line and key; what YAML reads in two ways is
refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import tensorlrf
from tensorlrf import Recipe
from tensorlrf.compression.recipe._yaml import LARGEST, MOST_NODES
from tensorlrf.errors import (
    ArgumentError,
    FileFormatError,
    MissingExtraError,
    MissingFileError,
    UnsupportedError,
)

WRONG = [
    # keys
    ("keep_params: .5\nkeep_parms: .4", 2, "keep_parms", "did you mean keep_params"),
    ("method: {name: svd, metrc: full}", 1, "method.metrc", "did you mean metric"),
    ("method:\n  fc*:\n    name: svd\n    rnak: 3", 4, "method.fc*.rnak", "did you mean rank"),
    ("calibration:\n  txt: a.txt", 2, "calibration.txt", "did you mean text"),
    ("allocation: {rul: energy}", 1, "allocation.rul", "did you mean rule"),
    ("evaluate: 'os:system'", 1, "evaluate", "is code or a tensor"),
    ("skip: [a]\nmethod: svd\nskip: [b]", 3, "skip", "stands twice, first in line 1"),
    ("method:\n  a: svd\n  b: cp\n  a: tt", 4, "method.a", "stands twice, first in line 2"),
    ("method: {on: svd}", 1, "method", "the key 'on' must stand in quotes"),
    ("method:\n  [a]: svd", 2, "method", "is no key"),
    ("<<: {skip: a}", 1, "", "the key '<<' must stand in quotes"),
    # types
    ("keep_params: half", 1, "keep_params", "'half' must be a number"),
    ("keep_params: '.5'", 1, "keep_params", "'.5' must be a number"),
    ("keep_params: true", 1, "keep_params", "true must be a number"),
    ("affine: 1", 1, "affine", "1 must be true or false"),
    ("affine:", 1, "affine", "null must be true or false"),
    ("memory_limit: 1.5", 1, "memory_limit", "1.5 must be a whole number"),
    ("skip: [0]", 1, r"skip[0]", "0 must be a string; put it into quotes"),
    ("skip: {a: b}", 1, "skip", "a mapping must be a string or a list"),
    ("method: [svd]", 1, "method", "a list must be a string or a method"),
    ("method: {a: 3}", 1, "method.a", "3 must be a string or a method"),
    ("method:\n  name: kron\n  shapes: [[2, 3]]", 3, "method.shapes", "must be a list of 2"),
    ("allocation:\n- energy", 1, "allocation", "must be a string or a mapping with rule"),
    # what the two versions of YAML read in different ways
    ("skip: on", 1, "skip", "'on' without quotes"),
    ("affine: yes", 1, "affine", "'yes' without quotes"),
    ("random_state: 010", 1, "random_state", "'010' without quotes"),
    ("refine: 1:30", 1, "refine", "'1:30' without quotes"),
    ("memory_limit: 1_000", 1, "memory_limit", "'1_000' without quotes"),
    ("skip: [2026-11-30]", 1, "skip[0]", "'2026-11-30' without quotes"),
    ("keep_params: .inf", 1, "keep_params", "'.inf' without quotes"),
    ("keep_params: 1e999", 1, "keep_params", "'1e999' without quotes"),
    # values
    ("skip: a\nkeep_params: 1.4", 2, "keep_params", "must be a share in (0, 1]"),
    ("keep_params: .5\nkeep_flops: .5", 2, "keep_flops", "are two budgets"),
    ("max_drop: .1\nerror: .5", 2, "error", "are two budgets"),
    ("method: svdd", 1, "method", "choose one of svd"),
    ("method:\n  a: svd\n  b: modulr", 3, "method.b", "choose one of svd"),
    ("method: {a: {name: svd, rank: 0}}", 1, "method.a.rank", "must be a positive int"),
    ("method:\n  name: svd\n  rank: 3\n  error: .1", 4, "method.error", "two budgets"),
    ("method: {name: auto, candidates: [svd, {name: cpp}]}", 1, r"candidates[1].name", "'cpp'"),
    ("method: {name: cp, n_iter_max: 1000000}", 1, "method.n_iter_max", "at most 100000"),
    ("allocation: {rule: energy, least_share: 2}", 1, "allocation.least_share", "in [0, 1)"),
    ("include: [embeddings, tails]", 1, "include", "embeddings and heads"),
    ("target: nowhere", 1, "target", "choose one of original"),
    ("metric: outputs\nloss: none", 2, "loss", "choose one of auto"),
    ("objective: beauty", 1, "objective", "choose one of size"),
    ("calibration: {text: a.txt}\nmoments: m", 2, "moments", "in the place of calibration"),
    ("calibration:\n  text: a.txt\n  tokens: 0", 3, "calibration.tokens", "at least 1"),
    ("refine: -1", 1, "refine", "above 0"),
    ("random_state: 99999999999999999999", 1, "random_state", "random_state=9999"),
    ("holdout: 2", 1, "holdout", "holdout=2"),
    # YAML
    ("keep_params: .5\n\tskip: a", 2, "", "indent by spaces, not by tabs"),
    ("keep_params: [.5", 1, "", "this is no YAML"),
    ("keep_params: .5\n skip: a", 2, "", "this is no YAML"),
    ("skip: &a [b]", 1, "skip", "&a is an anchor"),
    ("skip: *a", 1, "skip", "*a is an alias"),
    ("skip: !!python/object/apply:os.system [ls]", 1, "skip", "is a tag"),
    ("skip: a\n---\nskip: b", 2, "", "a second document"),
    ("skip: a\nmethod: \x00", 2, "", "is not for YAML"),
    ("- keep_params", 1, "", "must be a mapping"),
    ("", 1, "", "there is nothing in it"),
    ("# nothing\n", 1, "", "there is nothing in it"),
    ("skip: " + "[" * 40 + "]" * 40, 1, "skip" + "[0]" * 15, "nested too deeply"),
]


@pytest.mark.parametrize(("text", "line", "key", "why"), WRONG, ids=[w[0][:30] for w in WRONG])
def test_an_error_names_file_line_and_key(text: str, line: int, key: str, why: str) -> None:
    with pytest.raises(FileFormatError) as caught:
        Recipe.from_yaml(text, "my.yaml")
    said = str(caught.value)
    assert said.startswith(f"my.yaml, line {line}: "), said
    if key:
        assert re.match(rf"my.yaml, line \d+: [^:]*{re.escape(key)}: ", said), said
    assert why in said


def test_what_is_large_or_would_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = zip("abcd", "bcde", strict=True)
    bomb = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in pairs)
    with pytest.raises(FileFormatError, match=r"line 1: a: &a is an anchor"):
        Recipe.from_yaml(bomb, "my.yaml")
    with pytest.raises(FileFormatError, match="more than 1,048,576"):
        Recipe.from_yaml("#" * (LARGEST + 1), "my.yaml")
    assert MOST_NODES == 20_000  # two thousand layers, at ten each
    monkeypatch.setattr("tensorlrf.compression.recipe._yaml.MOST_NODES", 100)
    with pytest.raises(FileFormatError, match="line 2: there are more than 100 values"):
        Recipe.from_yaml("skip:\n- [" + "a, " * 100 + "]", "my.yaml")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none.yaml.* is no file"):
        Recipe.read(tmp_path / "none.yaml")
    with pytest.raises(MissingFileError, match="is no file"):
        Recipe.read(tmp_path)
    (tmp_path / "r.yaml").write_bytes(b"keep_params: .5\nskip: \xff")
    with pytest.raises(FileFormatError, match=r"r.yaml, line 2: this is no UTF-8 text"):
        Recipe.read(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_bytes("\ufeffskip: é".encode())
    recipe = Recipe.read(tmp_path / "r.yaml")
    assert recipe == Recipe({"skip": "é"})
    with pytest.raises(tensorlrf.errors.FileError, match="exists"):
        recipe.write(tmp_path / "r.yaml")


def test_without_the_package_an_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tensorlrf\[recipe\]'"):
        Recipe.from_yaml("keep_params: .5")
    with pytest.raises(MissingExtraError, match="PyYAML"):
        str(Recipe({"keep_params": 0.5}))


def test_values_of_python_that_no_text_can_say() -> None:
    with pytest.raises(ArgumentError, match=r"cannot say .* a Tensor"):
        Recipe({"example": torch.ones(2)})
    with pytest.raises(ArgumentError, match="keep_parms: there is no such key"):
        Recipe({"keep_parms": 0.5})
    with pytest.raises(ArgumentError, match="a recipe cannot say nan"):
        Recipe({"keep_params": float("nan")})
    with pytest.raises(ArgumentError, match="pass a mapping"):
        Recipe("keep_params: .5")  # type: ignore[arg-type]  # a text, as one may try


def test_a_method_of_a_package_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_asked_for(*_: object, **__: object) -> None:
        raise UnsupportedError("a recipe has nothing imported")

    monkeypatch.setattr("tensorlrf.compression.methods.find", none_asked_for)
    for text in ("method: columns", "method: {a: columns}", "method: {name: columns}"):
        with pytest.raises(FileFormatError, match="'columns' is unknown"):
            Recipe.from_yaml(text)
