"""A bar on stderr for work that takes its time; silent where nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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

        def advance(name: str) -> None:
            bar.update(task, advance=1, done=name)

        yield advance
