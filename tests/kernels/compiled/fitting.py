"""Compiling launches for chips that are not here, and what their code must show."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tensorlrf_kernels._aot import compile_call
from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import Call

TENSOR_CORES = {(8, 0): "HMMA", (9, 0): "HGMMA", (10, 0): "UTCHMMA"}
HALF = (torch.float16, torch.bfloat16)
WITHOUT_PRODUCTS = ("mix", "taps_backward")


def rows_of(call: Call) -> int:
    """Of a tile; of a convolution's the places in an image."""
    b = call.config.blocks
    return b["BH"] * b["BW"] if "BH" in b else next(b[n] for n in ("BM", "BM1", "BA") if n in b)


def assert_fits(
    calls: Sequence[Call], chip: Chip, on_tensor_cores: Sequence[torch.dtype] = HALF
) -> None:
    """No register spills, shared memory is within the chip's limit, and the products of half
    precision, or of the dtypes given, run on tensor cores: those of the chip's generation for
    tiles of 64 rows or more, which no other instruction feeds as fast."""
    assert calls
    seen = set()
    for call in calls:
        key = (str(call.config), str(call.constants))
        if key in seen:
            continue
        seen.add(key)
        code = compile_call(call, chip)
        what = f"{call.config} {call.constants} on {chip.name}: {code}"
        assert not code.problems(chip), f"{'; '.join(code.problems(chip))}: {what}"
        given = [t.dtype for t in call.args.values() if isinstance(t, torch.Tensor)]
        dtype = min((d for d in given if d.is_floating_point), key=lambda d: d.itemsize)
        if dtype in on_tensor_cores and call.config.kernel not in WITHOUT_PRODUCTS:
            wanted = TENSOR_CORES[chip.capability] if rows_of(call) >= 64 else "HMMA"
            assert code.tensor_ops.get(wanted), f"no {wanted}: {what}"
