"""The report as a value, as text and as JSON."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tensorlrf.compression import Report, Tucker, compress
from tensorlrf.errors import FileFormatError
from tests.compression.networks import UNIFORM
from tests.json_trees import put


def small_report(method: str = "svd") -> tuple[nn.Module, nn.Module, Report]:
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, stride=2, bias=False),
        nn.Conv2d(24, 24, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 24),
    )
    data = [
        torch.randn(50, 3, 12, 12, generator=torch.Generator().manual_seed(k)) for k in (0, 1, 2)
    ]
    small, report = compress(model, keep_params=0.5, method=method, calibration=data, **UNIFORM)
    return model, small, report


@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_json_round_trip(method: str) -> None:
    *_, report = small_report(method)
    text = report.to_json()
    assert Report.from_json(text) == report
    assert json.loads(text)["keep_params"] == 0.5
    for broken in ("", "[]", "{}", text[:-9], text.replace('"rank"', '"order"'), "null"):
        with pytest.raises(FileFormatError, match="no report"):
            Report.from_json(broken)
    with pytest.raises(FileFormatError, match="version 3"):
        Report.from_json(text.replace('"version": 2', '"version": 3'))


def test_json_entries_of_another_type_are_named() -> None:
    *_, report = small_report()
    for entries, value, message in (
        (("keep_params",), "half", "keep_params of it is 'half', not float or null"),
        (("layers",), {}, "layers of it is {}, not list of mapping"),
        (("layers", 0, "params_after"), None, "params_after of entry 0 of layers of it is None"),
        (("layers", 3, "rank"), [2, "3"], "entry 1 of rank of entry 3 of layers of it is '3', not"),
        (("layers", 3, "eligible"), 1, "eligible of entry 3 of layers of it is 1, not bool"),
        (("model", "bytes_before"), True, "bytes_before of model of it is True, not int"),
        (("latency",), [1, 2], r"latency of it is \[1, 2\], not mapping or null"),
        (("batch_norms",), {"count": 1}, "batch_norms of it has the entries count; they must be"),
    ):
        values = json.loads(report.to_json())
        put(values, entries, value)
        with pytest.raises(FileFormatError, match=message):
            Report.from_json(json.dumps(values))


def test_totals_are_those_of_the_models() -> None:
    model, small, report = small_report()
    assert report.model.params_before == sum(p.numel() for p in model.parameters())
    assert report.model.params_after == sum(p.numel() for p in small.parameters())
    assert report.model.bytes_after == 4 * report.model.params_after
    weights = 3 * 24 * 9 + 24 * 24 * 9 + 24 * 24 + 24 * 24
    assert report.eligible.params_before == weights
    kept = report.model.params_before - report.model.params_after
    assert report.eligible.params_before - report.eligible.params_after == kept
    assert report.eligible.share <= 0.5


def test_flops_are_counted_on_the_first_batch() -> None:
    *_, report = small_report()
    assert report.layer("0").flops_before == 2 * 50 * 12 * 12 * 24 * 27
    assert report.layer("3").flops_before == 2 * 50 * 5 * 5 * 24 * 24 * 9
    row = report.layer("3")
    if row.path == "chain":
        assert isinstance(row.rank, int)
        assert row.flops_after == 2 * 50 * 25 * row.rank * (24 * 9 + 24)
    assert report.flops is not None
    uncalibrated = compress(nn.Linear(64, 64), keep_params=0.5)[1]
    assert uncalibrated.flops is None
    assert uncalibrated.layers[0].path


def test_text_and_markdown_tell_everything() -> None:
    *_, report = small_report()
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(report)
    for text in (str(report), report.to_markdown(), captured.get()):
        for row in report.layers:
            assert row.name in text
        assert "BatchNorm2d" in text
        assert f"{report.eligible.params_after:,}" in text
        assert f"{report.model.params_after:,} parameters" in text
        assert "asked for at most 50.0%" in text
        assert "data-aware" in text
        assert "2 calibration batches" in text
    table = [line for line in report.to_markdown().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + sum(row.factored for row in report.layers)


def test_a_report_is_frozen_and_looks_up_layers() -> None:
    *_, report = small_report()
    with pytest.raises(AttributeError):
        report.target = "original"  # type: ignore[misc]
    with pytest.raises(KeyError):
        report.layer("nowhere")
    assert report.layer("3").format == "lowrank"


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": 2, "stride": 2},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": "same", "padding_mode": "reflect"},
        {"padding": "same", "kernel_size": (4, 3)},  # one row more behind than before
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_flops_are_those_that_run(options: dict[str, Any]) -> None:
    conv = nn.Conv2d(16, 16, **{"kernel_size": 3, **options})
    x = torch.randn(20, 16, 9, 7, generator=torch.Generator().manual_seed(0))
    method = {"0": Tucker(rank=(6, 5)), "*": None}
    small, report = compress(nn.Sequential(conv, nn.ReLU()), method=method, calibration=[x])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(x)
    assert report.layer("0").flops_after == counter.get_total_flops()
