"""What ranks put together of the parts of sharded parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tensorlrf.compression.group import _scattered


class Put:
    """While it is entered.

    most  bytes at a time, those that are put together for another rank among them
    """

    def __enter__(self) -> Put:
        self.most, self._alive = 0, list[tuple[StorageWeakRef, int]]()
        self._kinds: tuple[Any, ...] = (_scattered.Given, _scattered.Owned)
        self._own = [kind._together for kind in self._kinds]
        for kind, own in zip(self._kinds, self._own, strict=True):
            kind._together = lambda parts, own=own: self._made(parts, own)
        return self

    def _made(self, parts: Any, own: Callable[[Any], Tensor]) -> Tensor:
        made = own(parts)
        storage = made.untyped_storage()
        self._alive = [one for one in self._alive if not one[0].expired()]
        self._alive.append((StorageWeakRef(storage), storage.nbytes()))
        self.most = max(self.most, sum(n for _, n in self._alive))
        return made

    def __exit__(self, *_: object) -> None:
        for kind, own in zip(self._kinds, self._own, strict=True):
            kind._together = own
