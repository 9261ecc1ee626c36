"""The counts as a table, beside those of another checkout."""

from __future__ import annotations

from bench.house.trees import Count


def table(found: dict[str, Count], old: dict[str, Count] | None) -> str:
    """As Markdown; what is counted stands below."""
    head = "| what | now | lines |" if old is None else "| what | before | now | lines |"
    lines = [head, "| --- |" + " ---: |" * (head.count("|") - 2)]
    for name, count in found.items():
        before = [] if old is None else [_number(old.get(name))]
        size = [_sizes(count, None if old is None else old.get(name))]
        lines.append(f"| {name} | {' | '.join([*before, _number(count), *size])} |")
    lines.append("")
    for name, count in found.items():
        if count.where:
            lines.append(f"- {name}: {'; '.join(count.where)}")
    return "\n".join(lines)


def _number(count: Count | None) -> str:
    return "" if count is None else str(count.number)


def _sizes(count: Count, before: Count | None) -> str:
    now = "" if count.lines is None else f"{count.lines:,}"
    return now if before is None or before.lines is None else f"{before.lines:,} -> {now}"
