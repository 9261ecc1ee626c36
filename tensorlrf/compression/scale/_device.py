"""Where decompositions and passes of a run are made."""

from __future__ import annotations

import os
from typing import Any

import torch

from tensorlrf.compression.group._group import Alone
from tensorlrf.errors import ArgumentError

CPU = torch.device("cpu")


def device_of(asked: Any, group: Alone) -> torch.device:
    """What a user asks for, with its number: of ranks on one machine each has one of its own, as
    far as there are any. None is the CPU.

    Raises ArgumentError for what is none, has no values, or is not there.
    """
    if asked is None:
        return CPU
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f'device={asked!r} is no device: give a word of torch such as "cpu" or "cuda:0"'
        ) from error
    if device.type == "cpu":
        return CPU
    if device.type == "meta":
        raise ArgumentError(f"device={asked!r} holds no values; give one that does")
    try:
        local = os.environ.get("LOCAL_RANK", "")
        if device.index is None and group.size > 1 and local.isdecimal():
            count = torch.get_device_module(device).device_count()
            device = torch.device(device.type, int(local) % max(1, count))
        there = torch.empty(0, dtype=torch.float32, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        told = str(error).partition("\n")[0]
        raise ArgumentError(
            f"device={asked!r} is not available here ({told}); leave it out for the CPU, or start "
            "where torch sees it"
        ) from error
    return there if device.index is None else device


def head_of(device: torch.device) -> dict[str, Any]:
    """What a journal says of it, unless it is the CPU: sums of another one are other sums."""
    return {} if device == CPU else {"device": device.type}
