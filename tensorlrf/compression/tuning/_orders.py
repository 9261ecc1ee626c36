"""Whether tall factors lie in memory by rows or by columns, by measurement."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.compression.tuning._passes import Calls, Seen
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn import FactoredLayer, FactoredLinear
from tensorlrf.nn.tall import columns_first
from tensorlrf.ops import time_calls

GAIN = 1.05
"""Times that the order of columns has to be faster, over all calls."""

SHARE = 0.25
"""Of the time that a layer is measured for in a bucket: for one shape of matrices and rows."""


def choose_orders(
    model: nn.Module, twins: Mapping[FactoredLayer, FactoredLayer], seen: Seen, seconds: float
) -> dict[FactoredLayer, tuple[str, ...]]:
    """Which tall factors of each linear layer of the model are to lie by columns, for the rows that
    its twin has seen; the twins lie so from here on.

    On a GPU kernels read tiles, and all factors lie by rows.
    """
    movable = _with_memory_of_their_own(model)
    times = _Times(SHARE * seconds)
    chosen: dict[FactoredLayer, tuple[str, ...]] = {}
    for layer, twin in twins.items():
        if not isinstance(layer, FactoredLinear) or not isinstance(twin, FactoredLinear):
            continue
        if layer.factors.device.type == "cpu" and twin in seen:
            names = [n for n in layer.tall_matrices() if layer._parameters.get(n) in movable]
            matrices = {name: layer.get_parameter(name).detach() for name in names}
            chosen[layer] = tuple(
                n for n, matrix in matrices.items() if times.prefer_columns(matrix, seen[twin])
            )
            twin.lie(chosen[layer])
    return chosen


def _with_memory_of_their_own(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that no other tensor of the model has a part of: these can be laid anew."""
    held = [*model.parameters(), *model.buffers()]
    storages = Counter(t.untyped_storage()._cdata for t in held)
    return {
        p
        for p in model.parameters()
        if type(p) is nn.Parameter
        and not p.is_inference()
        and storages[p.untyped_storage()._cdata] == 1
        and p.untyped_storage().nbytes() == p.numel() * p.element_size()
    }


class _Times:
    """Products of random rows with a matrix in either order, each shape measured once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.known: dict[tuple[Any, ...], tuple[float, float]] = {}

    def prefer_columns(self, matrix: Tensor, calls: Mapping[int, Calls]) -> bool:
        """Whether all calls together are clearly faster with the matrix by columns."""
        both = [self._measured(matrix, one.rows) for one in calls.values()]
        many = [one.calls for one in calls.values()]
        by_rows = math.fsum(n * t for n, (t, _) in zip(many, both, strict=True))
        by_column = math.fsum(n * t for n, (_, t) in zip(many, both, strict=True))
        return by_rows > GAIN * by_column

    def _measured(self, matrix: Tensor, rows: int) -> tuple[float, float]:
        key = (*matrix.shape, matrix.dtype, rows)
        if key not in self.known:
            x = torch.ones(rows, matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
            ways = {"rows": matrix.contiguous(), "columns": columns_first(matrix)}
            with torch.no_grad(), without_autocast():
                found = time_calls(
                    {way: partial(F.linear, x, laid) for way, laid in ways.items()},
                    seconds=self.seconds, device=matrix.device,
                )  # fmt: skip
            self.known[key] = found.median("rows"), found.median("columns")
        return self.known[key]
