"""Tall factors by columns in memory where the clock says so: same numbers, shapes and files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tensorlrf
from tensorlrf.compression.tuning import _orders
from tensorlrf.compression.tuning._tune import tune
from tensorlrf.nn import FactoredLinear
from tensorlrf.nn.tall import lies_by_columns
from tensorlrf.ops import Timings
from tests.draws import seeded32

Clock = Callable[..., Timings]


def says(rows: float, columns: float) -> Clock:
    def time_calls(calls: Mapping[str, Callable[[], object]], **_: Any) -> Timings:
        outputs = [call() for call in calls.values()]
        torch.testing.assert_close(outputs[0], outputs[1])
        return Timings({"rows": (rows,), "columns": (columns,)})

    return time_calls


def model_of(method: str = "svd", rank: Any = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        tensorlrf.nn.factorize(nn.Linear(24, 32), method, rank),
        nn.ReLU(),
        tensorlrf.nn.factorize(nn.Linear(32, 6), method, rank),
    ).eval()


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_orders, "time_calls", says(2.0, 1.0))


def layer_of(model: nn.Module, name: str) -> FactoredLinear:
    layer = model.get_submodule(name)
    assert isinstance(layer, FactoredLinear)
    return layer


@pytest.mark.usefixtures("columns")
def test_a_tall_factor_lies_by_columns_where_that_is_faster() -> None:
    model, x = model_of(), seeded32(3, 24)
    before, values = model(x), copy.deepcopy(model.state_dict())
    tuning = tune(model, x, seconds=0.002)
    assert tuning.layer("0").by_columns == ("left",)
    assert tuning.layer("2").by_columns == ()  # 6 rows of 4 are not tall
    assert "by columns in memory, which is faster here: 0" in str(tuning)
    first = layer_of(model, "0")
    assert lies_by_columns(first.get_parameter("left"))
    assert not lies_by_columns(first.get_parameter("right"))
    torch.testing.assert_close(model(x), before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, values[name])


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize(("method", "rank"), [("svd", 4), ("tucker", (4, 5)), ("cp", 4)])
def test_files_copies_and_exports_keep_the_order(tmp_path: Path, method: str, rank: Any) -> None:
    model, x = model_of(method, rank), seeded32(3, 24)
    tune(model, x, seconds=0.002)
    path = tmp_path / "small.safetensors"
    tensorlrf.save(model, path)
    given = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 6)).eval()
    for twin in (tensorlrf.load(path, given), copy.deepcopy(model)):
        assert torch.equal(twin(x), model(x))
        for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
            assert mine.stride() == its.stride()
    exported = tensorlrf.export(model)
    torch.testing.assert_close(exported(x), model(x))
    laid = [
        any(lies_by_columns(p) for p in m.parameters() if p.ndim == 2) for m in (model, exported)
    ]
    assert laid == [True, True]


@pytest.mark.usefixtures("columns")
def test_training_has_rows_again_and_gradients_are_the_same() -> None:
    model, x = model_of(), seeded32(3, 24)
    twin = copy.deepcopy(model)
    tune(model, x, seconds=0.002)
    for one in (model, twin):
        one(x).square().sum().backward()
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)
    model.train()
    assert torch.nn.utils.parameters_to_vector(model.parameters()).isfinite().all()
    assert not any(lies_by_columns(p) for p in model.parameters() if p.ndim == 2)


def test_what_is_no_faster_stays_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_orders, "time_calls", says(1.04, 1.0))
    model = model_of()
    tuning = tune(model, seeded32(3, 24), seconds=0.002)
    assert tuning.layer("0").by_columns == ()
    assert layer_of(model, "0").get_parameter("left").is_contiguous()
    monkeypatch.setattr(_orders, "time_calls", says(2.0, 1.0))
    tune(model, seeded32(3, 24), seconds=0.002)
    monkeypatch.setattr(_orders, "time_calls", says(1.0, 2.0))
    tune(model, seeded32(3, 24), seconds=0.002)
    assert layer_of(model, "0").get_parameter("left").is_contiguous()


@pytest.mark.usefixtures("columns")
def test_a_factor_whose_memory_others_have_a_part_of_stays() -> None:
    model = model_of()
    left = layer_of(model, "0").get_parameter("left")
    whole = torch.zeros(2, *left.shape)
    left.data = whole[0]
    model.register_buffer("view", whole[1])
    assert tune(model, seeded32(3, 24), seconds=0.002).layer("0").by_columns == ()


@given(m=st.integers(1, 40), n=st.integers(1, 40), r=st.integers(1, 8), rows=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_either_order_computes_the_same(m: int, n: int, r: int, rows: int) -> None:
    layer = FactoredLinear(tensorlrf.svd(seeded32(m, n), min(r, m, n)), seeded32(m)).eval()
    x = seeded32(rows, n)
    layer.lie(())  # a decomposition gives its factors in either order
    before = layer(x)
    layer.lie(layer.tall_matrices())
    torch.testing.assert_close(layer(x), before)
    layer.lie(())
    assert torch.equal(layer(x), before)
