"""What the tests of the kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tensorlrf_kernels.lowrank_linear.launch import DTYPES
from tests.float32 import float32_in


@pytest.fixture(params=[*DTYPES, "tf32"], ids=str)
def kind(request: pytest.FixtureRequest) -> Iterator[tuple[torch.dtype, bool]]:
    """A dtype that kernels serve, and whether TF32 is on, which they follow: for float32 alone."""
    tf32 = request.param == "tf32"
    with float32_in("tf32" if tf32 else "ieee"):
        yield torch.float32 if tf32 else request.param, tf32
