"""What a device can do, in the few numbers that predict which path is fastest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from tensorlrf.ops._cost import Cost


@dataclass(frozen=True)
class DeviceProfile:
    """Rates of one device.

    name       of the device
    bandwidth  bytes/s read and written
    rate       FLOP/s of each kind of `Step` that has FLOPs, in float32
    launch     s a library call, on top of its work, for each kind of `Step`
    speedup    dtype -> how much faster than float32 the arithmetic is in it
    overlaps   whether a call's memory traffic hides behind its arithmetic, or adds to it
    """

    name: str
    bandwidth: float
    rate: Mapping[str, float]
    launch: Mapping[str, float]
    speedup: Mapping[torch.dtype, float]
    overlaps: bool

    def seconds(self, cost: Cost, dtype: torch.dtype) -> float:
        """Predicted time of the calls of a path, one after the other: the roofline of Williams,
        Waterman & Patterson (2009) for each, plus its launch."""
        speedup = self.speedup.get(dtype, 1.0)
        total = 0.0
        for step in cost.steps:
            arithmetic = step.flops / (self.rate[step.kind] * speedup) if step.flops else 0.0
            traffic = step.bytes / self.bandwidth
            work = max(arithmetic, traffic) if self.overlaps else arithmetic + traffic
            total += self.launch[step.kind] + work
        return total

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
    launch={"matmul": 5e-6, "conv": 10e-6, "depthwise": 28e-6, "merge": 5e-6},
    speedup={torch.float64: 0.5},
    overlaps=False,
)

# Copy and bf16 matmul rates are measured; the others are estimates from the data sheet (float32
# without TF32), until the benchmarks have run there.
H200 = DeviceProfile(
    name="NVIDIA H200",
    bandwidth=4.3e12,
    rate={"matmul": 50e12, "conv": 40e12, "depthwise": 5e12},
    launch=dict.fromkeys(("matmul", "conv", "depthwise", "merge"), 2e-6),
    speedup={torch.bfloat16: 15.6, torch.float16: 15.6},
    overlaps=True,
)


def nominal_profile(device: torch.device) -> DeviceProfile:
    """The H200's profile for a CUDA device, the CPU's for any other; asks the device nothing, so
    it can be traced."""
    return H200 if device.type == "cuda" else CPU


def profile_of(device: torch.device | str) -> DeviceProfile:
    """The profile that predicts for `device`: the nominal one of its kind, scaled by its
    multiprocessors or by the number of threads. Tensors on "meta" are planned for the CPU."""
    device = torch.device(device)
    nominal = nominal_profile(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        if properties.name == nominal.name:
            return nominal
        return nominal.scaled(properties.name, properties.multi_processor_count / 132)
    threads = torch.get_num_threads()
    return nominal if threads == 2 else nominal.scaled(f"{threads} CPU threads", threads / 2)
