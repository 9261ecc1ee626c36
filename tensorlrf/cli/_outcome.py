"""How a command ends: its result on stdout, or one line on stderr and an exit code."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import typer

from tensorlrf.errors import TensorlrfError, TensorlrfWarning

REFUSED = 2
UNEXPECTED = 1
INTERRUPTED = 130

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
        typer.echo(str(value))


def refuse(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"error: {one_line(message)}", err=True)


def warn(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"warning: {one_line(message)}", err=True)


def one_line(text: object) -> str:
    """The text without line breaks."""
    return " ".join(str(text).split())


@contextmanager
def guard(debug: bool) -> Iterator[None]:
    """Turn what a command raises into a line and an exit code; with `debug` the traceback too.

    Warnings of tensorlrf become a line each; those of others are shown as Python does.
    """
    try:
        with _our_warnings():
            yield
    except (typer.Exit, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing was written", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (TensorlrfError, OSError) as error:
        _trace(debug)
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        refuse(f"{error}{notes}")
        raise typer.Exit(REFUSED) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's
            raise
        _trace(debug)
        where = "" if debug else "; --debug shows where"
        refuse(f"{type(error).__name__}: {error} (this should not happen{where})")
        raise typer.Exit(UNEXPECTED) from None


def _trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()


@contextmanager
def _our_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always", TensorlrfWarning)
        others = warnings.showwarning

        def told(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, TensorlrfWarning):
                warn(str(message))
            else:
                others(message, category, *where, **more)

        warnings.showwarning = told
        yield
