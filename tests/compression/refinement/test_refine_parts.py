"""Blocks are found by structure; the report is data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from tensorlrf import Refinement
from tensorlrf.compression import Checkpoint
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.refinement._blocks import blocks_of
from tensorlrf.compression.refinement._phases import apart
from tensorlrf.errors import ArgumentError, FileFormatError
from tests.compression.refinement.students import Residual, Tower
from tests.draws import seeded32


class Pair(nn.Module):
    """An encoder and a decoder, each a list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(Half(), nn.ReLU(), Other())


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Residual(4) for _ in range(2))


class Other(Half):
    pass


def stages() -> nn.Module:
    """Blocks in stages, as mobile networks have them."""
    return nn.ModuleList(nn.ModuleList(Residual(4) for _ in range(depth)) for depth in (1, 2))


def sequences() -> nn.Module:
    def one() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    return nn.Sequential(nn.Linear(4, 4), one(), one(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Tower(depth=2), ["blocks.0", "blocks.1"]),
        (Pair(), [f"parts.{k}.layers.{j}" for k in (0, 2) for j in (0, 1)]),
        (stages(), ["0.0", "1.0", "1.1"]),
        (sequences(), ["1", "2"]),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), []),
        (nn.Linear(4, 4), []),
        (nn.Sequential(Residual(4)), []),
    ],
    ids=["list", "halves", "stages", "sequences", "layers", "layer", "once"],
)
def test_blocks_are_what_lists_repeat(model: nn.Module, names: list[str]) -> None:
    assert blocks_of(model) == names


def test_a_token_with_a_large_norm_counts_as_one() -> None:
    wanted = seeded32(2, 5, 8, seed=1)
    got = wanted + 0.1 * seeded32(2, 5, 8, seed=2)
    scale = torch.ones(2, 5, 1)
    scale[0, 0] = 1e4
    batch = Batch.of(wanted)
    torch.testing.assert_close(
        apart(scale * wanted, scale * got, batch), apart(wanted, got, batch), rtol=1e-2, atol=0
    )
    assert float(apart(wanted, wanted, batch)) == 0
    assert torch.isfinite(apart(torch.zeros(2, 3), torch.zeros(2, 3), batch))


def report() -> Refinement:
    curve = (
        Checkpoint("given", 0, 0.5, None, 0.4, kept=True),
        Checkpoint("local", 3, 1.5, 0.2, 0.3, kept=True),
        Checkpoint("global", 6, 2.5, 0.1, None, kept=False),
        Checkpoint("global", 9, 3.5, 0.1, 0.29, kept=False),
    )
    return Refinement("nats a row", 100, 5, 1, 4, 2, "the budget is spent", curve)


def test_the_report_is_json_and_a_table() -> None:
    told = report()
    assert Refinement.from_json(told.to_json()) == told
    assert (told.before, told.after, told.steps, told.seconds) == (0.4, 0.3, 9, 3.5)
    assert told.best is told.curve[1]
    text = str(told)
    for words in (
        "0.4 to 0.3 nats a row",
        "returned",
        "skipped",
        "5 batches",
        "4 pairs",
        "budget is spent",
    ):
        assert words in text
    assert "| local | 3 |" in told.to_markdown()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"curve": []},
        {"curve": [{"phase": 3}]},
        {"curve": [asdict(Checkpoint("given", 0, 0.5, None, 0.4, kept=False))]},
        {"steps": 3},
        {"reason": None},
    ],
    ids=str,
)
def test_text_that_is_no_report_is_refused(change: dict[str, object]) -> None:
    values = {**json.loads(report().to_json()), **change}
    with pytest.raises(FileFormatError, match="refinement"):
        Refinement.from_json(json.dumps(values))
    with pytest.raises(FileFormatError, match="no refinement"):
        Refinement.from_json("[1")


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    report().plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    with pytest.raises(ArgumentError, match="suffix"):
        report().plot(tmp_path / "curve")
