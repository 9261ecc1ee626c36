"""A plan says which batch normalisations are folded first, and apply folds them again."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf import Plan
from tensorlrf.errors import ArgumentError, FileFormatError
from tests.compression.folding.test_within import BATCHES, Net, net

KEEP: dict[str, Any] = {"keep_params": 0.6, "skip": ["last"]}


def made(**more: Any) -> Plan:
    return tensorlrf.plan(net(), fold_batch_norms=True, example=BATCHES[0], **KEEP, **more)


def test_the_plan_says_it_and_apply_does_it() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    plan = made()
    assert plan.folded is not None
    assert plan.folded.norms == ("one", "two", "three")
    assert plan.folded.left == ("four: it reads no output of a layer as it stands",)
    assert Plan.from_json(plan.to_json()) == plan
    assert "folded before the fit, 3: one into stem" in str(plan).replace("\n", " ")
    small, report = tensorlrf.apply(model, Plan.from_json(plan.to_json()), calibration=BATCHES)
    assert report.folded == plan.folded
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [type(m) for m in (small.one, small.two, small.three)] == [nn.Identity] * 3
    folded, _ = tensorlrf.fold_batch_norms(model, BATCHES[0])
    same, _ = tensorlrf.apply(folded, replace(plan, folded=None), calibration=BATCHES)
    torch.testing.assert_close(small(BATCHES[0]), same(BATCHES[0]), rtol=0, atol=0)


def test_plan_and_apply_are_compress_and_its_files_fit_the_model(tmp_path: Path) -> None:
    options: dict[str, Any] = {"calibration": BATCHES, "metric": "outputs"}
    direct, _ = tensorlrf.compress(
        net(), **KEEP, **options, allocation="uniform", fold_batch_norms=True
    )
    small, _ = tensorlrf.apply(net(), made(), **options)
    torch.testing.assert_close(small(BATCHES[0]), direct(BATCHES[0]), rtol=0, atol=0)
    tensorlrf.save(small, tmp_path / "small.safetensors")
    again = tensorlrf.load(tmp_path / "small.safetensors", net())
    assert torch.equal(again(BATCHES[0]), small(BATCHES[0]))


def test_without_normalisations_that_can_be_folded_nothing_is() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    x = torch.zeros(2, 64)
    plan = tensorlrf.plan(model, keep_params=0.5, skip=[], fold_batch_norms=True, example=x)
    assert plan.folded is not None
    assert plan.folded.norms == plan.folded.left == ()
    small, report = tensorlrf.apply(model, plan)
    assert report.folded == plan.folded
    torch.testing.assert_close(small(x), tensorlrf.apply(model, replace(plan, folded=None))[0](x))


def test_a_plan_looks_at_a_pass() -> None:
    with pytest.raises(ArgumentError, match="give example= or calibration="):
        tensorlrf.plan(net(), fold_batch_norms=True, **KEEP)


def folds(**pairs: str) -> Plan:
    plan = made()
    assert plan.folded is not None
    return replace(plan, folded=replace(plan.folded, norms=(*pairs,), layers=(*pairs.values(),)))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ({"five": "stem"}, "five is to be folded into stem, but there is no batch normalisation"),
        ({"one": "gone"}, "but there is no linear layer or convolution gone in the model"),
        ({"one": "wide"}, "it has 24 channels, not 32"),
        (
            {"one": "stem", "two": "depthwise", "four": "wide"},
            "one, two, four folded as it says the outputs of the model on the first batch are",
        ),
        ({"one": "stem", "two": "depthwise"}, "is not in it; it is a plan for another model"),
    ],
)
def test_apply_refuses_what_the_model_has_not(pairs: dict[str, str], words: str) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match=f"plan: .*{re.escape(words)}"):
        tensorlrf.apply(model, folds(**pairs), calibration=BATCHES)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_apply_refuses_a_model_in_training_mode_and_one_that_is_folded() -> None:
    with pytest.raises(ArgumentError, match=r"call model.eval\(\) first; give apply the model"):
        tensorlrf.apply(Net(), made())
    folded, _ = tensorlrf.fold_batch_norms(net(), BATCHES[0])
    with pytest.raises(ArgumentError, match="there is no batch normalisation one in the model"):
        tensorlrf.apply(folded, made())


@pytest.mark.parametrize(
    "folded",
    [
        {"norms": ["one", "two"], "layers": ["stem"], "left": []},
        {"norms": ["one", "one"], "layers": ["stem", "wide"], "left": []},
        {"norms": ["one", "two"], "layers": ["stem", "stem"], "left": []},
        {"norms": ["one"], "layers": ["stem"]},
        {"norms": [1], "layers": ["stem"], "left": []},
        [],
    ],
)
def test_a_text_with_other_folds_is_no_plan(folded: Any) -> None:
    values = json.loads(made().to_json()) | {"folded": folded}
    with pytest.raises(FileFormatError, match="text is no plan"):
        Plan.from_json(json.dumps(values))
