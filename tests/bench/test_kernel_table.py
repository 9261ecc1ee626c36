"""The kernel table of docs/kernels.md is what the result files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.kernel_table import BEGIN, END, KERNELS, NOT_TIMED, PAGE, ROOT, section, written


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text()
    assert written(page) == page, "run python -m bench.kernel_table"


def test_every_kernel_of_the_core_has_a_line() -> None:
    folders = {path.parent.name for path in ROOT.glob("kernels/tensorlrf_kernels/*/kernel.py")}
    assert {kernel.name.partition(":")[0] for kernel in KERNELS} == folders


def test_without_results_nothing_is_claimed(tmp_path: Path) -> None:
    lines = section(tmp_path).splitlines()[2:]
    assert len(lines) == len(KERNELS)
    assert all(NOT_TIMED in line for line in lines)
    assert not any(character.isdigit() for line in lines for character in line.split("|")[4])


def row(variant: str, seconds: float, **info: Any) -> dict[str, Any]:
    return {"case": "a layer", "variant": variant, "median_s": seconds, "info": info}


def test_measured_rows_become_ratios(tmp_path: Path) -> None:
    fused = {"path": "fused", "M": 16, "launch": "decode", "over_floor": 1.5}
    rows = [row("dense", 8.0), row("chain r=64", 3.0), row("fused r=64", 2.0, **fused)]
    (tmp_path / "x").mkdir()
    result = {"machine": {"device": "NVIDIA X"}, "rows": rows}
    (tmp_path / "x" / "kernels.json").write_text(json.dumps(result))
    first, *others = section(tmp_path).splitlines()[2:]
    assert "| X | 1.50x (1.50x) | 4.00x (4.00x) | 1.50 (1.50) |" in first
    assert all(NOT_TIMED in line for line in others)


def test_marks_that_are_missing_are_named() -> None:
    with pytest.raises(ValueError, match="lacks the marks"):
        written("no marks")
    assert written(f"a{BEGIN}old{END}b").startswith(f"a{BEGIN}\n|")
