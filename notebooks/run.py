"""Runs the notebooks of this folder and writes them with what they give: `make notebooks`.

A notebook is written as Python (jupytext's percent format), and committed beside what it gave when
it was run, NAME.ipynb, of which `make docs` makes a page.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
MOST_BYTES = 300_000
"""Of a notebook with its pictures."""


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with what its cells give. Raises CellExecutionError of the cell that fails."""
    notebook = jupytext.read(path)
    # tqdm would rather have ipywidgets, and says so with paths of the machine
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    where = {"metadata": {"path": str(HERE)}}
    client = NotebookClient(
        notebook, timeout=7200, kernel_name="python3", coalesce_streams=True, resources=where
    )
    client.execute()
    for k, cell in enumerate(notebook.cells):
        cell.id = str(k)  # else each run would have others
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if not is_bar(one)]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return notebook


def is_bar(output: nbformat.NotebookNode) -> bool:
    """Whether it is a progress bar and nothing else: a page has no use for its last stand."""
    if output.output_type != "stream" or output.name != "stderr":
        return False
    lines = [line for line in re.split(r"[\r\n]", output.text) if line.strip()]
    return all(re.search(r"\d+%\|.*\|", line) for line in lines)


def main() -> int:
    names = sys.argv[1:] or [path.stem for path in sorted(HERE.glob("*.py")) if path.stem != "run"]
    for name in names:
        text = nbformat.writes(executed(HERE / f"{name}.py")) + "\n"
        if len(text) > MOST_BYTES:
            print(f"{name}: {len(text):,} bytes are more than {MOST_BYTES:,}", file=sys.stderr)
            return 1
        (HERE / f"{name}.ipynb").write_text(text, encoding="utf-8")
        print(f"{name}: {len(text):,} bytes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
