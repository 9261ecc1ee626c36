"""The pieces of the comparison of formats, on toy layers and on the planned ones' names."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXAMPLES = str(Path(__file__).parents[2] / "examples")
if EXAMPLES not in sys.path:
    sys.path.insert(0, EXAMPLES)

# The benchmarks import the examples by their file names, so the path comes first.
from bench import format_layers, format_rows, formats  # noqa: E402
from bench.format_layers import CONV, LINEAR, POINTWISE, Layer, Source  # noqa: E402
from bench.format_rows import FormatRow, measure, output_error  # noqa: E402
from bench.format_table import goal, markdown, summary  # noqa: E402
from tensorlrf.decomposition import svd  # noqa: E402


class Toy(nn.Module):
    """A convolution, a linear layer after it, and an in-place activation between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 12, 3, stride=(1, 1), padding=1)
        self.point = nn.Conv2d(12, 16, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.relu(self.point(self.relu(self.conv(x)))).movedim(1, -1))
        return out


def batches(n: int, seed: int) -> list[Tensor]:
    """Inputs whose channels have unequal energies."""
    draws = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, 9).float().rsqrt()[:, None, None]
    return [torch.randn(2, 8, 10, 9, generator=draws) * scale for _ in range(n)]


PATHS = {"conv": "conv", "point": "point", "linear": "linear"}


def source() -> Source:
    return Source(
        load=lambda: Toy().eval(),
        calibration=lambda: batches(6, 1),
        held_out=lambda: batches(3, 2),
        example=lambda: batches(1, 3)[0],
        layers=PATHS,
        note="a toy",
    )


@pytest.fixture(scope="module")
def layers() -> dict[str, Layer]:
    return source().made(list(PATHS))


def test_the_moments_are_those_of_the_unfolded_inputs(layers: dict[str, Layer]) -> None:
    patches = torch.cat([F.unfold(x, 3, padding=1).movedim(1, -1) for x in batches(6, 1)])
    rows = patches.reshape(-1, 72).double()
    exact = rows.T @ rows / len(rows)
    assert float((layers["conv"].gram - exact).norm()) <= 1e-6 * float(exact.norm())
    assert layers["conv"].held.shape == (72, 72)
    assert not torch.equal(layers["conv"].held, layers["conv"].gram)
    assert layers["linear"].gram.shape == (16, 16)


def test_the_input_for_times_is_the_one_before_it_is_changed_in_place(
    layers: dict[str, Layer],
) -> None:
    model, x = Toy().eval(), batches(1, 3)[0]
    with torch.no_grad():
        before = model.conv(x)
        expected = F.relu(before)
    assert torch.equal(layers["conv"].x, x)
    assert torch.equal(layers["point"].x, expected)
    assert layers["conv"].options == {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    assert not layers["linear"].options
    assert layers["point"].bias is None


def test_padded_tokens_are_left_out() -> None:
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    kept = format_layers.without_padding(x, mask)
    assert torch.equal(kept, torch.stack([x[0, 0], x[0, 1], x[1, 0]]))
    assert format_layers.without_padding(x, None) is x
    assert format_layers.without_padding(x[0], mask) is not None


def test_hooks_are_taken_off_again() -> None:
    model = Toy().eval()
    format_layers.moments(model, ["linear"], batches(1, 1))
    assert not model.linear._forward_pre_hooks
    with pytest.raises(RuntimeError):
        format_layers.moments(model, ["linear"], [torch.zeros(1, 5, 3, 3)])
    assert not model.linear._forward_pre_hooks


def test_the_output_error_is_that_of_the_outputs() -> None:
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 9, generator=draws, dtype=torch.float64)
    inputs = torch.randn(9, 40, generator=draws, dtype=torch.float64)
    factors = svd(weight, 3)
    off = (weight - factors.to_dense()) @ inputs
    exact = float(off.norm() / (weight @ inputs).norm())
    found = output_error(weight, factors, inputs @ inputs.T / 40)
    assert found == pytest.approx(exact, rel=1e-12)


CASES = [
    *(("linear", format) for format in LINEAR),
    *(("conv", format) for format in CONV),
    *(("point", format) for format in POINTWISE),
]


@pytest.mark.parametrize(("name", "format"), CASES, ids=[":".join(case) for case in CASES])
def test_a_row_of_every_format(layers: dict[str, Layer], name: str, format: str) -> None:
    row = measure("toy", name, layers[name], format, 0.5, seconds=1e-3)
    assert row.key == f"toy:{name}:{format}:0.5"
    assert row.kept <= 0.5
    # The fit goes down from the plain one in these moments; rounding to float32 is all it may lose.
    options = format_rows.options_of(format, row.shape)
    plain = format_rows.registered(format).for_layers(layers[name].weight, 0.5, **options)
    bound = output_error(layers[name].weight, plain, layers[name].gram)
    assert row.calibrated <= bound * (1 + 1e-5)
    assert 0 < row.weight_error < 1
    assert row.flops > 0
    assert row.path != "dense"
    assert min(row.dense_s, row.path_s, row.plain_s, row.aware_s) > 0
    assert FormatRow.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_rows_count_tokens_and_output_positions(layers: dict[str, Layer]) -> None:
    assert format_rows.rows_of(layers["linear"]) == 2 * 10 * 9
    assert format_rows.rows_of(layers["conv"]) == 2 * 10 * 9
    x = layers["conv"].x
    one = Layer(
        layers["conv"].weight, None, layers["conv"].gram, layers["conv"].held, x, {"stride": 2}
    )
    assert format_rows.rows_of(one) == 2 * 4 * 4


def test_the_plan_has_every_layer_in_its_formats() -> None:
    names = formats.plan()
    assert len(names) == len(set(names)) == 2 * (3 * len(CONV) + len(POINTWISE) + 12 * len(LINEAR))
    assert "minilm:5.output:blast:0.25" in names
    assert "craft:upconv2.0:tucker:0.5" not in names


def test_rows_are_asked_for_by_how_they_begin() -> None:
    names = formats.plan()
    assert formats.chosen(names, ["minilm:0.query:svd"]) == [
        "minilm:0.query:svd:0.25",
        "minilm:0.query:svd:0.5",
    ]
    assert len(formats.chosen(names, ["craft", "craft:slice1.10"])) == 34
    for wrong in ("bert", "minilm:0.que", "minilm:0.query:tucker"):
        with pytest.raises(SystemExit, match="--list"):
            formats.chosen(names, [wrong])


def row(format: str, aware: float, **changes: Any) -> FormatRow:
    given: dict[str, Any] = {
        "model": "minilm",
        "layer": "0.query",
        "shape": (384, 384),
        "format": format,
        "share": 0.25,
        "kept": 0.24,
        "weight_error": 0.6,
        "plain": 0.5,
        "aware": aware,
        "calibrated": 0.3,
        "flops": 0.25,
        "path": "chain",
        "dense_s": 4e-3,
        "path_s": 2e-3,
        "plain_s": 0.1,
        "aware_s": 0.2,
    }
    return FormatRow(**(given | changes))


def test_rows_that_fail_the_goal_are_named() -> None:
    assert goal([row("svd", 0.4)]).endswith("1 of 1 rows.")
    said = goal([row("svd", 0.4), row("tr", 0.5)])
    assert "1 of 2 rows" in said
    assert "minilm:0.query:tr:0.25 (0.5000, plain 0.5000)" in said
    text = markdown([row("tr", 0.5)], {"threads": 2}, ["a note"])
    assert "| 0.5000 (!) |" in text
    assert "a note" in text


def test_the_summary_has_means_over_layers_and_marks_the_least_error() -> None:
    rows = [
        row("svd", 0.4),
        row("svd", 0.2, layer="5.query", path_s=8e-3),
        row("blast", 0.25),
        row("blast", 0.25, layer="5.query"),
        row("cp", 0.1, shape=(8, 8, 3, 3)),
    ]
    lines = summary(rows)[2:]
    assert len(lines) == 3
    assert "| svd | 2 |" in lines[0]
    assert "| 0.300 |" in lines[0]
    # 2x and half: the geometric mean is 1.
    assert "| 1.00x | 0.6 s |" in lines[0]
    assert "**0.250**" in lines[1]
    assert "| cp, 3x3 | 1 |" in lines[2]


def test_files_grow_row_by_row_and_a_run_goes_on(tmp_path: Path) -> None:
    names = formats.plan()
    store = formats.Store(tmp_path, names, fresh=False)
    store.notes["minilm"] = "a note"
    store.add(row("kron", 0.4))
    store.add(row("svd", 0.3))
    again = formats.Store(tmp_path, names, fresh=False)
    assert [r.format for r in again.ordered()] == ["svd", "kron"]
    assert again.notes == {"minilm": "a note"}
    assert "Data-aware below plain" in (tmp_path / "formats.md").read_text()
    assert not list(tmp_path.glob(".*"))
    assert not formats.Store(tmp_path, names, fresh=True).rows
    path = tmp_path / "formats.json"
    path.write_text(path.read_text().replace('"threads": ', '"threads": 9'))
    with pytest.raises(SystemExit, match="--fresh"):
        formats.Store(tmp_path, names, fresh=False)


def test_a_run_measures_what_is_missing_and_survives_a_row_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def quick(model: str, name: str, layer: Layer, format: str, share: float) -> FormatRow:
        asked.append(format)
        if format == "kron":
            raise ValueError("no such sides")
        return row(format, 0.4, model=model, layer=name, share=share)

    monkeypatch.setattr(formats, "SOURCES", {"toy": source})
    monkeypatch.setattr(formats, "SHAPES", {"toy": {"point": (16, 12, 1, 1)}})
    monkeypatch.setattr(formats, "measure", quick)
    assert formats.run(tmp_path, [], fresh=False) == 2
    assert "toy:point:kron:0.25: failed, ValueError: no such sides" in capsys.readouterr().out
    asked.clear()
    assert formats.run(tmp_path, [], fresh=False) == 2
    assert asked == ["kron", "kron"]
    asked.clear()
    assert formats.run(tmp_path, ["toy:point:svd:0.5"], fresh=False) == 0
    assert asked == ["svd"]
    found = json.loads((tmp_path / "formats.json").read_text())
    assert len(found["rows"]) == 2
    assert found["notes"] == {"toy": "a toy"}
    assert math.isclose(found["rows"][0]["aware"], 0.4)
