"""How far long work is: a bar on a terminal, a line a minute elsewhere, and what a log gets."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol

from tensorlrf.compression._words import duration
from tensorlrf.errors import printable
from tensorlrf.files.events import LAYER, tell, tell_step, telling

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

MINUTE = 60.0
"""Seconds between two lines where no terminal is."""


class Advance(Protocol):
    """To be called with the name of each thing that is done, and what a log is to say of it;
    `earlier` for what another run has done, not `logged` for what another process logs."""

    def __call__(
        self, name: str, /, *, earlier: bool = False, logged: bool = True, **told: Any
    ) -> None: ...


@contextmanager
def progress_bar(
    title: str, total: int | None, enabled: bool, *, layers: bool = False
) -> Iterator[Advance]:
    """Yields what to call with the name of each thing done.

    total   how many there are; None if unknown
    layers  whether these are layers, each of which is logged; of others one a second is
    """
    state = _State(title, total, layers)
    with telling(title, total=total), _shown(state) if enabled else nullcontext():
        yield state


class _State:
    """How far it is.

    done     how many, of them `before` that an earlier run has
    name     of the last one
    """

    def __init__(self, title: str, total: int | None, layers: bool) -> None:
        self.title, self.total, self.layers = title, total, layers
        self.begun = time.monotonic()
        self.done = self.before = 0
        self.name = ""
        self.shown: tuple[Progress, TaskID] | None = None

    def __call__(
        self, name: str, /, *, earlier: bool = False, logged: bool = True, **told: Any
    ) -> None:
        self.done += 1
        self.before += earlier
        self.name = name
        if self.shown is not None:
            bar, task = self.shown
            bar.update(task, advance=1, done=printable(name))
        if not logged:
            return
        told |= {"earlier": True} if earlier else {}
        about = {"name": name, "done": self.done, "total": self.total, **told}
        if self.layers:
            tell(LAYER, task=self.title, **about)
        else:
            tell_step(self.title, **about)

    def line(self) -> str:
        """How far it is, in words."""
        took = time.monotonic() - self.begun
        of = "" if self.total is None else f" of {self.total:,}"
        words = [f"{self.title}: {self.done:,}{of}", f"{duration(took)} so far"]
        new = self.done - self.before
        if self.total is not None and new and self.done < self.total:
            words.append(f"about {duration(took / new * (self.total - self.done))} left")
        return ", ".join([*words, *([printable(self.name)] if self.name else [])])


def _shown(state: _State) -> AbstractContextManager[None]:
    from rich.console import Console

    console = Console(stderr=True)
    return _bar(state, console) if console.is_terminal else _lines(state)


@contextmanager
def _bar(state: _State, console: Any) -> Iterator[None]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[done]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        state.shown = bar, bar.add_task(state.title, total=state.total, done="")
        try:
            yield
        finally:
            state.shown = None


@contextmanager
def _lines(state: _State) -> Iterator[None]:
    """A line a minute from a thread of its own, for one layer may take many; and one at the end, if
    there was any."""
    stop, said, stream = threading.Event(), threading.Event(), sys.stderr

    def watch() -> None:
        while not stop.wait(MINUTE):
            said.set()
            _say(stream, state.line())

    thread = threading.Thread(target=watch, name="tensorlrf progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if said.is_set():
            _say(stream, state.line())


def _say(stream: Any, line: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # nobody is there to read it any more
        stream.write(f"{line}\n")
        stream.flush()
