"""The errors and warnings of tensorlrf.

Whatever is wrong with a *value* is also a `ValueError`, so that code which does not know us
can still catch it. Every message names the argument, the value it had, and what would be right.
Values may come from files of strangers: whatever is said of them is safe to print, and short.
"""

from __future__ import annotations

import contextlib
import os
import reprlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any

LONGEST_MESSAGE = 2000
"""Characters."""


def printable(text: str) -> str:
    r"""The text with an escape, such as \x1b, for what a terminal would act upon or not show.

    That is each control character, line break, and mark of the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """A value that was read from JSON, as a few words of a message: long and deep ones in part."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60
_SHORT.maxlevel = 3


def _message(text: str) -> str:
    """The text to print, without its middle where it is long."""
    for _ in range(2):  # escapes may make it long again
        over = len(text) - LONGEST_MESSAGE
        if over > 0:
            end = LONGEST_MESSAGE // 2
            text = f"{text[: end - 5]} ... {text[-end:]}"
        text = printable(text)
    return text


class TensorlrfError(Exception):
    """Root of everything that tensorlrf raises on purpose.

    Its message is one line of at most 2,000 characters, all of them printable.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_message(str(message)))


class ArgumentError(TensorlrfError, ValueError):
    """An argument has a value that cannot be used."""


class ShapeError(ArgumentError):
    """Tensors whose sizes do not fit each other, or do not fit the layer."""


class RankError(ArgumentError):
    """A rank that is zero, negative, too large, or has the wrong number of entries."""


class UnsupportedError(TensorlrfError, NotImplementedError):
    """A correct request that this version does not serve; the message says what to do instead."""


class FileFormatError(TensorlrfError, ValueError):
    """A file that is damaged, foreign, of a later format version, or made for another model."""


class FileError(TensorlrfError, OSError):
    """A path that cannot be read or written: it exists, is missing, or the system refuses it."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that is not there."""


class GroupError(TensorlrfError, RuntimeError):
    """Ranks of a process group do not agree, or one of them is lost or has failed."""


class MissingExtraError(TensorlrfError, ImportError):
    """A package that only an extra of tensorlrf brings; the message says how to install it."""


class TensorlrfWarning(UserWarning):
    """Root of everything that tensorlrf warns of."""


class DegenerateWarning(TensorlrfWarning):
    """The tensor has fewer independent directions than were asked for."""


class ConvergenceWarning(TensorlrfWarning):
    """An iteration has ended before it had come near its end."""


class CalibrationWarning(TensorlrfWarning):
    """Calibration is too thin, or does not reach a layer."""


class BudgetWarning(TensorlrfWarning):
    """A model keeps far more of itself than was asked for."""


_WITHIN = (os.path.dirname(__file__) + os.sep, contextlib.__file__, threading.__file__)
"""Files of this package, of the contexts that decorate its functions, and of its threads."""

Line = tuple[str, int, dict[Any, Any]]
"""A file, a number in it, and what its module has been warned of."""


class _Thread(threading.local):
    line: Line | None = None


_here = _Thread()
_gathered: ContextVar[tuple[type[TensorlrfWarning], list[str]] | None] = ContextVar(
    "gathered", default=None
)


def warn(message: str, category: type[TensorlrfWarning]) -> None:
    """Warn of the first line outside of this package that led here, in whichever thread.

    Not where somebody gathers such warnings, to tell them together.
    """
    gathered = _gathered.get()
    if gathered is not None and issubclass(category, gathered[0]):
        gathered[1].append(message)
        return
    filename, line, warned = users_line()
    warnings.warn_explicit(_message(message), category, filename, line, registry=warned)


@contextlib.contextmanager
def gathering(category: type[TensorlrfWarning]) -> Iterator[list[str]]:
    """Warnings of that kind from within go to the list, and are not given."""
    said: list[str] = []
    token = _gathered.set((category, said))
    try:
        yield said
    finally:
        _gathered.reset(token)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether it, or what it was raised from, says that there is no memory left: of Python, of
    torch's allocator on the CPU, or of one on a device."""
    while error is not None:
        kinds = {cls.__name__ for cls in type(error).__mro__}
        if kinds & {"MemoryError", "OutOfMemoryError"}:
            return True
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def lowered_by(remedy: Callable[[], str]) -> Iterator[None]:
    """Where memory ends within, have the error note what was at hand and what takes less of it.
    Where one of these lies in another, the inner one has said it."""
    try:
        yield
    except (MemoryError, RuntimeError, TensorlrfError) as error:
        told = any(note.startswith(_MEMORY) for note in getattr(error, "__notes__", ()))
        if is_out_of_memory(error) and not told:
            error.add_note(f"{_MEMORY} {remedy()}")
        raise


_MEMORY = "memory ended"


def users_line() -> Line:
    """The first line outside of this package among the callers.

    In a thread of ours, the line that it works for.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_WITHIN):
        frame = frame.f_back
    if frame is None:
        return _here.line or (__file__, 1, {})
    warned = frame.f_globals.setdefault("__warningregistry__", {})
    return frame.f_code.co_filename, frame.f_lineno, warned


@contextlib.contextmanager
def on_behalf_of(line: Line) -> Iterator[None]:
    """Tell a thread of ours which of the user's lines it works for."""
    _here.line = line
    try:
        yield
    finally:
        _here.line = None


def unknown(argument: str, value: object, valid: list[str] | tuple[str, ...]) -> ArgumentError:
    """The error for a word that is not in a list of words."""
    return ArgumentError(f"{argument}={value!r} is unknown; choose one of {', '.join(valid)}")
