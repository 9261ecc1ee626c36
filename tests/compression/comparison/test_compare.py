"""Two models side by side: zero of a model and itself, and the same from either side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tensorlrf
from tensorlrf.errors import ArgumentError, FileError, ShapeError
from tests.draws import seeded32

DATA = [seeded32(9, 24, seed=1), seeded32(4, 24, seed=2)]


def net(seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.LayerNorm(48), nn.Linear(48, 48))
    model.add_module("head", nn.Linear(48, 6))
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(0.3 * seeded32(*p.shape, seed=10 * seed + k))
    return model.eval()


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Sequential, nn.Module, tensorlrf.Report]:
    model = net()
    small, report = tensorlrf.compress(model, keep_params=0.5, progress=False)
    return model, small, report


def test_a_model_is_like_itself(pair: Any) -> None:
    for model in pair[:2]:
        for other in (model, tensorlrf.densify(model) if model is pair[0] else model):
            found = tensorlrf.compare(model, other, DATA)
            assert found.differing == ()
            assert found.furthest is None
            assert all(row.difference in (0, None) for row in found.layers)
            assert found.outputs is not None
            assert (found.outputs.error, found.outputs.kl) == (0, 0)
            assert found.outputs.agreement == 1
            assert found.outputs.cosine == pytest.approx(1)
            assert found.params[0] == found.params[1]


def test_it_is_the_same_from_either_side(pair: Any) -> None:
    model, small, _ = pair
    there, back = (tensorlrf.compare(x, y, DATA) for x, y in ((model, small), (small, model)))
    for row in there.layers:
        other = back.layer(row.name)
        assert (row.a, row.b, row.difference) == (other.b, other.a, other.difference)
    assert there.params == back.params[::-1]
    assert there.bytes == back.bytes[::-1]
    a, b = there.outputs, back.outputs
    assert a is not None
    assert b is not None
    assert replace(a, kl=None) == replace(b, kl=None)
    assert a.kl != b.kl  # which is of a beside b


def test_numbers_are_those_of_their_definitions(pair: Any) -> None:
    model, small, report = pair
    found = tensorlrf.compare(model, small, DATA)
    rows = torch.cat(DATA)
    with torch.no_grad():
        a, b = model(rows).double(), small(rows).double()
    out = found.outputs
    assert out is not None
    assert (out.batches, out.rows) == (2, 13)
    assert out.error == pytest.approx(float((a - b).norm() / max(a.norm(), b.norm())))
    assert out.cosine == pytest.approx(float(F.cosine_similarity(a, b).mean()))
    assert out.agreement == pytest.approx(float((a.argmax(1) == b.argmax(1)).double().mean()))
    kl = F.kl_div(b.log_softmax(1), a.log_softmax(1), reduction="batchmean", log_target=True)
    assert out.kl == pytest.approx(float(kl))
    for row in report.layers:
        if row.factored:
            side = found.layer(row.name)
            assert side.b is not None
            assert (side.b.format, side.b.rank) == (row.format, row.rank)
            # The factors are fitted to the weight, and so are no longer than it.
            assert side.difference == pytest.approx(row.weight_error, rel=1e-4)
    assert found.furthest is not None
    assert found.furthest.difference == max(row.difference or 0 for row in found.layers)


def test_it_tells_itself(pair: Any) -> None:
    found = tensorlrf.compare(*pair[:2], DATA)
    assert repr(found).startswith("Comparison: 2 of 4 layers differ, 3,942 and ")
    assert "2 layers are alike" in str(found)
    assert "| 0 | Linear | dense |" in found.to_markdown()
    values = json.loads(found.to_json())
    assert values["outputs"]["rows"] == 13
    assert len(values["layers"]) == 4


def test_files_reports_and_plans_have_layers_too(pair: Any, tmp_path: Path) -> None:
    model, small, report = pair
    path = tmp_path / "small.safetensors"
    tensorlrf.save(small, path)
    of_file = tensorlrf.compare(path, small)
    for row in report.layers:
        if row.factored:
            side = of_file.layer(row.name)
            assert side.a is not None
            assert side.b is not None
            assert (side.a.format, side.a.rank, side.a.shape) == (
                side.b.format, side.b.rank, side.b.shape,
            )  # fmt: skip
    assert tensorlrf.compare(path, str(path)).differing == ()
    assert tensorlrf.compare(report, report).differing == ()
    plans = [tensorlrf.plan(model, keep_params=share) for share in (0.5, 0.3)]
    both = tensorlrf.compare(*plans)
    assert {row.name for row in both.differing} == {row.name for row in plans[0].factored}
    assert both.params[0] is not None
    assert both.params[1] is not None
    assert both.params[0] > both.params[1]


def test_layers_of_one_alone_and_other_sizes() -> None:
    wide = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 6))
    found = tensorlrf.compare(net(), wide)
    assert found.layer("0").difference is None
    assert found.layer("head").b is None
    assert not found.layer("head").alike
    assert "-" in str(found)


def test_embeddings_have_no_answers() -> None:
    """What is no classifier has neither KL nor agreement."""
    a, b = (nn.Sequential(nn.Linear(24, 8), nn.Tanh()) for _ in range(2))
    out = tensorlrf.compare(a, b, DATA).outputs
    assert out is not None
    assert (out.agreement, out.kl) == (None, None)


def test_what_cannot_be_compared_is_refused(pair: Any, tmp_path: Path) -> None:
    model, small, report = pair
    broken = net()
    nn.init.constant_(broken[0].weight, torch.nan)
    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((model, 3), {}, ArgumentError, "b is a int; pass a model"),
        ((model, report, DATA), {}, ArgumentError, "data is for two models"),
        ((model, nn.Linear(24, 5), DATA), {}, ShapeError, r"\(9, 6\) of a and \(9, 5\) of b"),
        ((model, broken, DATA), {}, ArgumentError, "hold NaN"),
        ((model, small, DATA[0]), {}, ArgumentError, r"write data=\[batch\]"),
        ((model, small, DATA), {"readout": 3}, ArgumentError, "readout is a int"),
        ((model, tmp_path / "none"), {}, FileError, "none"),
    ]
    for given, more, kind, says in cases:
        with pytest.raises(kind, match=says):
            tensorlrf.compare(*given, **more)
