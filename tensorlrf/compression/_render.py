"""A table that shows itself: in the terminal, as plain text, and in Markdown."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensorlrf.errors import printable

if TYPE_CHECKING:
    from rich.console import Group

Header = tuple[tuple[str, str], ...]
"""(what a column is called, "left" or "right") of each."""

WIDTH = 200

MOST_ROWS = 2000
"""Of a table; to lay one out takes about a millisecond a row."""


@dataclass(frozen=True)
class Table:
    """Cells under a header, and what is told below them.

    rows   the cells of each, as many as the header has columns
    below  lists of lines
    """

    title: str
    header: Header
    rows: Sequence[Sequence[str]]
    below: Sequence[Sequence[str]]

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(title=Text(printable(self.title)), title_justify="left")
        for name, side in self.header:
            grid.add_column(name, justify="left" if side == "left" else "right", no_wrap=True)
        for cells in self.rows[:MOST_ROWS]:
            grid.add_row(*(Text(printable(cell)) for cell in cells))
        more = len(self.rows) - MOST_ROWS
        lines = [f"and {more:,} more; the JSON has all"] if more > 0 else []
        lines += [line for one in self.below for line in one]
        return Group(grid, *(Text(printable(line)) for line in lines))

    def __str__(self) -> str:
        return as_text(self, WIDTH)

    def to_markdown(self) -> str:
        """The same in Markdown, with all rows."""
        rules = ["---" if side == "left" else "---:" for _, side in self.header]
        lines = [[name for name, _ in self.header], rules, *self.rows]
        cells = ([printable(cell).replace("|", "\\|") for cell in row] for row in lines)
        table = ["| " + " | ".join(row) + " |" for row in cells]
        told = ([f"- {printable(line)}" for line in one] for one in self.below)
        blocks = [[f"**{printable(self.title)}**"], table, *told]
        return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def as_text(shown: Any, width: int) -> str:
    """What rich shows of something, as text without colours in so many columns."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
