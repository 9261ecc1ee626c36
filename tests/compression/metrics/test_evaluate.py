"""Metrics as `evaluate=`: which way is better, in which units, and on what."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.frontier._judge import Judge
from tensorlrf.errors import ArgumentError
from tensorlrf.metrics import agreement, f1, perplexity
from tests.draws import seeded32

WORDS = 24


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 16)
        self.middle = nn.Linear(16, 32)
        self.head = nn.Linear(32, WORDS)
        with torch.no_grad():
            for k, p in enumerate(self.parameters()):
                p.copy_(0.3 * seeded32(*p.shape, seed=k))

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.middle(self.table(ids))))
        return found


def ids(n: int, seed: int) -> Tensor:
    return torch.randint(0, WORDS, (n, 8), generator=torch.Generator().manual_seed(seed))


CALIBRATION = [ids(8, k) for k in range(6)]
HELD_OUT = [ids(8, k) for k in range(20, 26)]


def test_what_is_smaller_the_better_rises_in_its_own_units() -> None:
    metric, given, other = perplexity(HELD_OUT), Language(), Language()
    with torch.no_grad():
        other.head.weight.mul_(1.7)
    judge = Judge(metric, given)
    drop = judge.drop(other, "it")
    assert judge.judged.drop == "rise"
    assert judge.given == pytest.approx(metric(given))
    assert drop.quality == pytest.approx(metric(other))
    assert drop.mean == pytest.approx(metric(other) - metric(given))
    assert drop.mean > 0
    assert drop.bound > drop.mean  # by the windows
    better = judge.drop(given, "it")
    assert better.mean == pytest.approx(0, abs=1e-9 * judge.given)


def test_a_worthless_model_is_infinitely_worse() -> None:
    judge, other = Judge(perplexity(HELD_OUT), Language()), Language()
    with torch.no_grad():
        other.head.bias[0] = 1e8
    assert judge.drop(other, "it").bound == math.inf


def test_one_number_has_no_bound_of_its_own() -> None:
    labels = torch.cat(HELD_OUT).flatten()
    judge = Judge(f1(HELD_OUT, labels), Language())
    assert (judge.examples, judge.noise) == (0, 0.0)


def test_compress_within_a_rise() -> None:
    model = Language()
    fluent = perplexity(HELD_OUT)
    small, report = tensorlrf.compress(
        model, max_drop=4.0, evaluate=fluent, calibration=CALIBRATION, skip=[], progress=False
    )
    quality = report.quality
    assert quality is not None
    assert fluent(small) == pytest.approx(quality.compressed)
    assert quality.compressed - quality.dense == pytest.approx(quality.drop)
    assert quality.drop <= quality.bound <= 4.0
    assert "asked for a rise of at most 4" in str(report)
    assert not quality.judged.on_calibration
    assert tensorlrf.Report.from_json(report.to_json()) == report


def test_what_was_fitted_to_is_told(tmp_path: Path) -> None:
    """Where there is one data set for both, whoever reads of the quality is told."""
    model = Language()
    says = "agreement is of the calibration data"
    for data in (CALIBRATION, HELD_OUT):
        same = agreement(data, model)
        _, report = tensorlrf.compress(
            model, keep_params=0.6, evaluate=same, calibration=CALIBRATION, skip=[], progress=False
        )
        assert report.quality is not None
        assert report.quality.judged.on_calibration == (data is CALIBRATION)
        assert (says in str(report)) == (data is CALIBRATION)
        page = tmp_path / "report.html"
        report.to_html(page)
        assert ("Agreement is of the calibration" in page.read_text()) == (data is CALIBRATION)


def test_a_frontier_knows_the_direction(tmp_path: Path) -> None:
    fluent, model = perplexity(HELD_OUT), Language()
    found = tensorlrf.frontier(
        model, CALIBRATION, evaluate=fluent, shares=(0.8, 0.3), skip=[], progress=False
    )
    assert found.judged == tensorlrf.compression.Judged("perplexity", larger_is_better=False)
    assert found.points[0].quality == pytest.approx(fluent(model))
    for point in found.factored:
        assert point.quality is not None
        assert point.drop == pytest.approx(point.quality - fluent(model))
    assert "metric: perplexity; its drop is by how much it rises" in str(found)
    assert tensorlrf.Frontier.from_json(found.to_json()) == found
    older = json.loads(found.to_json())
    del older["judged"]
    assert tensorlrf.Frontier.from_json(json.dumps(older)).judged.metric is None
    found.to_html(tmp_path / "frontier.html")
    assert "Lower is better; a line" in (tmp_path / "frontier.html").read_text()


def test_refusals_speak_of_a_rise() -> None:
    model = Language()
    with pytest.raises(ArgumentError, match="the least rise that 48 examples"):
        tensorlrf.compress(
            model, max_drop=1e-9, evaluate=perplexity(HELD_OUT), calibration=CALIBRATION,
            skip=[], progress=False,
        )  # fmt: skip


def test_a_table_of_ranks_is_in_units_of_the_metric() -> None:
    model = Language()
    small, _ = tensorlrf.compress(model, keep_params=0.8, skip=["head"], progress=False)
    fluent = perplexity(HELD_OUT)
    table = tensorlrf.rank_table(
        small, CALIBRATION, model=model, scales=(1.0, 0.5), evaluate=fluent
    )
    assert table.quality == pytest.approx(fluent(model))
    assert table.rows[0].quality == pytest.approx(fluent(small))
