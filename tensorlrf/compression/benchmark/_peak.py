"""The memory that a call takes at its highest, beside what is there before."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tensorlrf.compression.calibration.dispatch import ThreadMode


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """Bytes. On CUDA those of the allocator; elsewhere of the tensors that ops return while these
    live, without what an op takes inside."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Live() as live:
        run()
    return live.peak


class _Live(ThreadMode):  # type: ignore[no-untyped-call]  # torch's hook has no types
    """Counts the bytes of storages that are made while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._there: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {
            id(t.untyped_storage())
            for t in pytree.tree_leaves((args, kwargs))
            if isinstance(t, Tensor) and t.layout == torch.strided
        }
        made = func(*args, **(kwargs or {}))
        for t in pytree.tree_leaves(made):
            if isinstance(t, Tensor) and t.layout == torch.strided:
                self._note(t.untyped_storage(), given)
        return made

    def _note(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        """A storage that comes out of an op and has not gone into it is new."""
        key = id(storage)
        if key in given or key in self._there:
            return
        size = storage.nbytes()
        self._there.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._there.discard(key)
        self.bytes -= size
