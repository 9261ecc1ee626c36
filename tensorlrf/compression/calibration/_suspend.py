"""A call that can stop in the middle and be resumed: a coroutine for code that is not one.

The call has a thread of its own. With `advance` caller and call take turns, and only one of them
runs at a time; with `go_on` and `back` several calls may run side by side.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tensorlrf.decomposition.large.freed import releases as _releases

GROWTH = 1 / 32
"""Of what the process has: less is not worth the search for what it can give back."""


class _Closed(BaseException):
    """Ends a suspended call; no Exception, so that no `except Exception` on the way stops it."""


class Suspendable:
    """Runs `function(self)`, which may call `self.suspend(value)`.

    torch settings that belong to a thread (default device, CUDA stream) and context variables are
    those of the thread that makes the object; grad mode and autocast are not carried over.
    """

    def __init__(self, function: Callable[[Suspendable], None]) -> None:
        self._function = function
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._value: str | None = None
        self._error: BaseException | None = None
        self._closed = False
        context, settings = contextvars.copy_context(), _thread_settings()
        self._thread = threading.Thread(
            target=lambda: context.run(self._main, settings), daemon=True
        )
        self._thread.start()

    def advance(self) -> str | None:
        """Run on to the next `suspend` and return its value; None once the call has ended.

        Raises what the call raises.
        """
        self.go_on()
        return self.back()

    def go_on(self) -> None:
        """Run on to the next `suspend`, while the caller does something else."""
        self._go.release()

    def back(self) -> str | None:
        """Wait for what `advance` gives, after `go_on`."""
        self._back.acquire()
        trim()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._value

    def suspend(self, value: str) -> None:
        """Called from within: hand `value` over and wait until the caller wants to go on."""
        self._value = value
        self._back.release()
        self._wait()

    def close(self) -> None:
        """Abandon the call where it is, and wait until it has ended."""
        self._closed = True
        self._go.release()
        self._thread.join()

    def _wait(self) -> None:
        self._go.acquire()
        if self._closed:
            raise _Closed

    def _main(self, settings: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        try:
            self._wait()
            with settings():
                self._function(self)
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        self._value = None
        self._back.release()


class _Trimmer:
    """Gives freed memory back to the system. glibc's malloc has an arena for each thread, which
    keeps for it what was freed there, and MKL keeps workspaces for each: the many threads of
    suspended calls would together hold several times what they use. Unless it must be now, it
    waits until the process has grown by `GROWTH`, takes no more than about a fifth of the time, and
    leaves MKL alone, which others may be in."""

    def __init__(self) -> None:
        self._next = 0.0
        self._left = 0.0

    def __call__(self, *, now: bool = False) -> None:
        start = time.perf_counter()
        if not now and (start < self._next or resident_bytes() < (1 + GROWTH) * self._left):
            return
        of_mkl, of_malloc = _releases()
        if now:
            of_mkl()
        of_malloc()
        self._left = resident_bytes()
        end = time.perf_counter()
        self._next = end + 5 * (end - start)


trim = _Trimmer()


def resident_bytes() -> float:
    """Memory that the process has; infinite where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return float(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return math.inf


def _thread_settings() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context with the calling thread's default device and CUDA stream, in any thread.

    An autocast of the model's own keeps no casts of weights in it: they change between the calls.
    """
    device = torch.get_default_device()
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def settings() -> Iterator[None]:
        torch.set_autocast_cache_enabled(False)  # of this thread, which ends with the call
        with contextlib.ExitStack() as stack:
            if device.type != "cpu":
                stack.enter_context(device)
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            yield

    return settings
