"""What the moments of a layer take in memory, before they are asked for, and what there is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tensorlrf.compression.calibration._correction import lag_bytes
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._moments import moment_bytes
from tensorlrf.errors import ArgumentError

AT_ONCE_BYTES = 1 << 29
"""Moments of all layers at once that are alive together (512 MB), of one layer at the least."""

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def stream_bytes(layer: DenseLayer, *, lags: bool, holds_out: bool) -> int:
    """Of all that calibration gathers about a layer, at the most: twice as much with inputs held
    out."""
    one = moment_bytes(layer)
    if lags:
        one += lag_bytes((layer.shape[0] // layer.groups, *layer.shape[1:]), layer.taps)
    return (1 + holds_out) * layer.groups * one


def free_bytes(device: torch.device) -> float:
    """Memory that is free there; infinite where nobody tells."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return math.inf
    free = [_available()]
    for limit, used in _CGROUPS:
        numbers = [_number(limit), _number(used)]
        if not any(map(math.isnan, numbers)):
            free.append(max(0.0, numbers[0] - numbers[1]))
    return min(free)


def _available() -> float:
    """As Linux tells it; elsewhere all that the machine has."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        line = next(line for line in text.splitlines() if line.startswith("MemAvailable:"))
        return 1024.0 * int(line.split()[1])
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _number(path: str) -> float:
    """Of a file that holds one; NaN where it does not, as for a limit that is none."""
    try:
        return float(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return math.nan


@contextmanager
def named_where_memory_ends(name: str, layer: DenseLayer) -> Iterator[None]:
    """Have what is too large for the memory tell the layer that it is for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not full and "DefaultCPUAllocator" not in str(error):
            raise
        size = readable(layer.groups * moment_bytes(layer))
        raise ArgumentError(
            f"calibration: memory ends at the second moments of {name}, which take {size} "
            f"(n = {layer.columns:,} columns). Give moment_bytes=, above which a layer gets the "
            f"plain method; or rerun=True, smaller batches, or skip=[{name!r}]"
        ) from error


def readable(size: float) -> str:
    """1.5 GB for 1.5e9."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def too_large(
    layers: Sequence[tuple[str, DenseLayer]], limit: int | None, *, lags: bool, holds_out: bool
) -> dict[str, int]:
    """Name -> bytes of the layers whose moments take more than `limit`, by default half of the
    memory that is free."""
    large = {}
    for name, layer in layers:
        size = stream_bytes(layer, lags=lags, holds_out=holds_out)
        if size > (free_bytes(layer.device) / 2 if limit is None else limit):
            large[name] = size
    return large
