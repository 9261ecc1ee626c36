"""Result files become pages of the site, and links to them lead there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("result_pages", ROOT / "docs" / "result_pages.py")
assert SPEC is not None
assert SPEC.loader is not None
result_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(result_pages)


def test_every_result_file_has_a_page_that_the_index_lists(tmp_path: Path) -> None:
    result_pages.write(ROOT / "bench" / "results", tmp_path / "pages")
    listed = (tmp_path / "pages" / "index.md").read_text().splitlines()
    for path in ROOT.glob("bench/results/*/*.md"):
        assert f"{path.parent.name}/{path.stem}" in listed
        assert (tmp_path / "pages" / path.parent.name / path.name).read_text() == path.read_text()


def result(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text(json.dumps({"machine": {"device": "X", "threads": 2}, "rows": rows}))
    path.with_suffix(".md").write_text(f"# {path.stem}\n")


def timed(case: str, variant: str, seconds: float) -> dict[str, object]:
    return {"case": case, "variant": variant, "median_s": seconds}


def test_a_row_compares_with_the_fastest_peer_and_the_floor(tmp_path: Path) -> None:
    rows = [timed("a", "ours", 2.0), timed("a", "ours quick", 1.0), timed("a", "numpy", 4.0)]
    rows += [timed("a", "torch", 3.0), timed("a", "floor", 0.5)]
    rows += [timed("b", "ours", 1.0), timed("b", "torch", 12.0), timed("c", "ours", 1.0)]
    result(tmp_path / "svd.json", rows)
    result(tmp_path / "memory.json", [timed("a", "ours", 2.0)])
    lines = result_pages.section(tmp_path, lambda path: "a date")
    assert lines[0] == "X, threads 2."
    (row,) = [line for line in lines if line.startswith("| [svd]")]
    assert "| 2 | numpy; torch | 6.00x (3.00x, 12.00x) | 2.00 (2.00) | a date |" in row
    assert f"[memory]({tmp_path.name}/memory.md)" in lines[-1]


def test_every_committed_file_is_in_the_table_or_below_it() -> None:
    for folder in (ROOT / "bench" / "results").iterdir():
        if folder.is_dir():
            text = "\n".join(result_pages.section(folder, lambda path: ""))
            assert all(f"[{path.stem}](" in text for path in folder.glob("*.md"))


def test_pages_of_results_that_are_gone_go(tmp_path: Path) -> None:
    (tmp_path / "pages" / "old").mkdir(parents=True)
    (tmp_path / "results" / "gpu").mkdir(parents=True)
    (tmp_path / "results" / "gpu" / "a.md").write_text("# a\n")
    result_pages.write(tmp_path / "results", tmp_path / "pages")
    assert not (tmp_path / "pages" / "old").exists()
    assert "gpu/a" in (tmp_path / "pages" / "index.md").read_text()


@pytest.mark.parametrize(
    ("link", "depth", "there"),
    [
        ("[a](../bench/results/cpu/a.md)", 0, "[a](results/cpu/a.md)"),
        ("![a](../../bench/results/cpu/a.png)", 1, "![a](../results/cpu/a.png)"),
        ("[a](formats.md)", 0, "[a](formats.md)"),
    ],
)
def test_links_to_results_lead_to_their_pages(link: str, depth: int, there: str) -> None:
    assert result_pages.on_the_site(link, depth) == there
