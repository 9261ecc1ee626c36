"""The rebuilt weight of the dense path, kept between calls."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class _Entry(NamedTuple):
    weight: Tensor
    variant: Hashable
    sources: tuple[Tensor, ...]  # the parameters themselves, for their identity
    versions: tuple[int, ...]  # torch counts every in-place change
    storages: tuple[Tensor, ...]  # held, so that `p.data = other` cannot land on an old address
    addresses: tuple[int, ...]


class DenseCache:
    """Keeps one weight for as long as the parameters it was made of are the same and unchanged.

    Only for eager calls without grad: whoever asks makes sure of that. A change that torch does
    not count, `p.data.mul_(2)`, is not seen; `with torch.no_grad(): p.mul_(2)` is.
    Copies and pickles of a cache are empty.
    """

    __slots__ = ("_entry",)

    def __init__(self) -> None:
        self._entry: _Entry | None = None

    def __reduce__(self) -> tuple[type[DenseCache], tuple[()]]:
        return DenseCache, ()

    def __len__(self) -> int:
        """How many weights are held: one or none."""
        return int(self._entry is not None)

    def clear(self) -> None:
        """Let go of the weight."""
        self._entry = None

    def lookup(self, sources: Sequence[Tensor], variant: Hashable) -> Tensor | None:
        """The weight made of `sources` in this `variant` (dtype, layout), or None."""
        entry = self._entry
        if entry is None:
            return None
        weight, made_as, known, versions, _, addresses = entry
        if made_as != variant:
            return None
        for k, p in enumerate(sources):
            if p is not known[k] or p._version != versions[k] or p.data_ptr() != addresses[k]:
                return None
        return None if _capturing(weight) else weight

    def keep(self, weight: Tensor, sources: Sequence[Tensor], variant: Hashable) -> None:
        """Keep `weight`, just made of `sources`, if it will still be true in a later call."""
        # Tensors that stand in for parameters (functional_call, a fake mode) belong to one call,
        # inference tensors have no version counter, and a plain result has no subclass.
        if type(weight) is not Tensor or _capturing(weight):
            return
        if any(type(p) is not nn.Parameter or p.is_inference() for p in sources):
            return
        self._entry = _Entry(
            weight,
            variant,
            tuple(sources),
            tuple(p._version for p in sources),
            tuple(p.detach() for p in sources),
            tuple(p.data_ptr() for p in sources),
        )


def _capturing(weight: Tensor) -> bool:
    """A CUDA graph is being captured: it is replayed after later updates, so it must rebuild."""
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()
