"""Tucker beside tensorly on the torch backend, float32: time to convergence and the true error.

Each is called as its users call it, with its own stopping rule, on the same tensor: a planted
Tucker model with white noise, as much of the norm of a trained kernel is out of reach of a small
rank. `extra_info` holds the true relative error reached; read time and error together.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition.tucker._tucker import tucker
from tensorlrf.factors import TuckerFactors

CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "200x200x200 r(20, 20, 20)": ((200, 200, 200), (0, 1, 2), (20, 20, 20)),
    "512x512x3x3 r(64, 64)": ((512, 512, 3, 3), (0, 1), (64, 64)),
    "512x512x3x3 r(128, 128)": ((512, 512, 3, 3), (0, 1), (128, 128)),
    "512x512x3x3 r(256, 256)": ((512, 512, 3, 3), (0, 1), (256, 256)),
}


def noisy(
    shape: tuple[int, ...], modes: tuple[int, ...], ranks: tuple[int, ...], seed: int = 0
) -> Tensor:
    """A Tucker model of one and a half times the ranks, and white noise of half its norm."""
    draws = torch.Generator().manual_seed(seed)
    core = list(shape)
    for k, r in zip(modes, ranks, strict=True):
        core[k] = 3 * r // 2
    factors = tuple(torch.randn(shape[k], core[k], generator=draws) for k in modes)
    model = TuckerFactors(torch.randn(core, generator=draws), factors, modes).to_dense()
    white = torch.randn(shape, generator=draws)
    return model.add_(white, alpha=0.5 * float(model.norm() / white.norm()))


@pytest.mark.parametrize("peer", ["ours", "tensorly"])
@pytest.mark.parametrize("case", CASES)
def test_tucker(benchmark: Any, case: str, peer: str) -> None:
    shape, modes, ranks = CASES[case]
    tensor = noisy(shape, modes, ranks)

    def ours() -> TuckerFactors:
        return tucker(tensor, ranks, modes=modes)

    def theirs() -> TuckerFactors:
        if len(modes) == len(shape):
            core, factors = tensorly.decomposition.tucker(tensor, list(ranks))
        else:
            (core, factors), _ = tensorly.decomposition.partial_tucker(
                tensor, list(ranks), modes=list(modes)
            )
        return TuckerFactors(core, tuple(factors), modes)

    if peer == "tensorly":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorly
            import tensorly.decomposition

            tensorly.set_backend("pytorch")
    benchmark.group = f"tucker, {case}"
    run = ours if peer == "ours" else theirs
    rounds = 5 if peer == "ours" else 2
    factors = benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info.update(case=case, peer=peer, rel_error=factors.rel_error(tensor))


@pytest.mark.parametrize("solver", ["hosvd", "st_hosvd", "randomized", "hooi"])
def test_methods(benchmark: Any, solver: str) -> None:
    """Our methods beside each other at 200 x 200 x 200."""
    case = "200x200x200 r(20, 20, 20)"
    shape, modes, ranks = CASES[case]
    tensor = noisy(shape, modes, ranks)

    def run() -> TuckerFactors:
        return tucker(tensor, ranks, solver=solver, random_state=0)

    benchmark.group = f"tucker methods, {case}"
    factors = benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    benchmark.extra_info.update(
        case=f"methods, {case}", peer=f"ours {solver}", rel_error=factors.rel_error(tensor)
    )


def test_tucker2_in_the_metric_of_the_inputs(benchmark: Any) -> None:
    """512 x 512 x 3 x 3 at a quarter of the parameters, with the moments of its inputs."""
    shape, modes, ranks = (512, 512, 3, 3), (0, 1), (192, 192)
    kernel = noisy(shape, modes, ranks)
    draws = torch.Generator().manual_seed(1)
    n = 512 * 9
    inputs = torch.randn(n, 64, generator=draws) @ torch.randn(64, 6000, generator=draws)
    inputs = inputs / 8 + torch.randn(n, 6000, generator=draws)
    gram = inputs @ inputs.T / 6000

    def run() -> TuckerFactors:
        return tucker(kernel, ranks, modes=modes, gram=gram)

    case = "512x512x3x3 r(192, 192) with gram"
    benchmark.group = f"tucker, {case}"
    factors = benchmark.pedantic(run, rounds=2, warmup_rounds=1)
    off = (kernel - factors.to_dense()).flatten(1) @ inputs
    error = float(off.norm() / (kernel.flatten(1) @ inputs).norm())
    benchmark.extra_info.update(case=case, peer="ours", rel_error=error)
