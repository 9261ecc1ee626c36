"""How a command ends: its result on stdout, or one line on stderr and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
import typer

from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.page.document import Paged
from tensorlrf.errors import (
    ArgumentError,
    TensorlrfError,
    TensorlrfWarning,
    is_out_of_memory,
    printable,
)
from tensorlrf.files.events import log_to
from tensorlrf.files.folder import put_right

REFUSED = 2
UNEXPECTED = 1
INTERRUPTED = 130

MOST_THREADS = 1024
"""More than any machine has cores for; where the system has no room for them the process ends."""

WIDTH = 200
"""Columns of a table, at least."""


class Printable(Protocol):
    """A plan, a report: what prints itself as a table, and is JSON."""

    def to_json(self) -> str: ...


def show(value: Printable, as_json: bool) -> None:
    """The value as a table, or as JSON and nothing else."""
    if as_json:
        typer.echo(value.to_json())
    elif sys.stdout.isatty() and hasattr(value, "__rich__"):
        from rich.console import Console

        # In a narrow terminal lines go on below: cut to fit, no number could be read.
        size = Console().size
        Console(width=max(size.width, WIDTH), height=size.height).print(value)
    else:
        typer.echo(written(str(value), getattr(sys.stdout, "encoding", None)))


def written(text: str, encoding: str | None) -> str:
    """The text in characters that an encoding has, as those of Windows for files: the lines of a
    table are -, | and + where there are no others."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.translate(_LINES)
        return plain.encode(encoding, "backslashreplace").decode(encoding)
    return text


_LINES = dict.fromkeys(range(0x2500, 0x2580), "+") | {
    ord(line): {"─": "-", "━": "-"}.get(line, "|") for line in "─━│┃"
}


def write_page(html: Path | None, value: Paged, source: Path, what: str) -> None:
    """The page of a value, made of `source`."""
    if html is not None:
        value.to_html(html, title=titled(source, what), date=today())


def tell_written(target: Path, page: Path | None) -> None:
    """Where the result is, and its page."""
    if page is not None:
        typer.echo(f"its page is {printable(str(page))}")
    typer.echo(f"written to {printable(str(target))}")


def titled(source: Path, what: str) -> str:
    """What a page is called: the name of a file or folder without the way there, and a word."""
    return f"{source.resolve().name}, {what}"


def today() -> str:
    """As one writes it, by the time of Greenwich."""
    now = datetime.now(UTC)
    return f"{now.day} {now:%B %Y}"


def refuse(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"error: {one_line(message)}", err=True)


def warn(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"warning: {one_line(message)}", err=True)


def one_line(text: object) -> str:
    """The text without line breaks, safe for a terminal."""
    return printable(" ".join(str(text).split()))


class Ended(KeyboardInterrupt):
    """The system asks the program to end, by a signal other than that of Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """What ends the program, a terminal that closes too, is raised: so it cleans up."""

    def end(number: int, _: object) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)  # once is enough
        raise Ended(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # Who ignores one, as nohup does, or has a handler, is to be left with it.
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def guard(
    debug: bool,
    target: Path | None = None,
    log: Path | None = None,
    task: str = "",
    threads: int | None = None,
) -> Iterator[None]:
    """Turn what a command raises into a line and an exit code; with `debug` the traceback too.

    Warnings of tensorlrf become a line each; those of others are shown as Python does. `target` is
    what the command writes, `log` a file that gets what it does, which is called `task` there, and
    `threads` torch's number meanwhile.
    """
    if target is not None:
        with suppress(OSError):  # told by the command itself
            put_right(target)
    before = _seen(target)
    try:
        with _our_warnings(), log_to(log, task), on_threads(threads):
            yield
    except (typer.Exit, BrokenPipeError):
        raise
    except KeyboardInterrupt as stop:
        notes = getattr(stop, "__notes__", ()) or (_written(target, before),)
        typer.echo(f"interrupted; {one_line('; '.join(notes))}", err=True)
        raise typer.Exit(stop.code if isinstance(stop, Ended) else INTERRUPTED) from None
    except (TensorlrfError, OSError) as error:
        _trace(debug)
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        refuse(f"{error}{notes}")
        raise typer.Exit(REFUSED) from None
    except Exception as error:
        if is_out_of_memory(error):
            _trace(debug)
            notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
            refuse(f"no memory is left: {error or type(error).__name__}{notes}")
            raise typer.Exit(REFUSED) from None
        if hasattr(error, "format_message"):  # the parser's
            raise
        _trace(debug)
        where = "" if debug else "; --debug shows where"
        refuse(f"{type(error).__name__}: {error} (this should not happen{where})")
        raise typer.Exit(UNEXPECTED) from None


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """While entered, torch has so many threads for one operation; None for as many as it has.

    Raises ArgumentError for what cannot be.
    """
    if count is None:
        yield
        return
    if not 1 <= count <= MOST_THREADS:
        raise ArgumentError(f"--threads={count} must be at least 1 and at most {MOST_THREADS}")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _written(target: Path | None, before: object) -> str:
    """What an interruption left of what a command writes, which was `before`."""
    if target is None:
        return "nothing was written"
    try:
        put_right(target)
    except OSError as error:
        return one_line(error)
    if _seen(target) == before:
        return "nothing was written"
    return f"{printable(str(target))} is written"


def _seen(target: Path | None) -> object:
    """What tells one writing of a file, or of the model in a folder, from the next."""
    if target is None:
        return None
    for path in (target / TENSORS, target):
        try:
            found = os.lstat(path)
        except OSError:
            continue
        return found.st_ino, found.st_mtime_ns
    return None


def _trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()


@contextmanager
def _our_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always", TensorlrfWarning)
        others = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, TensorlrfWarning):
                warn(str(message))
            else:
                others(message, category, *where, **more)

        warnings.showwarning = show
        yield
