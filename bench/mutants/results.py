"""What became of mutants: a line of JSON each, added as they come; a run can be continued."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from bench.mutants.mutant import Mutant
from bench.mutants.run import Outcome

BEFORE = Path(__file__).with_name("results.jsonl")
"""Of the day on which they were drawn."""
AFTER = Path(__file__).with_name("after.jsonl")


def add_result(path: Path, name: str, outcome: Outcome) -> None:
    """At the end of the file."""
    with path.open("a") as file:
        file.write(json.dumps([name, *outcome]) + "\n")


def read_results(path: Path) -> dict[str, Outcome]:
    """Name of a mutant -> what became of it, as it was said last; half a line at the end, of a run
    that was ended, is left out."""
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    return {name: Outcome(*rest) for name, *rest in map(json.loads, lines)}


def counts(results: dict[str, Outcome]) -> str:
    """How many of each kind."""
    found = Counter(outcome.result for outcome in results.values())
    return ", ".join(f"{n} {result}" for result, n in found.most_common())


def table(mutants: list[Mutant], results: dict[str, Outcome]) -> str:
    """Of each folder how many died, as Markdown, and those that did not."""
    rows: dict[str, Counter[str]] = {}
    for mutant in mutants:
        found = results.get(mutant.name, Outcome("not run"))
        rows.setdefault(mutant.folder, Counter())[found.result] += 1
    kinds = sorted({kind for counts in rows.values() for kind in counts})
    lines = [f"| folder | {' | '.join(kinds)} |", "| --- |" + " ---: |" * len(kinds)]
    for folder, counts in rows.items():
        lines.append(f"| {folder} | {' | '.join(str(counts[kind] or '') for kind in kinds)} |")
    alive = [m for m in mutants if results.get(m.name, Outcome("not run")).result != "killed"]
    lines += ["", *(f"- {results.get(m.name, Outcome('not run')).result}: {m.name}" for m in alive)]
    return "\n".join(lines)


def beside(before: dict[str, Outcome], after: dict[str, Outcome]) -> tuple[str, list[str]]:
    """(a row each as Markdown, the names of those that died before and do not now)."""
    lines = ["| mutant | before | now | killed now by |", "| --- | --- | --- | --- |"]
    worse = []
    for name, was in before.items():
        now = after.get(name, Outcome("not run"))
        if was.result == "killed" and now.result != "killed":
            worse.append(name)
        cells = (f"`{name}`", was.result, now.result, f"`{now.killer}`" if now.killer else "")
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join([*lines, "", f"before: {counts(before)}", f"now: {counts(after)}"]), worse
