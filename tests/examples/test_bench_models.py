"""The harness of whole models: rows by name, and files that are written row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import common
import pytest
from torch import nn

from bench import models, one_model, subjects
from bench.subjects import Subject


def _subject() -> Subject:
    return Subject(
        load=lambda: nn.Linear(2, 2),
        architecture=lambda: nn.Linear(2, 2),
        calibration=list,
        example=lambda: None,  # type: ignore[arg-type, return-value]
        skip=(),
        judge=lambda dense: lambda model: {},
        note="a note",
        rows=(("plain", 0.8), ("prefix", 0.8), ("prefix", 0.4)),
    )


def _measured(seconds: float, **info: Any) -> dict[str, Any]:
    return {"samples": {"dense": [2.0, 4.0, 3.0], "ours": [seconds] * 3}, "info": info}


def test_a_row_is_model_variant_and_share() -> None:
    for variant in ("dense", *common.VARIANTS):
        assert one_model.parse(f"minilm:{variant}:.6") == ("minilm", variant, 0.6)
    for wrong in ("minilm", "minilm:prefix", "minilm:prefix:.6:1", "minilm:prefix:x", "a:plain:0"):
        with pytest.raises(ValueError, match="MODEL:VARIANT:SHARE"):
            one_model.parse(wrong)
    with pytest.raises(ValueError, match="variant must be dense or one of"):
        one_model.parse("minilm:prefixed:.6")


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"minilm, smollm2.*'bert'"):
        subjects.subject("bert")
    with pytest.raises(SystemExit, match=r"bert:plain:.5"):
        models.run(tmp_path, ["bert:plain:.5"], fresh=False)


def test_a_row_stands_beside_the_dense_model_it_was_timed_with() -> None:
    dense, ours = models.rows_of("minilm:prefix:.6", _measured(1.5, cosine=0.8))
    assert (dense.case, dense.variant, dense.median_s, dense.min_s) == ("0.6 prefix", "dense", 3, 2)
    assert (ours.case, ours.variant, ours.rounds) == ("0.6 prefix", "ours", 3)
    assert not dense.info
    assert ours.info == {"cosine": 0.8}


def test_files_grow_row_by_row_in_the_order_of_the_plan(tmp_path: Path) -> None:
    about = _subject()
    for spec in ("x:prefix:.4", "x:plain:.8", "x:prefix:.5"):
        store = models.Store(tmp_path, "x", about, fresh=False)
        store.add(models.rows_of(spec, _measured(1.0)))
    again = models.Store(tmp_path, "x", about, fresh=False)
    again.add(models.rows_of("x:prefix:.4", _measured(6.0)))  # measured anew
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row["case"] for row in rows[::2]] == ["0.8 plain", "0.4 prefix", "0.5 prefix"]
    assert [row["median_s"] for row in rows[1::2]] == [1.0, 6.0, 1.0]
    table = (tmp_path / "x.md").read_text()
    assert "a note" in table
    assert "| 0.4 prefix | ours | 6 s | 0.50 |" in table
    assert not models.Store(tmp_path, "x", about, fresh=True).cases


def test_rows_of_another_machine_are_not_mixed_in(tmp_path: Path) -> None:
    models.Store(tmp_path, "x", _subject(), fresh=False).add(
        models.rows_of("x:plain:.8", _measured(1.0))
    )
    path = tmp_path / "x.json"
    path.write_text(path.read_text().replace('"threads": ', '"threads": 9'))
    with pytest.raises(SystemExit, match="--fresh"):
        models.Store(tmp_path, "x", _subject(), fresh=False)


def test_the_plan_of_a_model_begins_with_the_dense_one() -> None:
    assert models.specs_of("x", _subject()) == [
        "x:dense:1",
        "x:plain:0.8",
        "x:prefix:0.8",
        "x:prefix:0.4",
    ]
    assert models.case_of("x:dense:1") == "dense"
