"""Autocast is for layers that run: in bfloat16 a fit is none, and its error is not true."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

KINDS = ("cpu", "cuda", "xpu", "mps")
"""Kinds of devices that autocast may be on for."""


@contextmanager
def without_autocast() -> Iterator[None]:
    """Within, and in this thread, torch computes in the dtypes of the tensors.

    An autocast that is entered within keeps no casts of weights, which may change meanwhile.
    """
    with ExitStack() as stack:
        for kind in KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        yield
