"""A bar on stderr for work that takes its time; silent where nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def progress_bar(title: str, total: int | None, enabled: bool) -> Iterator[Callable[[str], None]]:
    """Yields a function to call with the name of each thing done; `total` is None if unknown."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[done]}"),
    )
    silent = not (enabled and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task(title, total=total, done="")
        yield _Advance(bar, task)


@dataclass(frozen=True)
class _Advance:
    bar: Progress
    task: TaskID

    def __call__(self, name: str) -> None:
        self.bar.update(self.task, advance=1, done=name)
