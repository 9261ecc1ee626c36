"""What each path should cost, and which one is chosen, as a table.

    python -m tensorlrf.ops.explain 4096x4096 --rank 64
    python -m tensorlrf.ops.explain 64x64x3x3 --format cp --rank 32 --device A100 --dtype float16
    python -m tensorlrf.ops.explain 3072x768 --rank 96 --rows 1 128 8192 --device cpu
    python -m tensorlrf.ops.explain 64x128x4x4 --rank 32 --transposed --stride 2 --device cpu

Nothing is run: the times are those of the cost model, on the device named or on the one at hand.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, TensorlrfError, unknown
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.ops._paths import floor_cost, path_cost, paths_of
from tensorlrf.ops._profile import DeviceProfile, chip_profile, profile_of
from tensorlrf.ops.checks import check_is_conv
from tensorlrf.ops.fused import fused_launch, layer_of, path_names
from tensorlrf.ops.geometry import IntOrAxes, per_axis
from tensorlrf_kernels.chips import KNOWN, Chip, chip_of, known_chip, tf32_allowed

FORMATS = ("lowrank", "cp", "tucker")
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
ROWS = (1, 16, 128, 512, 2048, 8192, 32768)


@dataclass(frozen=True)
class Explanation:
    """Predicted seconds of each path for each number of rows, and the choice.

    layer    what the factors are of, where more than their repr is to be said of it
    seconds  rows -> path -> s
    chosen   rows -> path
    floor    rows -> s that moving the operands and multiplying the factors takes at the least
    launch   rows -> how the kernel would be launched, where there is one
    """

    factors: str
    device: str
    dtype: torch.dtype
    seconds: dict[int, dict[str, float]]
    chosen: dict[int, str]
    floor: dict[int, float]
    launch: dict[int, str]
    layer: str = ""

    def __str__(self) -> str:
        paths = list(next(iter(self.seconds.values())))
        dtype = str(self.dtype).removeprefix("torch.")
        head = f"{'rows':>8}  {'floor':>9}" + "".join(f"  {path:>14}" for path in paths)
        told = f"{self.factors}{self.layer}, {dtype}, on {self.device}"
        lines = [
            f"{told}: microseconds by the cost model",
            f"{head}  chosen",
        ]
        for rows, times in self.seconds.items():
            cells = "".join(f"  {1e6 * times[path]:14.1f}" for path in paths)
            lines.append(f"{rows:>8}  {1e6 * self.floor[rows]:9.1f}{cells}  {self.chosen[rows]}")
        for rows, config in self.launch.items():
            lines.append(f"fused at {rows} rows: {config}")
        return "\n".join(lines)


def explain(
    factors: Factors,
    rows: Sequence[int] = ROWS,
    *,
    device: str | torch.device | None = None,
    rebuild: bool = True,
    stride: IntOrAxes = 1,
    transposed: bool = False,
) -> Explanation:
    """The cost model's view of a layer on `factors`; meta tensors serve.

    rows        numbers of rows M (a convolution's are batch x output positions)
    device      "cpu", "cuda", or a GPU by name ("H200"); by default that of the factors
    rebuild     whether the dense path rebuilds the weight in each call, as in a layer that is not
                frozen
    stride      of a convolution: it reads as many positions for each output, and a transposed one
                writes as many for each input
    transposed  whether the convolution is a transposed one

    Raises ArgumentError for a device that is not known, and for options of convolutions where the
    factors stand for a matrix.
    """
    profile, chip = _device(factors.device if device is None else device)
    paths_of(factors, transposed=transposed)  # checks that the format has the layer
    check_is_conv(factors, stride=(stride, 1), transposed=(transposed, False))
    axes = len(factors.shape) - 2
    strides = per_axis("stride", stride, 1, axes) if axes else None
    told = path_names(factors, layer_of(factors, transposed=transposed))
    paths = ("dense", *(path for path in told if chip is not None or path != "fused"))
    seconds, chosen, floor, launches = {}, {}, {}, {}
    for M in rows:
        costs = {
            path: path_cost(
                factors, path, M, stride=strides, rebuild=rebuild, transposed=transposed
            )
            for path in paths
        }
        seconds[M] = {p: profile.seconds(cost, factors.dtype) for p, cost in costs.items()}
        chosen[M] = min(paths, key=seconds[M].__getitem__)
        least = floor_cost(factors, M, stride=strides, transposed=transposed)
        floor[M] = profile.floor(least, factors.dtype)
        if chip is not None and "fused" in paths:
            tf32 = factors.dtype is torch.float32 and tf32_allowed()
            config = fused_launch(factors, M, chip, tf32=tf32)
            launches[M] = "no kernel, the chain" if config is None else str(config)
    layer = ", transposed" * transposed
    layer += f", stride {strides}" if strides is not None and any(s != 1 for s in strides) else ""
    return Explanation(
        repr(factors), profile.name, factors.dtype, seconds, chosen, floor, launches, layer
    )


def sample(format: str, shape: Sequence[int], rank: int, dtype: torch.dtype) -> Factors:
    """Factors of a weight of that shape without any numbers in them.

    Raises ArgumentError for a format, or a number of dimensions, that no layer has.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if len(shape) not in (2, 3, 4, 5) or min(shape) < 1:
        text = "x".join(map(str, shape))
        raise ArgumentError(f"shape={text} is no layer; give OUTxIN, or OUTxINxKHxKW and so on")
    if rank < 1:
        raise ArgumentError(f"rank={rank} must be 1 at least")

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    out, *others = shape
    if format == "lowrank":
        return LowRank(empty(out, rank), empty(rank, math.prod(others)), tuple(shape))
    if format == "cp":
        return CPFactors(empty(rank), tuple(empty(n, rank) for n in shape))
    core = [min(rank, n) if k < 2 else n for k, n in enumerate(shape)]
    return TuckerFactors(empty(*core), tuple(empty(shape[k], core[k]) for k in (0, 1)), (0, 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tensorlrf.ops.explain",
        description="What each path of a factored layer should cost, and which one is chosen.",
    )
    parser.add_argument("shape", help="of the weight: OUTxIN, or OUTxINxKHxKW")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--format", default="lowrank", help=", ".join(FORMATS))
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="numbers of rows M")
    parser.add_argument("--dtype", default="bfloat16", help=", ".join(DTYPES))
    parser.add_argument(
        "--device", help=f"cpu, cuda, {', '.join(KNOWN)}; by default the GPU if there is one"
    )
    parser.add_argument(
        "--stride", type=int, nargs="+", default=[1], help="of a convolution, one or one an axis"
    )
    parser.add_argument("--transposed", action="store_true", help="of a transposed convolution")
    parser.add_argument(
        "--frozen", action="store_true", help="the layer is frozen: it keeps its dense weight"
    )
    given = parser.parse_args(arguments)
    try:
        if given.dtype not in DTYPES:
            raise unknown("dtype", given.dtype, tuple(DTYPES))
        try:
            shape = [int(size) for size in given.shape.lower().split("x")]
        except ValueError:
            raise ArgumentError(
                f"shape={given.shape!r} is no shape; give OUTxIN, or OUTxINxKHxKW"
            ) from None
        if min(given.rows) < 1:
            raise ArgumentError(f"rows={min(given.rows)} must be 1 at least")
        factors = sample(given.format, shape, given.rank, DTYPES[given.dtype])
        device = given.device or ("cuda" if torch.cuda.is_available() else "H200")
        stride = given.stride[0] if len(given.stride) == 1 else tuple(given.stride)
        print(
            explain(
                factors, given.rows, device=device, rebuild=not given.frozen,
                stride=stride, transposed=given.transposed,
            )
        )  # fmt: skip
    except TensorlrfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _device(device: str | torch.device) -> tuple[DeviceProfile, Chip | None]:
    """The profile of a device, and its chip where it is a GPU."""
    name = str(device)
    if name in ("cpu", "meta"):
        return profile_of(name), None
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ArgumentError(
                f"device={name!r} is not here; name a chip to plan for: {', '.join(KNOWN)}"
            )
        return profile_of(name), chip_of(torch.device(name))
    try:
        chip = known_chip(name)
    except ValueError:
        raise unknown("device", name, ("cpu", "cuda", *KNOWN)) from None
    return chip_profile(chip, tf32=tf32_allowed()), chip


if __name__ == "__main__":
    sys.exit(main())
