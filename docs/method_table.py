"""The table of methods in `formats.md`, from what they declare: run this file to renew it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from tensorlrf.decomposition.methods import LAYERS, names, registered

PAGE = Path(__file__).with_name("formats.md")
RESULTS = PAGE.parents[1] / "bench" / "results" / "cpu"
HEAD = (
    "| function | what it finds | factors | layers | in `compress` | what always holds | measured "
    "| source |"
)
REFERENCES = "References\n----------\n"


def table() -> str:
    """A row for each decomposition: the first line of its docstring, what it gives, the layers that
    it serves, the config of its options where `compress` takes it by its word, its law, a figure of
    its result file, and the references of its docstring."""
    rows = [HEAD, "| --- " * 8 + "|"]
    for name in names():
        found = registered(name)
        told = inspect.getdoc(found.function) or ""
        about = told.partition("\n")[0]
        source = told.partition(REFERENCES)[2].partition("\n\n")[0].replace("\n", " ")
        gives = ", ".join(f"`{kind.__name__}`" for kind in found.gives)
        serves = ", ".join(kind for kind in LAYERS if kind in found.on)
        config = "" if found.config is None else f"`{found.config.__name__}`"
        more = f"{found.law} | {figure(found.measured)}"
        rows.append(f"| `{name}` | {about} | {gives} | {serves} | {config} | {more} | {source} |")
    return "\n".join(rows) + "\n"


def figure(measured: str) -> str:
    """A link to a result file, with how many times as long the peer takes as ours in the first case
    that is meant, where it has rows of both. Empty for a file that is not there."""
    stem, _, begins = (part.strip() for part in measured.partition(":"))
    path = RESULTS / f"{stem}.json"
    if not stem or not path.exists():
        return ""
    link = f"[{stem}](../bench/results/cpu/{stem}.md)"
    rows = [row for row in json.loads(path.read_text()).get("rows", []) if "variant" in row]
    case = next((row["case"] for row in rows if row["case"].startswith(begins)), None)
    of_it = [row for row in rows if row["case"] == case]
    ours = next((row for row in of_it if row["variant"].startswith("ours")), None)
    peer = next((row for row in of_it if not row["variant"].startswith(("ours", "floor"))), None)
    if ours is None or peer is None or not ours["median_s"] or not peer["median_s"]:
        return link
    return f"{times(ours, peer):.3g}x {peer['variant']}, {case}: {link}"


def times(ours: dict[str, Any], peer: dict[str, Any]) -> float:
    """The peer's time over ours: in turn where that was taken, else of medians."""
    known = (ours["info"].get(key) for key in ("over peer", "over_peer"))
    found = next((value for value in known if isinstance(value, (int, float))), None)
    return float(found if found is not None else peer["median_s"] / ours["median_s"])


def renewed(page: str) -> str:
    """The page with that table in place of the one it has."""
    before, _, rest = page.partition(HEAD)
    rows = rest.splitlines(keepends=True)
    end = next(k for k, row in enumerate(rows) if not row.startswith("|") and k)
    return before + table() + "".join(rows[end:])


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
