"""Factored linear layers beside the dense layer: a block of BERT-base at 128 and 1024 tokens, ranks
at 1/4 and 1/2 of break-even; and layers that the cost model was not set on.

As matrices all three formats run alike, so LowRank stands for them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from bench.layers import Group, bench_row
from bench.shapes import BERT_BASE, HELD_OUT_LINEARS, SHARES, Linear

CASES = [
    pytest.param(case, share, path, id=f"{case}, {share}, {path}")
    for case in (*BERT_BASE, *HELD_OUT_LINEARS)
    for share in SHARES
    for path in ("dense", "chain")
]

# One group at a time: its rows follow each other.
measure = lru_cache(maxsize=1)(Group.measure)


@pytest.mark.parametrize(("case", "share", "path"), CASES)
def test_linear(
    benchmark: Any, case: Linear, share: float, path: str, device: torch.device, dtype: torch.dtype
) -> None:
    bench_row(benchmark, measure(case, "lowrank", share, device, dtype), path, "lowrank", share)
