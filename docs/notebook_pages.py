"""Pages of the site made of the notebooks, with what they gave when they were run."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ABOUT = """Each is a file of Python (jupytext) with what it gave when it was run; `make notebooks`
runs them anew."""


def write(notebooks: Path, pages: Path) -> None:
    """`pages`, made anew: a page for each notebook with its pictures, and an index."""
    shutil.rmtree(pages, ignore_errors=True)
    pages.mkdir(parents=True)
    names = [path.stem for path in sorted(notebooks.glob("*.ipynb"))]
    for name in names:
        notebook = json.loads((notebooks / f"{name}.ipynb").read_text("utf-8"))
        page = "\n".join(page_of(notebook, name, pages))
        (pages / f"{name}.md").write_text(page + "\n", encoding="utf-8")
    lines = ["# Notebooks", "", ABOUT, "", "```{toctree}", ":maxdepth: 1", "", *names, "```", ""]
    (pages / "index.md").write_text("\n".join(lines), encoding="utf-8")


def page_of(notebook: dict[str, Any], name: str, pages: Path) -> Iterator[str]:
    """Lines of Markdown; pictures are written beside them."""
    for k, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield from (source, "")
            continue
        yield from ("```python", source, "```", "")
        for n, output in enumerate(cell["outputs"]):
            picture = output.get("data", {}).get("image/png")
            if picture is not None:
                file = f"{name}-{k}-{n}.png"
                (pages / file).write_bytes(base64.b64decode("".join(picture)))
                yield from (f"![what this cell draws]({file})", "")
            elif text := text_of(output):
                yield from ("```text", text, "```", "")


def text_of(output: dict[str, Any]) -> str:
    """What a cell prints, or its value; without what only notebooks show in colours."""
    plain = output.get("text") or output.get("data", {}).get("text/plain") or ""
    return re.sub(r"\x1b\[[0-9;]*m", "", "".join(plain)).rstrip()


def cells_of(source: str) -> list[tuple[str, str]]:
    """(kind, text) of the cells of a file in the percent format."""
    found = []
    for block in re.split(r"^# %%", source, flags=re.MULTILINE)[1:]:
        head, _, body = block.partition("\n")
        body = body.strip("\n")
        if head.strip() == "[markdown]":
            found.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE)))
        else:
            found.append(("code", body))
    return found
