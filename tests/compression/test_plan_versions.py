"""A plan stores every option and its version; one of an older version means what it meant then."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf import Plan, plan
from tensorlrf.compression.methods import config_of, method_from_dict, words
from tensorlrf.compression.plan._versions import LEFT_OUT, METHODS, VERSION, method_of, recipe_of
from tensorlrf.decomposition.methods import names
from tensorlrf.errors import ArgumentError, FileFormatError

NET = nn.Sequential(nn.Linear(12, 16), nn.Conv2d(8, 8, 3))


def text_of(version: Any, method: dict[str, Any]) -> str:
    """A plan of that version in which the first layer has that method."""
    values = json.loads(plan(NET, method={"0": tensorlrf.SVD(rank=2), "*": None}).to_json())
    values["version"] = version
    if version in (1, 2, None):
        for later in ("keep_total", "keep_bytes", "keep_flops", "keep_latency", "allotment"):
            del values[later]
    if version in (1, 2, 3, 4, None):
        del values["folded"]
    values["layers"][0]["method"] = method
    return json.dumps(values)


@pytest.mark.parametrize("word", words())
def test_a_plan_stores_every_option(word: str) -> None:
    options = {"leaf": 4} if word == "hierarchical" else {}
    net, include = NET, []
    if word not in names("linear"):  # but of tables
        net, include = nn.Sequential(nn.Embedding(64, 8)), ["embeddings"]
    made = plan(net, method=config_of(word)(**options), error=0.3, include=include)
    values = json.loads(made.to_json())
    assert values["version"] == VERSION
    for row, layer in zip(made.layers, values["layers"], strict=True):
        if row.method is not None:
            options = {f.name for f in fields(row.method)}
            assert set(layer["method"]) == {"name", *options}
    assert Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize("word", LEFT_OUT)
def test_what_version_1_left_out_is_filled_and_no_more(word: str) -> None:
    """No default of today is asked for, so that none of them can change what a plan means."""
    full = method_of(1, {"name": word})
    assert set(full) == {"name", *(f.name for f in fields(config_of(word)))}
    assert method_of(VERSION, full) == full
    cp: dict[str, Any] = {"init": "random", "solver": "als"}
    candidates = tensorlrf.SVD(), tensorlrf.Tucker(), tensorlrf.CP(**cp)
    then: dict[str, dict[str, Any]] = {
        "tr": {"n_iter_max": 30, "tol": 1e-4}, "cp": cp, "auto": {"candidates": candidates},
    }  # fmt: skip
    # The others are as they were.
    assert method_from_dict(full) == config_of(word)(**then.get(word, {}))
    given = method_of(1, {"name": word, "rank": 0.5, "n_iter_max": 7})
    assert (given["rank"], given.get("n_iter_max")) == (0.5, 7)


@pytest.mark.parametrize("version", [1, None])
def test_the_old_word_is_read_where_it_was_the_word(version: int | None) -> None:
    """A text without a version is none of today."""
    old = {"name": "svd", "rank": 2, "method": "eigh"}
    text = text_of(version, old)
    if version is None:
        text = text.replace('"version": null, ', "")
    (row,) = Plan.from_json(text).factored
    assert row.method == tensorlrf.SVD(rank=2, solver="eigh")


@pytest.mark.parametrize(
    ("version", "word", "words"),
    [
        (VERSION, "method", "method='eigh' of method 'svd' is solver= now; write solver='eigh'"),
        (1, "solver", "solver= is no option of version 1, which has method="),
    ],
)
def test_a_word_of_another_version_is_refused(version: int, word: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=f"plan: layer '0': {words}"):
        Plan.from_json(text_of(version, {"name": "svd", "rank": 2, word: "eigh"}))


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (VERSION + 1, f"version {VERSION + 1}, this is {VERSION}; update tensorlrf"),
        (0, "version 0, which there is not"),
        (True, "version True, which"),
        ("2", "version '2', which"),
    ],
)
def test_versions_that_cannot_be_read(version: Any, words: str) -> None:
    with pytest.raises(FileFormatError, match=words):
        Plan.from_json(text_of(version, {"name": "svd", "rank": 2}))


@pytest.mark.parametrize("version", [1, 2])
def test_before_version_3_ranks_were_uniform(version: int) -> None:
    made = Plan.from_json(text_of(version, {"name": "svd", "rank": 2}))
    assert made.allotment == tensorlrf.compression.Allotment("uniform")
    assert (made.keep_bytes, made.keep_flops, made.keep_latency) == (None, None, None)
    assert Plan.from_json(made.to_json()) == made


def test_what_a_file_says_of_a_layer_is_of_its_version_too(tmp_path: Path) -> None:
    small, _ = tensorlrf.compress(NET, method="svd", keep_params=0.5, progress=False)
    layer = small[0]
    made = layer.recipe
    assert made["version"] == METHODS
    assert method_from_dict(made["method"]).rank == layer.factors.rank
    old = {name: value for name, value in made.items() if name != "version"}
    layer.recipe = {**old, "method": {"name": "svd", "rank": 3, "method": "eigh"}}
    small[1].recipe = {"of my own": {"name": "svd"}}
    tensorlrf.save(small, tmp_path / "small.safetensors")
    again = tensorlrf.load(tmp_path / "small.safetensors", NET)
    expected = tensorlrf.SVD(rank=3, solver="eigh").to_dict()
    assert again[0].recipe == {**made, "method": expected}
    assert again[1].recipe == small[1].recipe
    assert recipe_of(made) == made
    torch.testing.assert_close(again[0].weight.data, layer.weight.data)
