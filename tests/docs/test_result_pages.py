"""Result files become pages of the site, and links to them lead there."""

from __future__ import annotations

import importlib.util
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
