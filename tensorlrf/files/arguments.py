"""What callers give to say where: paths and devices."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tensorlrf.errors import ArgumentError

PathLike = str | os.PathLike[str]


def as_path(path: PathLike, argument: str = "path") -> Path:
    """The path as a Path. Raises ArgumentError for what cannot be one."""
    try:
        text: object = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise ArgumentError(f"{argument}={path!r} is no path; give a str or a pathlib.Path")
    why = "" if text else "is empty"
    try:
        if b"\0" in os.fsencode(text):
            why = "has a NUL in it"
    except UnicodeEncodeError:
        why = "is no Unicode text"
    if why:
        raise ArgumentError(f"{argument}={text!r} {why}; give the name of a file or folder")
    return Path(text)


def as_device(device: torch.device | str) -> torch.device:
    """The device with its number. Raises ArgumentError where this machine has none such."""
    try:
        return torch.empty(0, dtype=torch.uint8, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).partition("\n")[0]
        raise ArgumentError(f"device={device!r} is not to be had here: {first}") from None
