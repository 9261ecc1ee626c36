"""What a device can do, in the few numbers that predict which path is fastest."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from tensorlrf.errors import ArgumentError
from tensorlrf.ops._counter import Cost, Step
from tensorlrf_kernels import chips
from tensorlrf_kernels.chips import Chip, chip_of, tf32_allowed


@dataclass(frozen=True)
class DeviceProfile:
    """Rates of one device.

    Parameters
    ----------
    name : str
        Of the device.
    bandwidth : float
        bytes/s read and written.
    rate : Mapping
        FLOP/s of each kind of `Step` that has FLOPs, in float32.
    launch : Mapping
        s a library call, on top of its work, for each kind of `Step`.
    speedup : Mapping
        dtype -> how much faster than float32 the arithmetic is in it.
    overlaps : bool
        Whether a call's memory traffic hides behind its arithmetic, or adds to it.
    processors : int
        How many programs of a `Step` run at once.
    efficiency : Mapping
        Kind of `Step`, or (kind, dtype) -> share of rate and bandwidth that it reaches.

    Examples
    --------
    >>> profile = tensorlrf.ops.profile_of("cpu")
    >>> f = tensorlrf.svd(torch.rand(1024, 1024), 8)
    >>> seconds = [
    ...     profile.seconds(tensorlrf.ops.path_cost(f, path, 256), torch.float32)
    ...     for path in ("dense", "chain")
    ... ]
    >>> seconds[0] > seconds[1]
    True
    """

    name: str
    bandwidth: float
    rate: Mapping[str, float]
    launch: Mapping[str, float]
    speedup: Mapping[torch.dtype, float]
    overlaps: bool
    processors: int = 1
    efficiency: Mapping[str | tuple[str, torch.dtype], float] = field(default_factory=dict)

    def seconds(self, cost: Cost, dtype: torch.dtype) -> float:
        """Predicted time of the calls of a path, one after the other, in seconds.

        For each the roofline of Williams, Waterman & Patterson (2009), plus its launch.
        """
        return sum(self.step_seconds(step, dtype) for step in cost.steps)

    def floor(self, cost: Cost, dtype: torch.dtype) -> float:
        """Least time for that many FLOPs and bytes: the roofline itself, without launches."""
        arithmetic = cost.flops / (self.rate["matmul"] * self.speedup.get(dtype, 1.0))
        traffic = cost.bytes / self.bandwidth
        return max(arithmetic, traffic) if self.overlaps else arithmetic + traffic

    def step_seconds(self, step: Step, dtype: torch.dtype) -> float:
        """Predicted time of one call."""
        rate = self.rate[step.kind] * self.speedup.get(dtype, 1.0) if step.flops else 1.0
        share = self.efficiency.get(step.kind, 1.0)
        rate *= self.efficiency.get((step.kind, dtype), share)
        arithmetic, traffic = step.flops * step.padding / rate, step.bytes / self.bandwidth
        work = max(arithmetic, traffic) if self.overlaps else arithmetic + traffic
        return self.launch[step.kind] + work / self._busy(step.programs)

    def _busy(self, programs: int) -> float:
        """Share of the device that so many programs keep busy, over all their waves."""
        if not programs:
            return 1.0
        waves = -(-programs // self.processors)
        return programs / (waves * self.processors)

    def scaled(self, name: str, share: float) -> DeviceProfile:
        """A like device with `share` of the cores."""
        return replace(
            self,
            name=name,
            bandwidth=self.bandwidth * share,
            rate={kind: rate * share for kind, rate in self.rate.items()},
        )


# Set on the ResNet-50 and BERT-base layers of bench/shapes.py, channels_last; checked on others.
CPU = DeviceProfile(
    name="two CPU cores with AVX-512",
    bandwidth=20e9,
    rate={"matmul": 190e9, "conv": 210e9, "depthwise": 24e9},
    launch={"matmul": 5e-6, "conv": 10e-6, "depthwise": 28e-6, "merge": 5e-6, "gather": 5e-6},
    speedup={torch.float64: 0.5},
    overlaps=False,
)

# What no constant of a chip says: convolutions, in float32 without TF32, as shares of its matrix
# products. Estimates, until the benchmarks have run there.
CONV_SHARE = 0.8
DEPTHWISE_SHARE = 0.1


def chip_profile(chip: Chip, *, tf32: bool = False) -> DeviceProfile:
    """The profile of a GPU; `tf32` says whether float32 products may be made in it."""
    single = chip.matmul_rate(torch.float32)
    speedup = {dtype: rate / single for dtype, rate in chip.rate.items()}
    if tf32:
        speedup[torch.float32] = chip.tf32_rate / single
    speedup[torch.float64] = chip.matmul_rate(torch.float64) / single
    library = ("matmul", "conv", "depthwise", "merge", "gather")
    return DeviceProfile(
        name=chip.name,
        bandwidth=chip.bandwidth,
        rate={
            "matmul": single,
            "conv": CONV_SHARE * single,
            "depthwise": DEPTHWISE_SHARE * single,
            "fused": single,
            "fused_few": single,
        },
        launch={
            **dict.fromkeys(library, chip.launch),
            "fused": chip.launch,
            "fused_few": chip.launch + chip.barrier,
        },
        speedup=speedup,
        overlaps=True,
        processors=chip.multiprocessors,
        efficiency={
            "matmul": chip.library,
            "fused": chip.chained,
            **({} if tf32 else {("fused", torch.float32): chip.plain}),
        },
    )


H200 = chip_profile(chips.H200)


def nominal_profile(device: torch.device) -> DeviceProfile:
    """The H200's profile for a CUDA device, the CPU's for any other; asks the device nothing, so
    it can be traced."""
    return H200 if device.type == "cuda" else CPU


def profile_of(device: torch.device | str) -> DeviceProfile:
    """The profile that predicts for a device.

    Parameters
    ----------
    device : device or str

    Returns
    -------
    DeviceProfile
        Of its GPU, or the CPU's scaled by the number of threads. Tensors on "meta" are planned for
        the CPU.

    Raises
    ------
    ArgumentError
        For what is no device.

    Examples
    --------
    >>> tensorlrf.ops.profile_of("meta") == tensorlrf.ops.profile_of("cpu")
    True
    """
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"device={device!r} is none that torch knows: {error}") from None
    nominal = nominal_profile(device)
    if device.type == "cuda":
        return chip_profile(chip_of(device), tf32=tf32_allowed())
    threads = torch.get_num_threads()
    return nominal if threads == 2 else nominal.scaled(f"{threads} CPU threads", threads / 2)


def device_key(device: torch.device | str) -> str:
    """What a time measured on `device` depends on, as one line.

    The device's name, the versions of torch and tensorlrf, for the CPU the threads, for a GPU
    Triton's version and TF32 if allowed.

    Parameters
    ----------
    device : device or str

    Returns
    -------
    str
        The same in every process for as long as none of these changes.

    Examples
    --------
    >>> torch.__version__.partition("+")[0] in tensorlrf.ops.device_key("cpu")
    True
    """
    device = torch.device(device)
    parts = [_device_name(device)]
    if device.type == "cpu":
        parts.append(f"{torch.get_num_threads()} threads")
    if device.type == "cuda" and tf32_allowed():
        parts.append("TF32")
    parts.append(f"torch {torch.__version__}")
    if device.type == "cuda":
        parts.append(f"triton {_triton_version()}")
    # From the package above this one, which is loaded whenever this one is.
    own = sys.modules[__name__.partition(".")[0]].__version__
    return ", ".join([*parts, f"tensorlrf {own}"])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return _one_line(torch.cuda.get_device_name(device))
    return _cpu_name() if device.type == "cpu" else device.type


@cache
def _cpu_name() -> str:
    """The model that Linux names, else what the platform calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    name = _one_line(next(names, ""))
    return name or _one_line(platform.processor()) or platform.machine() or "cpu"


@cache
def _triton_version() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "none"


def _one_line(name: str) -> str:
    return " ".join(name.split())
