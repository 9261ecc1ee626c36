"""torch's default device or dtype as a user may have set it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def defaults(kind: str) -> Iterator[None]:
    """The device "meta", or the dtype of that name; as torch has them afterwards."""
    if kind == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, kind))
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
