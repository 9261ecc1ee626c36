"""The rows of `bench/refine.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.refine import ROWS, Spec, table
from bench.refine_cases import placed
from tensorlrf.compression import Checkpoint, Refinement
from tensorlrf.compression._held_out import held_out


def test_a_row_names_a_model_its_share_phases_and_arguments() -> None:
    assert [str(Spec.of(row).name) for row in ROWS if row.startswith("smollm2")] == [
        "smollm2@.9",
        "smollm2@.8",
        "smollm2@.6",
    ]
    spec = Spec.of("minilm@.4:local,global+lr=.01+steps=40+dtype=bfloat16+look_ahead=true")
    assert (spec.name, spec.phases) == ("minilm@.4", ["local", "global"])
    wanted = {"lr": 0.01, "steps": 40, "dtype": torch.bfloat16, "look_ahead": True}
    assert spec.options == wanted
    assert Spec.of("own_cnn@1:all").phases is None


@pytest.mark.parametrize(
    "row", ["minilm", "minilm:all", "craft@.5:all", "minilm@.4:all+lr", "@.5:"]
)
def test_what_is_no_row_is_told(row: str) -> None:
    with pytest.raises(ValueError, match="a row is MODEL@SHARE:PHASES"):
        Spec.of(row)


@given(st.integers(1, 60), st.integers(1, 9))
def test_refine_holds_out_what_was_placed_for_it(n_trained: int, n_held: int) -> None:
    trained, held = list(range(n_trained)), list(range(100, 100 + n_held))
    data, share = placed(trained, held)
    places = held_out(len(data), share)
    assert [data[k] for k in places] == held
    assert [one for k, one in enumerate(data) if k not in places] == trained


def test_the_table_has_test_figures_or_none() -> None:
    curve = (
        Checkpoint("given", 0, 1.0, None, 0.4, kept=True),
        Checkpoint("local", 3, 9.0, 0.2, 0.3, kept=True),
    )
    report = Refinement("nats a row", 10, 5, 1, 4, 0, "the budget is spent", curve)
    row: dict[str, Any] = {
        "case": "minilm@.4:all", "cpu_s": 7.0, "peak_mb": None,
        "report": json.loads(report.to_json()),
    }  # fmt: skip
    alone = table([row], {"device": "x"})
    assert "| minilm@.4:all | 0.4 | 0.3 | 3 | 9 | 7 |  | the budget is spent |" in alone
    row["test"] = {"before": {"cosine": 0.5}, "after": {"cosine": 0.75}}
    assert "| 0.3 | cosine 0.500 | cosine 0.750 | 3 |" in table([row], {"device": "x"})
