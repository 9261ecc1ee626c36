"""compress folds batch normalisations first, says so, and its files fit the model as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredConv2d
from tests.compression.folding.test_fold import Activated, settled
from tests.compression.networks import UNIFORM
from tests.draws import seeded32


class Net(nn.Module):
    """Of its four normalisations the last one follows no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False)
        self.one = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.two = nn.BatchNorm2d(24)
        self.wide = nn.Conv2d(24, 32, 3, padding=1, bias=False)
        self.three = nn.BatchNorm2d(32)
        self.four = nn.BatchNorm2d(32)
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(self.stem(x)).relu()
        y = self.two(self.depthwise(y)).relu()
        y = self.four(self.three(self.wide(y)).relu())
        return self.last(y.mean((2, 3)))  # type: ignore[no-any-return]


def net() -> Any:
    return settled(Net()).float()


BATCHES = [seeded32(8, 3, 16, 16, seed=k) for k in range(8)]
OPTIONS: dict[str, Any] = {"keep_params": 0.6, "calibration": BATCHES, "skip": ["last"], **UNIFORM}


def test_it_folds_first_and_says_so() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    small, report = tensorlrf.compress(model, fold_batch_norms=True, **OPTIONS)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert isinstance(small.wide, FactoredConv2d)
    assert small.wide.bias is not None
    assert [type(m) for m in (small.one, small.two, small.three)] == [nn.Identity] * 3
    assert isinstance(small.four, nn.BatchNorm2d)
    assert report.folded is not None
    assert report.folded.norms == ("one", "two", "three")
    assert report.folded.layers == ("stem", "depthwise", "wide")
    assert report.folded.left == ("four: it reads no output of a layer as it stands",)
    assert "folded before the fit, 3: one into stem" in str(report).replace("\n", " ")
    assert tensorlrf.Report.from_json(report.to_json()) == report
    folded, _ = tensorlrf.fold_batch_norms(model, BATCHES[0])
    same, _ = tensorlrf.compress(folded, **OPTIONS)
    torch.testing.assert_close(small(BATCHES[0]), same(BATCHES[0]))


def test_a_file_fits_the_model_as_it_was(tmp_path: Path) -> None:
    model = net()
    small, _ = tensorlrf.compress(model, fold_batch_norms=True, **OPTIONS)
    file = tmp_path / "small.safetensors"
    tensorlrf.save(small, file)
    given = net()
    before = copy.deepcopy(given.state_dict())
    again = tensorlrf.load(file, given)
    torch.testing.assert_close(again(BATCHES[0]), small(BATCHES[0]), rtol=0, atol=0)
    assert all(torch.equal(t, before[name]) for name, t in given.state_dict().items())
    with torch.device("meta"):
        blank = Net().eval()
    torch.testing.assert_close(
        tensorlrf.load(file, blank)(BATCHES[0]), small(BATCHES[0]), rtol=0, atol=0
    )
    folded, _ = tensorlrf.fold_batch_norms(model, BATCHES[0])
    assert torch.equal(tensorlrf.load(file, folded)(BATCHES[0]), small(BATCHES[0]))
    for made in (tensorlrf.export(small), tensorlrf.densify(small)):
        torch.testing.assert_close(made(BATCHES[0]), small(BATCHES[0]), rtol=1e-3, atol=1e-3)


def activated() -> Any:
    made: Any = settled(
        nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1, bias=False),
            Activated(24, nn.SiLU(inplace=True)),
            nn.Conv2d(24, 32, 3, padding=1, bias=False),
            Activated(32, nn.PReLU(32), nn.Dropout(0.1)),
            nn.Conv2d(32, 10, 1),
        )
    )
    return made.float()


def test_what_runs_behind_a_normalisation_is_in_the_file(tmp_path: Path) -> None:
    model, options = activated(), {**OPTIONS, "skip": ["4"]}
    small, report = tensorlrf.compress(model, fold_batch_norms=True, **options)
    assert report.folded is not None
    assert report.folded.norms == ("1", "3")
    assert [type(small[k]) for k in (1, 3)] == [nn.Sequential] * 2
    wanted = small(BATCHES[0])
    file = tmp_path / "small.safetensors"
    tensorlrf.save(small, file)
    with torch.device("meta"):
        blank = activated()
    for given in (model, blank, tensorlrf.fold_batch_norms(model, BATCHES[0])[0]):
        again: Any = tensorlrf.load(file, given)
        assert torch.equal(again(BATCHES[0]), wanted)
        assert isinstance(again[3].act, nn.PReLU)
    other = activated()
    tensorlrf.compress_(other, fold_batch_norms=True, **options)
    assert torch.equal(other(BATCHES[0]), wanted)
    plan = tensorlrf.plan(model, keep_params=0.6, example=BATCHES[0], fold_batch_norms=True)
    planned, _ = tensorlrf.apply(model, plan, example=BATCHES[0])
    assert [type(planned[k]) for k in (1, 3)] == [nn.Sequential] * 2


def test_in_place() -> None:
    model, other = net(), net()
    small, _ = tensorlrf.compress(model, fold_batch_norms=True, **OPTIONS)
    report = tensorlrf.compress_(other, fold_batch_norms=True, **OPTIONS)
    assert report.folded is not None
    torch.testing.assert_close(other(BATCHES[0]), small(BATCHES[0]), rtol=0, atol=0)


def test_an_example_serves_without_calibration_and_one_of_both_is_needed() -> None:
    small, report = tensorlrf.compress(
        net(), keep_params=0.6, skip=["last"], example=BATCHES[0], fold_batch_norms=True
    )
    assert isinstance(small.one, nn.Identity)
    assert report.folded is not None
    with pytest.raises(ArgumentError, match="give example= or calibration="):
        tensorlrf.compress(net(), keep_params=0.6, fold_batch_norms=True)
