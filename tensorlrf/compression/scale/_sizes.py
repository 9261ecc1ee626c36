"""What a run by layers will write, need and leave, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tensorlrf.compression.checkpoint.named_tensors import LASTING, named_tensors
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.compression.scale._call import Call
from tensorlrf.compression.scale._run import weight_of
from tensorlrf.files.safetensors import TORCH_DTYPES

BASE = 200_000_000
"""Bytes that a run takes beside the matrices at hand: buffers, threads, what allocators keep."""

WORKING = 3
"""Times the largest weight in the dtype of its decomposition: itself, the factors, what is between
(bench/stream.py holds a run of SVDs against this and `BASE`)."""


@dataclass(frozen=True)
class Sizes:
    """tensors  bytes of the output's tensors
    exact      whether that is to the byte; otherwise at most, or by what was tried
    factors    of these the ones of factors
    peak       bytes of memory above interpreter and torch
    """

    tensors: int
    exact: bool
    factors: int
    peak: int

    def on_disk(self, shard_bytes: int | None) -> int:
        """Bytes that the run needs there at the most, its output among them: factors lie there by
        themselves until the file that they belong to is whole."""
        ahead = self.factors if shard_bytes is None else min(self.factors, shard_bytes)
        return self.tensors + ahead


def sizes_of(call: Call, shares: Mapping[str, float]) -> Sizes:
    """Of a run. `shares` has the share of its bytes that a layer keeps, where only a fit tells."""
    stored, sources = call.stored, call.known.sources
    dtypes = {name: TORCH_DTYPES[place.info.dtype] for name, place in stored.places.items()}
    n_bytes = {name: place.info.end - place.info.begin for name, place in stored.places.items()}
    whole = {name: n_bytes[name] for name in set(sources.values())}
    factors, exact, largest = 0, True, 0
    for row in call.rows:
        name = sources[weight_of(row.name)]
        size = factor_bytes(row, dtypes[name])
        exact = exact and size is not None
        if size is None:
            size = math.ceil(shares.get(row.name, 1.0) * whole[name])
        factors += size
        whole.pop(name)
        work = 8 if dtypes[name] == torch.float64 else 4
        largest = max(largest, work * math.prod(row.shape))
    own = [one.tensor for one in named_tensors(call.known.model) if one.role not in LASTING]
    made = {id(t): t.numel() * t.element_size() for t in own if not t.is_meta}
    tensors = sum(whole.values()) + factors + sum(made.values())
    return Sizes(tensors, exact, factors, WORKING * largest + BASE)


def factor_bytes(row: LayerPlan, dtype: torch.dtype) -> int | None:
    """Of the factors of a layer; None where only the fit tells."""
    method = row.method
    if method is None or not isinstance(method.rank, (int, tuple)):
        return None

    def blank(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    each = (row.shape[0] // row.groups, *row.shape[1:])
    made = method.any_factors(method.rank, each, blank)
    return None if made is None else row.groups * made.n_bytes
