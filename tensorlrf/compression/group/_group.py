"""The ranks that make a call together, or the one process that makes it by itself.

Within a process group of torch.distributed a call that shares out its work is made on all ranks,
and gives all of them the same. `on_one_rank` is for whoever wants to be alone.
"""

from __future__ import annotations

import io
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from itertools import count
from typing import Any, TypeVar
from weakref import WeakMethod

import torch
from torch import Tensor, distributed

from tensorlrf.compression.group._board import Board
from tensorlrf.errors import ArgumentError, GroupError, is_out_of_memory

T = TypeVar("T")

_calls = count()
"""Of this process, each of which all ranks make."""

_alone: ContextVar[bool] = ContextVar("alone", default=False)


class Alone:
    """One process: nothing is sent, and all there is to agree with is itself.

    rank, size  of the group
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the rank that prints, and keeps what all have in common."""
        return self.rank == 0

    @cached_property
    def beside(self) -> int:
        """How many ranks are on this machine."""
        return 1

    def agree(self, values: Mapping[str, Any]) -> None:
        """Raise GroupError, on all ranks, where one of these is not the same on all."""

    def total(self, tensors: Sequence[Tensor]) -> None:
        """Put into each the sum over all ranks, bit for bit the same on all."""

    def totals(self, values: Sequence[float]) -> list[float]:
        """The sum of each over all ranks, in float64."""
        return list(values)

    def least(self, value: float) -> float:
        """Over all ranks."""
        return value

    def every(self, so: bool) -> bool:
        """Whether it is so on all ranks."""
        return so

    def gathered(self, value: T) -> list[T]:
        """What each rank has, in their order."""
        return [value]

    def fail_together(self, error: Exception | None) -> None:
        """Raise what one of them has met, on all ranks."""
        if error is not None:
            raise error

    def of(self, rank: int, value: T) -> T:
        """What that rank has, with its tensors on the CPU for the others."""
        return value


ALONE = Alone()


class Group(Alone):
    """The ranks of the default process group.

    board  where they tell each other about this call
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self.rank, self.size = board.rank, board.size
        self._lent: list[WeakMethod[Callable[[], Tensor]]] = []
        self._meeting = threading.Lock()

    @cached_property
    def beside(self) -> int:
        hosts = self.gathered(platform.node())
        return hosts.count(hosts[self.rank])

    def agree(self, values: Mapping[str, Any]) -> None:
        self.board.agree(values)

    def total(self, tensors: Sequence[Tensor]) -> None:
        small = [t for t in tensors if t.numel() <= BUCKET]
        for dtype, device in dict.fromkeys((t.dtype, t.device) for t in small):
            own = [t for t in small if (t.dtype, t.device) == (dtype, device)]
            flat = torch.cat([t.flatten() for t in own])
            self._done(distributed.all_reduce, flat)
            parts = torch.split(flat, [t.numel() for t in own])
            for t, part in zip(own, parts, strict=True):
                t.copy_(part.view_as(t))
        for t in tensors:
            if t.numel() > BUCKET:
                self._done(distributed.all_reduce, t)

    def totals(self, values: Sequence[float]) -> list[float]:
        flat = torch.tensor(values, dtype=torch.float64, device="cpu")
        self.total([flat])
        return [float(v) for v in flat]

    def least(self, value: float) -> float:
        held = torch.tensor([value], dtype=torch.float64, device="cpu")
        self._done(distributed.all_reduce, held, op=distributed.ReduceOp.MIN)
        return float(held)

    def every(self, so: bool) -> bool:
        return self.least(float(so)) > 0

    def gathered(self, value: T) -> list[T]:
        return [self.of(k, value) for k in range(self.size)]

    def fail_together(self, error: Exception | None) -> None:
        ours = isinstance(error, ArgumentError)
        told = self.gathered(None if error is None else (ours, f"{error}"))
        if error is not None:
            raise error
        for rank, one in enumerate(told):
            if one is not None:
                kind = ArgumentError if one[0] else RuntimeError
                raise kind(f"rank {rank}: {one[1]}")

    def of(self, rank: int, value: T) -> T:
        if rank == self.rank:
            held = io.BytesIO()
            torch.save(value, held)
            text = torch.frombuffer(held.getbuffer(), dtype=torch.uint8)
        size = torch.tensor([len(text) if rank == self.rank else 0], device="cpu")
        self._done(distributed.broadcast, size, src=rank)
        if rank != self.rank:
            text = torch.empty(int(size), dtype=torch.uint8, device="cpu")
        self._done(distributed.broadcast, text, src=rank)
        if rank == self.rank:
            return value
        # From a rank of this very group, which runs the same program.
        found: T = torch.load(io.BytesIO(text.numpy().tobytes()), "cpu", weights_only=False)
        return found

    def lend(self, whole: Callable[[], Tensor]) -> int:
        """Take up a method that puts a tensor together of the parts which the ranks have, by
        collectives of all of them: under this number each may have it by `borrow`, as long as its
        object is alive on all. A call of all ranks."""
        self._lent.append(WeakMethod(whole))
        self.every(True)  # nobody asks for what another rank does not know yet
        return len(self._lent) - 1

    def borrow(self, number: int) -> Tensor:
        """A tensor that was lent, whenever this rank wants it and whatever the others are at: where
        they wait for one another next, they first do their part for it."""
        found = self._meet(number)
        assert found is not None
        return found

    def _meet(self, wanted: int = -1) -> Tensor | None:
        """Take part in what any rank borrows, until all ranks are at something else; or until this
        one has what is `wanted`."""
        with self._meeting:
            while True:
                told = torch.full((self.size,), -1, dtype=torch.int64, device="cpu")
                own = torch.tensor([wanted], dtype=torch.int64, device="cpu")
                self.put_together(told, own)
                found = None
                for number in sorted(set(told.tolist()) - {-1}):
                    together = self._lent[number]()
                    assert together is not None
                    with self._told_if_lost():
                        whole = together()
                    if number == wanted:
                        found = whole
                    del whole, together
                if found is not None or bool((told < 0).all()):
                    return found

    def put_together(self, whole: Tensor, part: Tensor) -> None:
        """Fill `whole` with the parts of all ranks, of one size, in their order: for what is
        lent."""

        def gathered(whole: Tensor, part: Tensor, **given: Any) -> Any:
            return distributed.all_gather(list(whole.chunk(self.size)), part, **given)

        self._carried_out(gathered, whole, part)

    def _done(self, collective: Callable[..., Any], tensor: Tensor, **given: Any) -> None:
        """Carry it out, in place, once no rank borrows anything any more."""
        if self._lent:
            self._meet()
        self._carried_out(collective, tensor, **given)

    def _carried_out(
        self, collective: Callable[..., Any], tensor: Tensor, *more: Tensor, **given: Any
    ) -> None:
        """Right away. While others are awaited it is looked whether they are alive."""
        there, *more_there = (
            t.contiguous() if _carries(t.device) else t.cuda().contiguous() for t in (tensor, *more)
        )
        with self._told_if_lost():
            work = collective(there, *more_there, **given, async_op=True)
            self.board.until(work.is_completed)
            work.wait()
        if there is not tensor:
            tensor.copy_(there)

    @contextmanager
    def _told_if_lost(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, GroupError) or is_out_of_memory(error):
                raise
            self.board.look(now=True)  # it may say better what has happened
            first = str(error).partition("\n")[0]
            raise GroupError(f"a rank of the process group is lost: {first}") from error


BUCKET = 1 << 16
"""Numbers: tensors of no more than that are sent together."""


def _carries(device: torch.device) -> bool:
    """Whether the group has a backend for tensors there: nccl has none for the CPU."""
    return f"{device.type}:" in f"{distributed.get_backend_config()}"


@contextmanager
def ranks_here(shared: bool = True) -> Iterator[Alone]:
    """The ranks that make this call, while it is made: those of the default process group, where
    there is one and the work is to be `shared`.

    An error of one of them becomes an error of all.
    """
    there = distributed.is_available() and distributed.is_initialized()
    if not shared or _alone.get() or not there or distributed.get_world_size() == 1:
        yield ALONE
        return
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # it is re-exported

    rank = distributed.get_rank()
    # There is no public way to the store; a second one would need an address of its own.
    whole = distributed.distributed_c10d._get_default_store()
    # That of torchrun lives on when ranks are started again.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = PrefixStore(f"tensorlrf/{attempt}/{next(_calls)}", whole)
    with Board(own, rank, distributed.get_world_size()) as board:
        yield Group(board)


@contextmanager
def on_one_rank() -> Iterator[None]:
    """Within a process group of torch.distributed: calls in here are those of this rank alone.

    Calls that share out their work, as `compress` with calibration= and `compress_checkpoint`,
    are otherwise made on all ranks, and wait for these. Without a process group it does nothing.

    Yields
    ------
    None

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> x = torch.rand(512, 64)
    >>> with tensorlrf.on_one_rank():
    ...     small, _ = tensorlrf.compress(model, keep_params=0.5, calibration=[x])
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)
