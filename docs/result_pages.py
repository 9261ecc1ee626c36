"""Pages of the site that nobody writes: the files under `bench/results`."""

from __future__ import annotations

import shutil
from pathlib import Path

REPOSITORY = "bench/results"
"""As links of our pages have it, from the root of the repository."""


def write(results: Path, pages: Path) -> None:
    """`pages`, made anew: every Markdown file of `results` with its pictures, and an index."""
    shutil.rmtree(pages, ignore_errors=True)
    lines = ["# All measurements", ""]
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        (pages / folder.name).mkdir(parents=True)
        for path in sorted([*folder.glob("*.md"), *folder.glob("*.png")]):
            shutil.copyfile(path, pages / folder.name / path.name)
        names = [path.stem for path in sorted(folder.glob("*.md"))]
        lines += [f"## {folder.name}", "", "```{toctree}", ":maxdepth: 1", ""]
        lines += [*(f"{folder.name}/{name}" for name in names), "```", ""]
    (pages / "index.md").write_text("\n".join(lines))


def on_the_site(text: str, depth: int) -> str:
    """A page whose links to result files of the repository lead to their pages; `depth` folders
    down."""
    up = "../" * (depth + 1)
    return text.replace(f"]({up}{REPOSITORY}/", f"]({'../' * depth}results/")
