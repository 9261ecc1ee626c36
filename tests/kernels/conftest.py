"""What the tests of the kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def ieee_float32() -> Iterator[None]:
    """tf32 off."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    yield
    matmul.fp32_precision = before
