"""A worker from outside: a process in a group of its own, which is told cases and tells lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

PATIENCE = 2.0  # s for a killed process to be gone; one that hangs in the driver may never be
STUCK = "its process does not die"


class Worker:
    """A process that reads requests, a line of JSON each, and writes lines of JSON."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd=folder,
            # A group, for what it starts in its turn; no session, which would outlive us.
            process_group=0,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.out, self.err = self._process.stdout.fileno(), self._process.stderr.fileno()
        for pipe in (self.out, self.err):
            os.set_blocking(pipe, False)
        self.rest = b""  # of a line that has not ended

    def ask(self, request: Mapping[str, Any]) -> None:
        """Send a request; one that is dead already will be found so when its lines are read."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), (json.dumps(request) + "\n").encode())

    def lines(self) -> tuple[list[bytes], bool]:
        """The lines that have come, and whether more may."""
        text, more = _read(self.out)
        *whole, self.rest = (self.rest + text).split(b"\n")
        return whole, more

    def said(self) -> tuple[bytes, bool]:
        """What has come on the other stream, and whether more may."""
        return _read(self.err)

    def strike(self) -> None:
        """Have it end, and what it started, without waiting for that."""
        self._process.poll()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self, patience: float = PATIENCE) -> str:
        """End it and what it started; returns how it ended, in words."""
        self.strike()
        try:
            return _words(self._process.wait(patience))
        except subprocess.TimeoutExpired:
            return STUCK

    def close(self) -> None:
        """Close the pipes, from which all has been read."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(OSError):  # a request that was not read
                    pipe.close()


def _read(pipe: int) -> tuple[bytes, bool]:
    """What is there, up to some MiB, and whether more may come."""
    parts = []
    for _ in range(64):
        try:
            parts.append(os.read(pipe, 2**16))
        except BlockingIOError:
            break
        if not parts[-1]:
            return b"".join(parts), False
    return b"".join(parts), True


def _words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
