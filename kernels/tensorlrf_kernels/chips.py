"""What a GPU can do: the constants by which launches are chosen and times predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch

LEAST_CAPABILITY = (8, 0)  # bf16 and asynchronous copies begin there


@dataclass(frozen=True)
class Chip:
    """Constants of one GPU.

    name             as the driver gives it
    capability       compute capability
    multiprocessors  how many there are
    shared_memory    bytes that one block may use
    l2               bytes of the L2 cache
    bandwidth        bytes/s read and written by a device-to-device copy
    rate             dtype -> FLOP/s of a large library matmul; float32 without TF32
    tf32_rate        FLOP/s of the same in TF32
    launch           s a kernel launch adds to its work in a CUDA graph
    barrier          s a grid barrier adds inside a cooperative launch
    chained          share of `rate` that two chained products reach in one kernel
    plain            the same in float32 without TF32, which has no tensor cores
    library          share of the roofline that library products reach
    measured         names of the fields above that were measured, on this chip
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int
    l2: int
    bandwidth: float
    rate: Mapping[torch.dtype, float]
    tf32_rate: float
    launch: float = 2e-6
    barrier: float = 1.5e-6
    chained: float = 0.7
    plain: float = 0.3
    library: float = 0.95
    measured: frozenset[str] = field(default_factory=frozenset)

    def matmul_rate(self, dtype: torch.dtype, *, tf32: bool = False) -> float:
        """FLOP/s of a large matmul."""
        if dtype is torch.float32 and tf32:
            return self.tf32_rate
        return self.rate.get(dtype, self.rate[torch.float32] / 2)


def _rates(float32: float, half: float) -> dict[torch.dtype, float]:
    return {torch.float32: float32, torch.float16: half, torch.bfloat16: half}


# Bandwidth and the half-precision rate were measured; the others are leads until the constants of
# `make gpu-bench` have been read off such a chip.
H200 = Chip(
    name="NVIDIA H200",
    capability=(9, 0),
    multiprocessors=132,
    shared_memory=232448,
    l2=60 * 2**20,
    bandwidth=4.3e12,
    rate=_rates(50e12, 790e12),
    tf32_rate=390e12,
    measured=frozenset({"bandwidth", "rate"}),
)
# From data sheets, at the share of them that an H200 reaches.
A100 = Chip(
    name="NVIDIA A100",
    capability=(8, 0),
    multiprocessors=108,
    shared_memory=166912,
    l2=40 * 2**20,
    bandwidth=1.7e12,
    rate=_rates(16e12, 250e12),
    tf32_rate=125e12,
)
B200 = Chip(
    name="NVIDIA B200",
    capability=(10, 0),
    multiprocessors=148,
    shared_memory=232448,
    l2=126 * 2**20,
    bandwidth=7e12,
    rate=_rates(60e12, 1700e12),
    tf32_rate=850e12,
)
KNOWN = {chip.name: chip for chip in (H200, A100, B200)}


def known_chip(name: str) -> Chip:
    """The chip of that name, in full or in part ("H200"), whatever the case of its letters."""
    found = [chip for key, chip in KNOWN.items() if name.lower() in key.lower()]
    if len(found) != 1:
        raise ValueError(f"device={name!r} is unknown; choose one of {', '.join(KNOWN)}")
    return found[0]


def nearest(name: str, capability: tuple[int, int]) -> Chip:
    """A known chip to derive from: of that name ("NVIDIA A100-SXM4-80GB") or generation."""
    for key, chip in KNOWN.items():
        if name.startswith(key):
            return chip
    below = [chip for chip in KNOWN.values() if chip.capability <= capability]
    return max(below or [A100], key=lambda chip: chip.capability)


@cache
def chip_of(device: torch.device) -> Chip:
    """The chip of a CUDA device: a known one, or derived from the nearest by its size.

    Other devices are planned for as an H200. Asks the driver once a device.
    """
    if device.type != "cuda":
        return H200
    found = torch.cuda.get_device_properties(device)
    base = nearest(found.name, (found.major, found.minor))
    share = found.multi_processor_count / base.multiprocessors
    return replace(
        base,
        name=found.name,
        capability=(found.major, found.minor),
        multiprocessors=found.multi_processor_count,
        shared_memory=getattr(found, "shared_memory_per_block_optin", base.shared_memory),
        l2=getattr(found, "L2_cache_size", base.l2),
        bandwidth=base.bandwidth * share,
        rate={dtype: rate * share for dtype, rate in base.rate.items()},
        tf32_rate=base.tf32_rate * share,
        measured=base.measured if found.name == base.name and share == 1 else frozenset(),
    )


def tf32_allowed() -> bool:
    """Whether torch lets float32 products of a GPU run in TF32."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", "none")
    # "none" leaves it to the older switch, which must not be read once the newer one was set.
    return bool(precision == "tf32" or (precision == "none" and matmul.allow_tf32))
