"""mttkrp beside tensorly's, on torch tensors in float32: one mode, and all modes of a tensor.

On a CPU the op forms Khatri-Rao products of bounded size, which the whole comparison on a GPU,
`make gpu-bench`, has as its baseline.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.mttkrp import mttkrp

CASES = {
    "200x200x200 r16": ((200, 200, 200), 16),
    "256x256x3x3 r64": ((256, 256, 3, 3), 64),
    "40x40x40x40 r32": ((40, 40, 40, 40), 32),
}
PEERS = ("ours", "tensorly")
ROUNDS = 10


def drawn(case: str, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    shape, rank = CASES[case]
    g = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=g).to(device)
    return tensor, [torch.randn(n, rank, generator=g).to(device) for n in shape]


def peer_of(name: str) -> Callable[[Tensor, list[Tensor], int], Tensor]:
    if name == "ours":
        return mttkrp
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorly
        from tensorly.cp_tensor import unfolding_dot_khatri_rao

        tensorly.set_backend("pytorch")
    return lambda tensor, factors, mode: unfolding_dot_khatri_rao(tensor, (None, factors), mode)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("mode", [0, 1, "all"])
@pytest.mark.parametrize("case", CASES)
def test_mttkrp(
    benchmark: Any, case: str, mode: int | str, peer: str, device: torch.device
) -> None:
    tensor, factors = drawn(case, device)
    modes = range(tensor.ndim) if mode == "all" else [int(mode)]
    call = peer_of(peer)

    def run() -> list[Tensor]:
        found = [call(tensor, factors, k) for k in modes]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found

    name = f"{case}, {'all modes' if mode == 'all' else f'mode {mode}'}, {device.type}"
    benchmark.group = f"mttkrp, {name}"
    found = benchmark.pedantic(run, rounds=ROUNDS, iterations=1, warmup_rounds=2)
    wide = mttkrp(tensor.double(), [f.double() for f in factors], modes[0])
    error = float((found[0].double() - wide).norm() / wide.norm())
    benchmark.extra_info.update(case=name, peer=peer, rel_error=error)
