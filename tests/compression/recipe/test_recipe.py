"""A recipe says what `compress` is called with, as a text that reads as the same; one of a plan
makes the very model of the plan."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf import CP, SVD, Allocation, Auto, Kron, Recipe, Tucker
from tensorlrf.compression.plan.budget import BUDGETS
from tensorlrf.compression.recipe.keys import READ_BY_COMMAND, Texts, keys
from tensorlrf.errors import ArgumentError
from tests.compression.checkpoint.saved import same
from tests.compression.networks import set_weights
from tests.draws import generator, seeded32

SHARES = st.floats(1e-6, 1, exclude_min=True)
METHODS = st.one_of(
    st.sampled_from(["svd", "auto", "blr"]),
    st.builds(SVD, metric=st.sampled_from(["full", "diagonal"]), rank=st.integers(1, 2**40)),
    st.builds(CP, rank=st.none() | SHARES, n_restarts=st.integers(1, 9)),
    st.builds(Tucker, rank=st.tuples(st.integers(1, 9), st.integers(1, 9)) | st.none()),
    st.builds(Kron, shapes=st.none() | st.just(((2, 3), (4, 5))), error=st.none() | st.just(1e-5)),
    st.just(Auto(candidates=(SVD(), Kron(tol=1e-9)), rank=0.5)),
)
GLOBS = st.text().filter(lambda text: text != "name")
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    "method": METHODS | st.dictionaries(GLOBS, METHODS | st.none(), min_size=1),
    "skip": st.text() | st.lists(st.text()),
    "include": st.sampled_from(["heads", [], ["embeddings", "heads"]]),
    "target": st.sampled_from(["original", "prefix"]),
    "affine": st.booleans(),
    "batch_norm": st.booleans(),
    "holdout": st.floats(0.01, 0.5),
    "memory_limit": st.none() | st.integers(0, 2**62),
    "allocation": st.sampled_from(["fisher"])
    | st.builds(
        Allocation,
        rule=st.sampled_from(["auto", "energy"]),
        together=st.lists(st.text()).map(tuple),
        weights=st.dictionaries(st.text(), st.floats(1e-300, 1e300)),
    ),
    "loss": st.sampled_from(["kl", "cosine"]),
    "refine": st.floats(1e-3, 1e9),
    "random_state": st.none() | st.integers(0, 2**31),
    "calibration": st.builds(
        Texts,
        text=st.lists(st.text(min_size=1), min_size=1).map(tuple),
        tokens=st.none() | st.integers(1, 512),
    ),
    "output": st.text(min_size=1),
}
RECIPES = st.builds(
    lambda budget, share, others: Recipe({budget: share, **others}),
    st.sampled_from([word for word in BUDGETS if word != "error"]),
    SHARES,
    st.fixed_dictionaries({}, optional=OTHERS),
)


@settings(max_examples=25, deadline=None)
@given(RECIPES)
def test_a_recipe_reads_as_it_was_written(recipe: Recipe) -> None:
    text = recipe.to_yaml()
    again = Recipe.from_yaml(text)
    assert again == recipe
    assert again.to_yaml() == text
    assert list(again.values) == list(recipe.values)
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe


def test_its_keys_are_the_arguments_of_compress_that_a_text_can_say() -> None:
    known = inspect.signature(tensorlrf.compress).parameters
    assert set(known) - set(keys()) == {"model", "evaluate", "example", "readout"}
    assert set(keys()) - set(known) == {"output"}


def test_values_are_those_of_the_call() -> None:
    """As they are written in Python, and as in a text."""
    given = {
        "keep_params": 0.5,
        "method": {"*.0": SVD(rank=8), "head": None, "*": "kron"},
        "allocation": Allocation(rule="energy", together=("a", "b")),
        "skip": ["x"],
        "include": None,
    }
    recipe = Recipe(given)
    assert recipe.arguments == {k: v for k, v in given.items() if v is not None}
    told = Recipe(
        {
            "keep_params": 0.5,
            "method": {"*.0": {"name": "svd", "rank": 8}, "head": None, "*": {"name": "kron"}},
            "allocation": {"rule": "energy", "together": ["a", "b"]},
            "skip": ["x"],
        }
    )
    assert told.arguments["method"]["*"] == Kron()
    assert told.arguments["allocation"] == given["allocation"]
    assert Recipe.from_yaml("keep_params: 1e-3\nrefine: 60").arguments == {
        "keep_params": 1e-3,
        "refine": 60,
    }
    assert Recipe.from_yaml("method: {0: svd, 1.0: null}").arguments["method"] == {
        "0": "svd",
        "1.0": None,
    }


class Net(nn.Module):
    """An embedding whose table is the head's, a convolution with its normalisation, names that
    are globs or words of ours, a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 24)
        self.conv = nn.Conv1d(24, 24, 3, padding=1)
        self.norm = nn.BatchNorm1d(24)
        self.parts = nn.ModuleDict({"a[0]*": nn.Linear(24, 32), "name": nn.Linear(32, 24)})
        self.name = nn.Linear(24, 24)
        self.again = self.name
        self.head = nn.Linear(24, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(self.table(x).mT)).mT.relu()
        h = self.parts["name"](self.parts["a[0]*"](h).relu())
        logits: Tensor = self.head(self.again(self.name(h).relu()))
        return logits


def batches() -> list[Tensor]:
    draws = generator(3)
    return [torch.randint(0, 40, (32, 12), generator=draws) for _ in range(3)]


@pytest.mark.parametrize(
    "asked",
    [
        {"keep_params": 0.6},
        {"keep_params": 0.6, "skip": ["name"], "method": "kron"},
        {"error": 0.3, "fold_batch_norms": True},
        {"keep_total": 0.8, "include": ["embeddings", "heads"], "allocation": "fisher"},
        {"method": {"parts.*": SVD(rank=5, solver="randomized"), "conv": CP(rank=7), "*": None}},
    ],
    ids=lambda asked: ",".join(asked),
)
def test_the_recipe_of_a_plan_makes_the_very_model(asked: dict[str, Any]) -> None:
    model, data = set_weights(Net()), batches()
    plan = tensorlrf.plan(model, calibration=data, **asked, progress=False)
    fit = {"target": "prefix", "random_state": 4, "progress": False}
    recipe = Recipe.from_yaml(Recipe.of_plan(plan, fit).to_yaml())
    wanted, _ = tensorlrf.apply(model, plan, calibration=data, **fit)  # type: ignore[arg-type]  # one dict of all
    small, report = recipe.compress(model, calibration=data)
    assert [row.name for row in report.layers if row.factored] == [r.name for r in plan.factored]
    assert same(small, wanted)
    assert torch.equal(small(data[0]), wanted(data[0]))


def test_a_plan_without_factors_and_keys_of_a_plan_are_refused() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    plan = tensorlrf.plan(model, keep_params=0.5, skip=[])
    with pytest.raises(ArgumentError, match="factors no layer"):
        Recipe.of_plan(plan.edit("*", leave=True))
    with pytest.raises(ArgumentError, match="keep_params: there is no such key"):
        Recipe.of_plan(plan, {"keep_params": 0.5})


def test_what_is_given_beside_takes_the_place_of_keys() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    recipe = Recipe({"keep_params": 0.9, "skip": ["2"], "progress": False})
    _, report = recipe.compress(model, keep_params=0.5)
    assert report.keep_params == 0.5
    assert report.layer("2").reason == "skipped by '2'"
    with pytest.raises(ArgumentError, match="are two budgets"):
        recipe.compress(model, error=0.5)
    with pytest.raises(TypeError, match="kep_params"):
        recipe.compress(model, kep_params=0.5)


def test_what_the_command_line_reads_is_given_in_python() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    recipe = Recipe({"keep_params": 0.9, "calibration": {"text": "a.txt"}, "output": "small"})
    assert set(recipe.values) & set(READ_BY_COMMAND) == {"calibration", "output"}
    with pytest.raises(ArgumentError, match=r"'a.txt'.*compress --recipe.*give calibration="):
        recipe.compress(model)
    _, report = recipe.compress(model, calibration=[seeded32(64, 16)], progress=False)
    assert report.batches == 1
    _, report = recipe.compress(model, calibration=None, progress=False)
    assert report.batches == 0


def test_a_sensitivity_is_read_from_its_file(tmp_path: Path) -> None:
    model = set_weights(nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24)))
    found = tensorlrf.sensitivity(model, [seeded32(64, 24)], skip=[], progress=False)
    file = tmp_path / "layers.json"
    recipe = Recipe({"keep_params": 0.6, "skip": [], "sensitivity": str(file)})
    with pytest.raises(tensorlrf.errors.MissingFileError, match=r"layers.json.* is no file"):
        recipe.compress(model)
    file.write_text(found.to_json())
    small, _ = recipe.compress(model, progress=False)
    wanted, _ = tensorlrf.compress(
        model, keep_params=0.6, skip=[], sensitivity=found, progress=False
    )
    assert same(small, wanted)
