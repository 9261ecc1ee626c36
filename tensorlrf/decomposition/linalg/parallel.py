"""Problems that do not wait for each other, several at a time, each in a thread of its own."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg.cores import look
from tensorlrf.decomposition.linalg.threads import handed_on, most_threads
from tensorlrf.errors import on_behalf_of, users_line

T = TypeVar("T")

WORTHWHILE = 2e8
"""Multiply-adds below which threads cost more than they give, some milliseconds of work."""

PIECE = 1 << 20
"""Elements that a thread takes at once, unless one place has more: they stay in its cache."""


def side_by_side(
    calls: Sequence[Callable[[], T]], sizes: Sequence[int] | None = None, room: float = 0
) -> Generator[T, None, None]:
    """What the calls give, in their order, each as soon as it and those before it are there.

    As many calls run at once as there are cores, which they share out; with `sizes`, bytes that
    they need, no more than have room together, of one call at the least. A call's result is what it
    is by itself. Raises what the first of them that fails raises; then, and when the caller stops
    in the middle or is interrupted, no other call begins, and those under way are ended.
    """
    most = most_threads()
    workers = min(len(calls), most, look().own)
    if workers < 2:
        for call in calls:
            yield call()
        return
    sizes = [0] * len(calls) if sizes is None else sizes
    with contextlib.closing(_Crew(calls, sizes, room, workers)) as crew:
        for k in range(len(calls)):
            yield crew.result(k)


def over_batch(
    function: Callable[..., tuple[Tensor, ...]], stacks: tuple[Tensor, ...], work: float
) -> tuple[Tensor, ...]:
    """`function(*stacks)`, computed for some of the places (b, ...) at a time, side by side.

    For LAPACK, which takes one matrix after the other and has little to share out within one of a
    few hundred columns, cores are better spent on different matrices. `function` gives tensors
    (b, ...), each place by itself; `work` is about its multiply-adds. As it is, in one go, where
    that is little, where a graph is kept, and on other devices than the CPU.
    """
    count, cores = len(stacks[0]), most_threads()
    graph = torch.is_grad_enabled() and any(stack.requires_grad for stack in stacks)
    if min(count, cores) < 2 or work < WORTHWHILE or graph or stacks[0].device.type != "cpu":
        return function(*stacks)
    step = max(1, min(count // (4 * cores), PIECE // stacks[0][0].numel()))
    pieces = zip(*(torch.split(stack, step) for stack in stacks), strict=True)
    calls = [partial(function, *piece) for piece in pieces]
    return tuple(torch.cat(parts) for parts in zip(*side_by_side(calls), strict=True))


class _Ended(BaseException):
    """Ends a call that nobody waits for; no Exception, so that no `except Exception` stops it."""


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    """What a call gave, or what it raised."""

    results: tuple[T, ...]
    error: BaseException | None

    @classmethod
    def of(cls, call: Callable[[], T]) -> _Outcome[T]:
        try:
            return cls((call(),), None)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            return cls((), error)

    def get(self) -> T:
        if self.error is not None:
            raise self.error
        return self.results[0]


class _Crew(Generic[T]):
    """Threads that take one call after the other, as this one hands them out."""

    def __init__(
        self, calls: Sequence[Callable[[], T]], sizes: Sequence[int], room: float, workers: int
    ) -> None:
        self._calls, self._sizes, self._room = calls, sizes, room
        self._next, self._free, self._used = 0, workers, 0
        # These queues hold no lock that an error raised in a thread could leave locked.
        self._requests: SimpleQueue[int | None] = SimpleQueue()
        self._back: SimpleQueue[tuple[int, _Outcome[T]]] = SimpleQueue()
        self._outcomes: dict[int, _Outcome[T]] = {}
        self._threads: list[threading.Thread] = []
        share = max(1, most_threads() // workers)
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        line = users_line()
        own = [handed_on(share) for _ in range(workers)]

        def work() -> None:
            with (
                contextlib.suppress(_Ended),
                on_behalf_of(line),
                torch.inference_mode(inference),
                torch.set_grad_enabled(grad),
                own.pop(),
            ):
                while (k := self._requests.get()) is not None:
                    self._back.put((k, _Outcome.of(self._calls[k])))

        for _ in range(workers):
            run = contextvars.copy_context().run
            self._threads.append(threading.Thread(target=run, args=(work,), daemon=True))
            self._threads[-1].start()

    def result(self, k: int) -> T:
        """Of call k. Raises what it raised."""
        while k not in self._outcomes:
            self._hand_out()
            try:
                # Not for ever: an interrupt just before the wait would wait with it.
                done, outcome = self._back.get(timeout=0.1)
            except Empty:
                continue
            self._outcomes[done] = outcome
            self._free, self._used = self._free + 1, self._used - self._sizes[done]
            if outcome.error is not None:
                self._next = len(self._calls)
        self._hand_out()
        return self._outcomes.pop(k).get()

    def _hand_out(self) -> None:
        idle = len(self._threads)
        while self._free and self._next < len(self._calls):
            size = self._sizes[self._next]
            if self._free < idle and self._used + size > self._room:
                return
            self._requests.put(self._next)
            self._next, self._free, self._used = self._next + 1, self._free - 1, self._used + size

    def close(self) -> None:
        """End the threads, whatever they are at, as soon as they are back at a line of Python."""
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            thread.join(0.01)
            while thread.is_alive():
                _raise_in(thread, _Ended)
                thread.join(0.1)


def _raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    """Raise in a thread, once it is at a line of Python."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(error)
        )
