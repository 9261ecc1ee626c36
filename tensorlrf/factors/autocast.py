"""Autocast is for layers that run: a fit in bfloat16 is none, and its error is not true."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_KINDS = ("cpu", "cuda", "xpu", "mps")
"""Kinds of devices that autocast may be on for."""


def autocast_is_on() -> bool:
    """For any kind of device, in this thread."""
    return any(map(torch.is_autocast_enabled, _KINDS))


@contextmanager
def without_autocast() -> Iterator[None]:
    """Within, or as a decorator, torch computes in the dtypes of the tensors, in this thread.

    An autocast that is entered within keeps no casts of weights, which may change meanwhile.
    """
    if not autocast_is_on():
        yield
        return
    with ExitStack() as stack:
        for kind in _KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        yield
