"""What notebooks gave is what is in the files: in step with their source, whole, and small."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for path in (ROOT / "notebooks").glob("*.py") if path.stem != "run")


def _pages() -> ModuleType:
    """docs/ is no package: Sphinx reads its files where they lie."""
    spec = importlib.util.spec_from_file_location("notebook_pages", ROOT / "docs/notebook_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages: Any = _pages()


def given(source: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(source.with_suffix(".ipynb").read_text("utf-8"))
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_it_was_run_as_it_stands(source: Path) -> None:
    cells = given(source)["cells"]
    assert [(x["cell_type"], "".join(x["source"])) for x in cells] == pages.cells_of(
        source.read_text("utf-8")
    )
    code = [x for x in cells if x["cell_type"] == "code"]
    assert [x["execution_count"] for x in code] == [*range(1, len(code) + 1)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_it_ended_without_an_error_or_a_warning(source: Path) -> None:
    outputs = [one for x in given(source)["cells"] for one in x.get("outputs", [])]
    assert {one["output_type"] for one in outputs} <= {"stream", "display_data"}
    assert {one["name"] for one in outputs if one["output_type"] == "stream"} == {"stdout"}
    assert any("image/png" in one.get("data", {}) for one in outputs)
    path = source.with_suffix(".ipynb")
    assert path.stat().st_size < 300_000
    text = path.read_text("utf-8")
    assert not [word for word in ("/work/", "/home/", "/root/", "/tmp/") if word in text]


def test_pages_have_what_the_notebooks_have(tmp_path: Path) -> None:
    pages.write(ROOT / "notebooks", tmp_path / "pages")
    index = (tmp_path / "pages" / "index.md").read_text("utf-8")
    for source in SOURCES:
        assert f"\n{source.stem}\n" in index
        page = (tmp_path / "pages" / f"{source.stem}.md").read_text("utf-8")
        assert page.startswith("# ")
        pictures = sorted((tmp_path / "pages").glob(f"{source.stem}-*.png"))
        assert len(pictures) == page.count("![") > 0
        assert all(one.read_bytes().startswith(b"\x89PNG") for one in pictures)
        for _, text in pages.cells_of(source.read_text("utf-8")):
            assert text in page
