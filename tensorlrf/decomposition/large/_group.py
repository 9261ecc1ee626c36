"""The ranks over which a tensor is divided, and what they tell each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, TensorlrfError


@dataclass
class Group:
    """One process, or those of a group of torch.distributed, one piece of the tensor each.

    `bytes_sent` is what this rank sends where sums and gathers go around a ring, as those of gloo
    do: of a sum of B bytes 2 (p - 1) / p B, of a gather of B bytes a rank (p - 1) B.

    processes  of torch.distributed; None for this process alone
    device     where what is told has to be
    """

    processes: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bytes_sent: int = 0

    @property
    def size(self) -> int:
        return 1 if self.processes is None else torch.distributed.get_world_size(self.processes)

    @property
    def rank(self) -> int:
        return 0 if self.processes is None else torch.distributed.get_rank(self.processes)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same on each; `tensor` may be changed."""
        return self._reduced(tensor, "SUM")

    def most(self, tensor: Tensor) -> Tensor:
        """The largest of all ranks, entry by entry."""
        return self._reduced(tensor, "MAX")

    def rows(self, tensor: Tensor) -> list[Tensor]:
        """(n_rank, ...) of every rank, which differ in their number of rows alone."""
        if self.processes is None:
            return [tensor]
        counts = self.counts(len(tensor))
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return [one[:n] for one, n in zip(self._gathered(padded), counts, strict=True)]

    def counts(self, count: int) -> list[int]:
        """A number of every rank."""
        told = torch.tensor([count], dtype=torch.int64, device=self.device)
        return [int(n) for n in self._gathered(told)]

    def first(self, value: int) -> int:
        """The number that the first rank has."""
        return self.counts(value)[0]

    def texts(self, text: str) -> list[str]:
        """A text of every rank."""
        own = torch.tensor([*text.encode()], dtype=torch.uint8, device=self.device)
        return [bytes(one.tolist()).decode() for one in self.rows(own)]

    def check_agreed(self, what: str) -> None:
        """Raise ArgumentError, on all ranks, where they do not say the same."""
        if self.processes is None:
            return
        digest = torch.tensor(
            [*hashlib.sha256(what.encode()).digest()], dtype=torch.uint8, device=self.device
        )
        if len({bytes(one.tolist()) for one in self._gathered(digest)}) == 1:
            return
        said = self.texts(what)
        other = next(k for k, text in enumerate(said) if text != said[0])
        raise ArgumentError(
            f"ranks disagree: rank 0 of the group asks for {said[0]}, rank {other} for "
            f"{said[other]}; every rank has to make the same call, with the same random_state= and "
            "init="
        )

    def check_all(self, wrong: str) -> None:
        """Raise ArgumentError, on all ranks, where something is `wrong` on one."""
        said = self.texts(wrong)
        for rank, text in enumerate(said):
            if text:
                raise ArgumentError(text if len(said) == 1 else f"rank {rank} of the group: {text}")

    def _reduced(self, tensor: Tensor, how: str) -> Tensor:
        if self.processes is None:
            return tensor
        tensor = tensor.contiguous()
        with _nobody_lost():
            op = getattr(torch.distributed.ReduceOp, how)
            torch.distributed.all_reduce(tensor, op, group=self.processes)
        self.bytes_sent += summed_bytes(tensor.numel() * tensor.element_size(), self.size)
        return tensor

    def _gathered(self, tensor: Tensor) -> Sequence[Tensor]:
        if self.processes is None:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        if tensor.numel() == 0:
            return found
        with _nobody_lost():
            torch.distributed.all_gather(found, tensor.contiguous(), group=self.processes)
        self.bytes_sent += tensor.numel() * tensor.element_size() * (self.size - 1)
        return found


def summed_bytes(count: int, ranks: int) -> int:
    """What a rank sends for a sum of so many bytes in a ring: each part goes around once to be
    added up, and once more to be known."""
    return 2 * count * (ranks - 1) // ranks


@contextmanager
def _nobody_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TensorlrfError(
            f"a rank of the group is gone, or has made another call: {error}; start all ranks again"
        ) from error
