"""Factored convolutions beside the dense layer: every distinct k > 1 convolution of ResNet-50 at
batch 1 and 8, three formats, ranks at 1/4 and 1/2 of break-even, everything in channels_last; and
layers that the cost model was not set on."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from bench.layers import Group, bench_row
from bench.shapes import HELD_OUT_CONVS, RESNET50, SHARES, Conv

PATHS = {
    "lowrank": ("dense", "chain"),
    "tucker": ("dense", "chain"),
    "cp": ("dense", "chain", "fold", "fold_depthwise"),
}
CASES = [
    pytest.param(case, format, share, path, id=f"{case}, {format} {share}, {path}")
    for case in (*RESNET50, *HELD_OUT_CONVS)
    for format, paths in PATHS.items()
    for share in SHARES
    for path in paths
]

# One group at a time: its rows follow each other.
measure = lru_cache(maxsize=1)(Group.measure)


@pytest.mark.parametrize(("case", "format", "share", "path"), CASES)
def test_conv2d(
    benchmark: Any,
    case: Conv,
    format: str,
    share: float,
    path: str,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    bench_row(benchmark, measure(case, format, share, device, dtype), path, format, share)
