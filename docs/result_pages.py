"""Pages of the site that nobody writes: the files under `bench/results`, and a table over them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

REPOSITORY = "bench/results"
"""As links of our pages have it, from the root of the repository."""

OURS = ("ours", "op", "fused", "chain", "fold", "rebuilt", "frozen")
"""What the variants of ours begin with; "floor" is what no way can be faster than, and the rest are
peers."""

HEAD = "| what | cases | peers | over the fastest: mean (least, most) | over the floor | changed |"
ABOUT = """Of each file: in how many cases ours and a peer were timed, and how many times as fast
the fastest variant of ours is as the fastest peer there, by medians: the geometric mean over the
cases, the least and the most. A peer counts whatever error it leaves; errors, parameters and single
times stand on the page of the file. Where a floor was timed (the library calls that no way can do
without): the geometric mean and the worst of our time over it."""

Changed = Callable[[Path], str]


def write(results: Path, pages: Path) -> None:
    """`pages`, made anew: every Markdown file of `results` with its pictures, and an index."""
    shutil.rmtree(pages, ignore_errors=True)
    lines = ["# Results", "", ABOUT, ""]
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        (pages / folder.name).mkdir(parents=True)
        for path in sorted([*folder.glob("*.md"), *folder.glob("*.png")]):
            shutil.copyfile(path, pages / folder.name / path.name)
        lines += [f"## {folder.name}", "", *section(folder, last_change), ""]
        names = [path.stem for path in sorted(folder.glob("*.md"))]
        lines += ["```{toctree}", ":maxdepth: 1", ":hidden:", ""]
        lines += [*(f"{folder.name}/{name}" for name in names), "```", ""]
    (pages / "index.md").write_text("\n".join(lines))


def section(folder: Path, changed: Changed) -> list[str]:
    """What the files of one device say: its line, the table, and links to files of other kinds."""
    files = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    machines = dict.fromkeys(_machine(content.get("machine", {})) for content in files.values())
    table, others = [], []
    for path, content in files.items():
        if not path.with_suffix(".md").exists():
            continue
        link = f"[{path.stem}]({folder.name}/{path.stem}.md)"
        cells = compared(content.get("rows"))
        if cells:
            table.append(f"| {link} | {' | '.join(cells)} | {changed(path)} |")
        else:
            others.append(link)
    written = {path.stem for path in files}
    others += [
        f"[{path.stem}]({folder.name}/{path.stem}.md)"
        for path in sorted(folder.glob("*.md"))
        if path.stem not in written
    ]
    lines = [*(f"{machine}." for machine in machines if machine)]
    if table:
        lines += ["", HEAD, "| --- | --- | --- | --- | --- | --- |", *table]
    if others:
        lines += ["", f"Models, choices and memory: {', '.join(others)}."]
    return lines


def compared(rows: Any) -> list[str]:
    """(cases, peers, ratios, ratios to the floor) as cells; none where no case has both."""
    cases: dict[str, dict[str, float]] = {}
    for row in rows if isinstance(rows, list) else ():
        if {"case", "variant", "median_s"} <= row.keys():
            cases.setdefault(row["case"], {})[row["variant"]] = row["median_s"]
    peers: dict[str, None] = {}
    ratios, floors = [], []
    for timed in cases.values():
        ours = [s for variant, s in timed.items() if variant.startswith(OURS)]
        others = {
            variant: s
            for variant, s in timed.items()
            if not variant.startswith((*OURS, "floor")) and s > 0
        }
        if ours and others:
            peers |= dict.fromkeys(others)
            ratios.append(min(others.values()) / min(ours))
        if ours and timed.get("floor"):
            floors.append(min(ours) / timed["floor"])
    if not ratios:
        return []
    over = f"{_mean(ratios):.2f}x ({min(ratios):.2f}x, {max(ratios):.2f}x)"
    floor = f"{_mean(floors):.2f} ({max(floors):.2f})" if floors else ""
    return [str(len(ratios)), "; ".join(peers), over, floor]


def last_change(path: Path) -> str:
    """Date and commit of a file's last change; empty where there is no history."""
    git = ["git", "-C", str(path.parent), "log", "-1", "--format=%cs %h", "--", path.name]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _machine(about: dict[str, Any]) -> str:
    """In words; a GPU's names the commit that was measured."""
    names = ("device", "threads", "torch", "triton", "cuda", "commit")
    said = [(name, about[name]) for name in names if about.get(name) is not None]
    return ", ".join(str(value) if name == "device" else f"{name} {value}" for name, value in said)


def _mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def on_the_site(text: str, depth: int) -> str:
    """A page whose links to result files of the repository lead to their pages; `depth` folders
    down."""
    up = "../" * (depth + 1)
    return text.replace(f"]({up}{REPOSITORY}/", f"]({'../' * depth}results/")
