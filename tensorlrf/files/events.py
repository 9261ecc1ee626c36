"""A log of what a long run does: JSON, an object a line, appended.

While `log_to` is entered, whatever works in this thread tells what it does by `tell`. A line is
written by one call of the system, so that several processes can have one log. Where it cannot be
written any more the run goes on without it.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tensorlrf.errors import FileError, TensorlrfWarning, warn
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.system import BINARY

BEGUN, DONE, STOPPED, ERROR = "begun", "done", "stopped", "error"
LAYER, STEP, SHARD = "layer", "step", "shard"
"""Kinds of events."""

LONGEST = 2000
"""Characters of a message."""

EVERY = 1.0
"""Seconds between two lines about steps of which there may be thousands."""


class _Log:
    """An open log.

    begun   when, by the clock of `time.monotonic`
    steps   task -> when its last step was told
    """

    def __init__(self, path: Path) -> None:
        self.path, self.begun = path, time.monotonic()
        self.steps: dict[str, float] = {}
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | BINARY, 0o666)
        except OSError as error:
            raise FileError(f"log={os.fspath(path)!r} cannot be written: {error}") from error

    def write(self, event: str, told: dict[str, Any]) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        values = {
            "event": event, "time": now, "seconds": round(time.monotonic() - self.begun, 3),
            **told, "memory": resident(), "process": os.getpid(),
        }  # fmt: skip
        line = json.dumps(values, default=str) + "\n"
        try:
            if self._file >= 0:
                os.write(self._file, line.encode())
        except OSError as error:
            self.close()
            warn(f"the log {self.path} ends here: {error}", TensorlrfWarning)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


_log: ContextVar[_Log | None] = ContextVar("_log", default=None)


@contextmanager
def log_to(path: PathLike | None, task: str = "run") -> Iterator[None]:
    """While entered, what this thread does with tensorlrf is logged to a file.

    Lines are JSON objects and are appended. Each has "event", "time" (UTC), "seconds" since the log
    was opened, "memory" (bytes of this process that are resident, None where that is not known) and
    "process". The first event is "begun", the last one "done", "stopped" (Ctrl-C, or asked to end)
    or "error" with what was raised; between these a "begun", and "layer", "step" or "shard" of each
    task on the way, with its name, how many of how many, and what else is known: bytes, seconds,
    the error of a weight.

    Parameters
    ----------
    path : str or path or None
        The file, made where it is missing; None logs nothing.
    task : str
        What the run is called in the first and the last line.

    Yields
    ------
    None

    Raises
    ------
    FileError
        Where the file cannot be written. A disk that is full later ends the log with a warning, not
        the run.

    Examples
    --------
    >>> import json, os, tempfile
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "run.jsonl")
    ...     with tensorlrf.log_to(path):
    ...         small, report = tensorlrf.compress(model, keep_params=0.5)
    ...     with open(path) as file:
    ...         lines = [json.loads(line) for line in file]
    >>> [line["event"] for line in lines]
    ['begun', 'begun', 'layer', 'done', 'done']
    """
    if path is None:
        yield
        return
    log = _Log(as_path(path, "log"))
    token = _log.set(log)
    try:
        with telling(task):
            yield
    finally:
        _log.reset(token)
        log.close()


def tell(event: str, **told: Any) -> None:
    """Log it, where there is a log."""
    log = _log.get()
    if log is not None:
        log.write(event, told)


def tell_step(task: str, **told: Any) -> None:
    """Log a step, where there is a log and it has had none of this task for a while."""
    log = _log.get()
    if log is None:
        return
    now = time.monotonic()
    if now - log.steps.get(task, -EVERY) >= EVERY:
        log.steps[task] = now
        log.write(STEP, {"task": task, **told})


@contextmanager
def telling(task: str, **told: Any) -> Iterator[None]:
    """Log how what is within begins and ends."""
    begun = time.monotonic()
    tell(BEGUN, task=task, **told)
    try:
        yield
    except BaseException as error:
        # KeyboardInterrupt is also what the program raises where the system asks it to end.
        kind = ERROR if isinstance(error, Exception) else STOPPED
        notes = getattr(error, "__notes__", [])
        about = {"error": type(error).__name__, "message": str(error)[:LONGEST], "notes": notes}
        tell(kind, task=task, took=round(time.monotonic() - begun, 3), **about)
        raise
    tell(DONE, task=task, took=round(time.monotonic() - begun, 3), peak=peak())


def resident() -> int | None:
    """Bytes of this process in memory; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def peak() -> int | None:
    """The most that there have been; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
