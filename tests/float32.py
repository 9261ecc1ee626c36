"""What a GPU makes of float32 in products and convolutions, for as long as a test runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_in(precision: str) -> Iterator[None]:
    """In "ieee" or "tf32"; as torch has it afterwards."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = precision
        yield
    finally:
        for switch, own in zip(switches, before, strict=True):
            switch.fp32_precision = own
