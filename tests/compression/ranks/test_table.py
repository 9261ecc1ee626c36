"""What a model loses at each share of its ranks, and that a file keeps it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tensorlrf
from tensorlrf import RankTable
from tensorlrf.compression import RankRow
from tensorlrf.compression.checkpoint.header import _KEYS
from tensorlrf.errors import ArgumentError, FileFormatError
from tests.draws import generator


def dense() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 6))


def small() -> nn.Sequential:
    first, tanh, last = dense()
    factorize = tensorlrf.nn.factorize
    return nn.Sequential(factorize(first, "svd", 8), tanh, factorize(last, "svd", 6))


def batches(n: int = 10) -> list[torch.Tensor]:
    draws = generator()
    return [torch.randn(8, 12, generator=draws) for _ in range(n)]


def test_rows_are_the_errors_of_the_outputs_on_the_batches_held_out() -> None:
    model, data = small(), batches()
    table = tensorlrf.rank_table(model, data, model=dense(), scales=(0.5, 1.0, 0.25), holdout=0.2)
    assert [row.scale for row in table.rows] == [1.0, 0.5, 0.25]
    assert table.batches == 2
    held = [data[k] for k in sorted(tensorlrf.compression._held_out.held_out(10, 0.2))]
    x = torch.cat(held)
    with torch.no_grad():
        wanted = dense()(x)
        for row in table.rows:
            with tensorlrf.rank_scale(model, row.scale):
                error = float(torch.dist(model(x), wanted) / wanted.norm())
            assert math.isclose(row.error or 0.0, error, rel_tol=1e-5)
            assert row.low is not None
            assert row.high is not None
            assert row.low <= error <= row.high
    # Parameters: two matrices a layer at its rank, and the biases.
    ranks = [(8, 6), (4, 3), (2, 1)]
    assert [row.params for row in table.rows] == [
        r * (12 + 16) + s * (16 + 6) + 22 for r, s in ranks
    ]
    assert table.params == table.rows[0].params


def test_by_default_it_is_compared_with_itself_on_all_ranks() -> None:
    table = tensorlrf.rank_table(small(), batches(1), holdout=0)
    assert table.rows[0].error == 0
    assert all(row.error for row in table.rows[1:])


def test_a_metric_has_a_column_of_its_own() -> None:
    x = batches()[0]

    def evaluate(model: nn.Module) -> float:
        return -float(model(x).square().sum())

    model = small()
    table = tensorlrf.rank_table(model, batches(), model=dense(), evaluate=evaluate)
    with torch.no_grad():
        for row in table.rows:
            with tensorlrf.rank_scale(model, row.scale):
                assert row.quality == evaluate(model)
        assert table.quality == evaluate(dense())
    none = tensorlrf.rank_table(
        small(), batches(), evaluate=lambda m: 0.0 if m[0].factors.rank > 4 else -math.inf
    )
    assert [row.quality for row in none.rows] == [0.0, 0.0, None, None, None]


def test_the_smallest_share_within_an_error_is_found() -> None:
    rows = tuple(RankRow(s, int(100 * s), e) for s, e in ((1.0, 0.0), (0.5, 0.2), (0.25, 0.1)))
    table = RankTable((*rows, RankRow(0.1, 10, None)), 100, 1)
    assert table.within(0.1).scale == 0.25
    assert table.within(0.05).scale == 1.0
    with pytest.raises(ArgumentError, match=r"least error is 0\.0"):
        table.within(-1.0)


def test_it_prints_and_is_read_back() -> None:
    table = tensorlrf.rank_table(small(), batches(), evaluate=lambda _: 1.0)
    assert RankTable.from_json(table.to_json()) == table
    assert "share of ranks" in str(table)
    assert table.to_markdown().count("\n| ") == 2 + 5


def test_a_file_keeps_it_without_a_key_that_readers_of_before_refuse(tmp_path: Path) -> None:
    model, path = small(), tmp_path / "m.safetensors"
    table = tensorlrf.rank_table(model, batches())
    assert model.rank_table is table
    assert copy.deepcopy(model).rank_table == table
    tensorlrf.save(model, path)
    raw = path.read_bytes()
    head = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert set(json.loads(head["__metadata__"]["tensorlrf.model"])) == set(_KEYS)
    loaded: Any = tensorlrf.load(path, dense())
    assert loaded.rank_table == table
    assert torch.equal(loaded(batches()[0]), model(batches()[0]))
    assert tensorlrf.inspect(path).plan["(model)"]["rank_table"]["batches"] == 1
    tensorlrf.save(loaded, tmp_path / "again.safetensors")
    assert tensorlrf.load(tmp_path / "again.safetensors", dense()).rank_table == table


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_what_is_no_table_is_refused(data: st.DataObject) -> None:
    values = tensorlrf.RankTable((RankRow(1.0, 3, 0.0, None, None, None),), 3, 1).to_dict()
    where = data.draw(st.sampled_from(["version", "rows", "params", "batches", "more", "scale"]))
    wrong = data.draw(st.sampled_from([None, "x", [], {}, -3.5, True, [1], [{"scale": 1}]]))
    if where == "scale":
        values["rows"][0]["scale"] = data.draw(st.sampled_from([0, 1.5, "x", None]))
    else:
        values[where] = wrong
    if where == "rows" and wrong == []:
        return
    with pytest.raises(FileFormatError, match="table of ranks"):
        RankTable.from_json(json.dumps(values))


def test_bad_arguments_are_refused() -> None:
    table: Any = tensorlrf.rank_table
    for scales in ((), (0.0,), (2.0,), "half", 0.5, (True,)):
        with pytest.raises(ArgumentError, match="scales="):
            table(small(), batches(), scales=scales)
    with pytest.raises(ArgumentError, match="no layer"):
        table(dense(), batches())
    with pytest.raises(ArgumentError, match="calibration"):
        table(small(), None)
    with pytest.raises(ArgumentError, match="evaluate"):
        table(small(), batches(), evaluate=lambda _: "good")
    model = small()
    model.rank_table = 3
    with pytest.raises(ArgumentError, match="rank_table of its own"):
        table(model, batches())
