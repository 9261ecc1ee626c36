"""MTTKRP for the GPU run, in float32: library products beside our kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench import kernel_cases
from bench.kernel_cases import Case, Way
from tensorlrf_kernels._tables import choose
from tensorlrf_kernels.chips import chip_of
from tensorlrf_kernels.launches import Problem
from tensorlrf_kernels.mttkrp import contract_modes, fused, reference
from tensorlrf_kernels.mttkrp.groups import groups_of

DTYPE = torch.float32
# Sizes, columns, and the modes that are left: one is MTTKRP, several the other half of a sweep.
CASES: tuple[tuple[tuple[int, ...], int, tuple[int, ...]], ...] = (
    ((400, 400, 400), 64, (0,)),
    ((400, 400, 400), 64, (1,)),
    ((400, 400, 400), 64, (2,)),
    ((400, 400, 400), 64, (1, 2)),
    ((512, 512, 3, 3), 128, (0,)),
    ((512, 512, 3, 3), 128, (1,)),
    ((512, 512, 3, 3), 128, (2,)),
    ((64, 64, 64, 64), 32, (0,)),
    ((64, 64, 64, 64), 32, (2,)),
    ((32, 32, 32, 32, 32), 32, (0,)),
    ((32, 32, 32, 32, 32), 32, (2,)),
)


def mttkrp_case(sizes: tuple[int, ...], columns: int, left: tuple[int, ...]) -> Case:
    """All modes contracted but those `left`: with the whole Khatri-Rao product in memory, in two
    steps as a dimension tree does it, by einsum, and by our kernel."""
    modes = tuple(k for k in range(len(sizes)) if k not in left)
    free, inp = math.prod(sizes[k] for k in left), math.prod(sizes[k] for k in modes)

    def operands() -> list[Tensor]:
        device = kernel_cases.DEVICE
        shapes = [sizes, *((sizes[k], columns) for k in modes)]
        return [torch.randn(shape, device=device, dtype=DTYPE) for shape in shapes]

    def chain(tensor: Tensor, *factors: Tensor) -> Tensor:
        return reference.contract_modes(tensor, factors, modes)

    def steps(tensor: Tensor, *factors: Tensor) -> Tensor:
        return two_steps(tensor, factors, modes)

    def einsum(tensor: Tensor, *factors: Tensor) -> Tensor:
        return by_einsum(tensor, factors, modes)

    def kernel(tensor: Tensor, *factors: Tensor) -> Tensor:
        return contract_modes(tensor, factors, modes)

    def exact(tensor: Tensor, *factors: Tensor) -> Tensor:
        return reference.contract_modes(tensor.double(), [f.double() for f in factors], modes)

    rows = sum(sizes[k] for k in modes)
    moved = DTYPE.itemsize * (free * inp + (rows + free) * columns)
    runs: dict[str, Callable[..., Tensor]] = {"chain": chain}
    if len(modes) > 1:
        runs |= {"two steps": steps, "einsum": einsum}
    runs["fused"] = kernel
    ways = {name: Way(run, operands, moved) for name, run in runs.items()}
    flops = 2 * free * inp * columns
    # Full precision takes three products of TF32 at the least.
    rate = chip_of(kernel_cases.DEVICE).tf32_rate / 3
    floor = max(moved / kernel_cases.profiled().bandwidth, flops / rate)
    problem = mttkrp_problem(sizes, columns, left)
    common: dict[str, Any] = {"op": "mttkrp", "rank": columns, "layer": "x".join(map(str, sizes))}
    info = {name: {**common, "flops": flops, "bytes": moved} for name in ways}
    for name in info:
        info[name]["floor_us"] = 1e6 * floor
    info["fused"]["launch"] = str(choose("mttkrp", "forward", problem, kernel_cases.DEVICE))
    what = "mode" if len(left) == 1 else "modes"
    name = f"mttkrp {common['layer']} r={columns}, {what} {', '.join(map(str, left))}"
    return Case(
        name,
        ways,
        dict.fromkeys(ways, exact),
        info,
        (("mttkrp", "forward", problem),),
        peaks=True,
    )


def mttkrp_problem(sizes: tuple[int, ...], columns: int, left: tuple[int, ...]) -> Problem:
    """What the kernel is to compute."""
    modes = tuple(k for k in range(len(sizes)) if k not in left)
    strides = [math.prod(sizes[k + 1 :]) for k in range(len(sizes))]
    groups = groups_of(sizes, strides, modes)
    assert groups is not None  # a contiguous tensor
    return fused.problem_of(torch.empty(sizes, device="meta"), modes, columns, groups)


def two_steps(tensor: Tensor, factors: Sequence[Tensor], modes: Sequence[int]) -> Tensor:
    """The best of library products: the modes are cut in two groups, the group that is contracted
    whole by one product of matrices, and the rest of the other group column by column."""
    sizes, columns = tensor.shape, factors[0].shape[1]
    of_mode = dict(zip(modes, factors, strict=True))
    left = [k for k in range(tensor.ndim) if k not in modes]
    cuts = [at for at in range(1, tensor.ndim) if left[-1] < at or left[0] >= at]

    def width(at: int) -> int:
        return math.prod(sizes[:at] if left[-1] < at else sizes[at:])

    at = min(cuts, key=width)
    front, back = range(at), range(at, tensor.ndim)
    matrix = tensor.reshape(math.prod(sizes[:at]), -1)
    if left[-1] < at:
        partial, group = matrix @ reference.khatri_rao([of_mode[k] for k in back]), front
    else:
        partial, group = matrix.T @ reference.khatri_rao([of_mode[k] for k in front]), back
    partial = partial.view(*(sizes[k] for k in group), columns)
    for place, k in reversed(list(enumerate(group))):
        if k in of_mode:
            shape = [1] * partial.ndim
            shape[place], shape[-1] = sizes[k], columns
            partial = (partial * of_mode[k].view(shape)).sum(place)
    return partial.reshape(-1, columns)


def by_einsum(tensor: Tensor, factors: Sequence[Tensor], modes: Sequence[int]) -> Tensor:
    """By torch.einsum, along the path that it finds."""
    letters = "abcdefgh"[: tensor.ndim]
    kept = "".join(x for k, x in enumerate(letters) if k not in modes)
    spec = ",".join([letters, *(letters[k] + "z" for k in modes)])
    return torch.einsum(f"{spec}->{kept}z", tensor, *factors).reshape(-1, factors[0].shape[1])
