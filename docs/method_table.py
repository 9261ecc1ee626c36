"""The table of methods in `formats.md`, from what they declare: run this file to renew it."""

from __future__ import annotations

import inspect
from pathlib import Path

from tensorlrf.decomposition.methods import LAYERS, names, registered

PAGE = Path(__file__).with_name("formats.md")
HEAD = "| function | what it finds | factors | layers | in `compress` | source |"
REFERENCES = "References\n----------\n"


def table() -> str:
    """A row for each decomposition: the first line of its docstring, what it gives, the layers that
    it serves, the config of its options where `compress` takes it by its word, and the references
    of its docstring."""
    rows = [HEAD, "| --- | --- | --- | --- | --- | --- |"]
    for name in names():
        found = registered(name)
        told = inspect.getdoc(found.function) or ""
        about = told.partition("\n")[0]
        source = told.partition(REFERENCES)[2].partition("\n\n")[0].replace("\n", " ")
        gives = ", ".join(f"`{kind.__name__}`" for kind in found.gives)
        serves = ", ".join(kind for kind in LAYERS if kind in found.on)
        config = "" if found.config is None else f"`{found.config.__name__}`"
        rows.append(f"| `{name}` | {about} | {gives} | {serves} | {config} | {source} |")
    return "\n".join(rows) + "\n"


def renewed(page: str) -> str:
    """The page with that table in place of the one it has."""
    before, _, rest = page.partition(HEAD)
    rows = rest.splitlines(keepends=True)
    end = next(k for k, row in enumerate(rows) if not row.startswith("|") and k)
    return before + table() + "".join(rows[end:])


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
