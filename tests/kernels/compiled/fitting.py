"""Compiling launches for chips that are not here, and what their code must show."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tensorlrf_kernels._aot import compile_call
from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import Call

TENSOR_CORES = {(8, 0): "HMMA", (9, 0): "HGMMA", (10, 0): "UTCHMMA"}


def assert_fits(calls: Sequence[Call], chip: Chip, dtype: torch.dtype, rows: int) -> None:
    """No register spills, shared memory is within the chip's limit, and the products of half
    precision run on the chip's tensor cores: wgmma on sm_90 for tiles of 64 `rows` or more."""
    assert calls
    for call in calls:
        code = compile_call(call, chip)
        what = f"{call.config} on {chip.name}, {dtype}: {code}"
        assert not code.problems(chip), f"{'; '.join(code.problems(chip))}: {what}"
        if dtype.itemsize == 2:
            wanted = TENSOR_CORES[chip.capability] if rows >= 64 else "HMMA"
            assert code.tensor_ops.get(wanted), f"no {wanted}: {what}"
