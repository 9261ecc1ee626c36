"""Truncated SVD where nobody says how: ours beside every way that comes within a thousandth of the
least residual, float32, in turn.

The exact way is torch's SVD, the sketch is `torch.svd_lowrank` with the fewest power iterations
that come so near (which somebody has to know), Lanczos is `scipy.sparse.linalg.svds`. The row of
ours says how many times its own time the best of them takes: `best_over_ours`. Spectra are planted
in random bases, so that the least residual is known; the flat one is that of a Gaussian matrix.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from scipy.sparse.linalg import svds
from torch import Tensor

from bench.turns import Turns
from tensorlrf.decomposition import kron
from tensorlrf.decomposition.svd._svd import svd

Triple = tuple[Tensor, Tensor, Tensor]

EXCESS = 1e-3
LARGE = 2048
"""From here on the exact way takes minutes, and is left out."""

CASES = {
    "2000x500 r16": (
        (2000, 500, 16),
        ("flat", "root", "exponential", "noise floor", "low rank", "step"),
    ),
    "1024x1024 r4": ((1024, 1024, 4), ("flat", "root", "exponential", "step")),
    "1000x1000 r64": ((1000, 1000, 64), ("flat", "root", "exponential", "noise floor", "step")),
    "768x768 r192": ((768, 768, 192), ("flat", "root")),
    "4096x4096 r64": ((4096, 4096, 64), ("root",)),
    "4097x4097 r64": ((4097, 4097, 64), ("root",)),
}
ROWS = [f"{case}, {kind}" for case, (_, kinds) in CASES.items() for kind in kinds]


def spectrum(kind: str, n: int, r: int) -> Tensor:
    j = torch.arange(1, n + 1, dtype=torch.float64)
    if kind == "flat":
        draws = torch.Generator().manual_seed(n)
        return torch.linalg.svdvals(torch.randn(n, n, generator=draws)).double()
    return {
        "root": j**-0.5,
        "exponential": torch.exp(-j / r),
        "noise floor": (j <= r) / j.sqrt() + 0.02,
        "low rank": (j <= r) / j.sqrt(),
        "step": (j <= r) + 0.1,
    }[kind]


def planted(m: int, n: int, values: Tensor) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(m, n, generator=draws))[0]
    right = torch.linalg.qr(torch.randn(n, n, generator=draws))[0]
    return (left * values.float()) @ right.T


def residual(matrix: Tensor, found: Triple) -> float:
    u, s, vt = found
    return float(torch.linalg.vector_norm(matrix - (u * s) @ vt, dim=1).double().norm())


def exact(matrix: Tensor, r: int) -> Triple:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :r], s[:r], vt[:r]


def sketch(matrix: Tensor, r: int, iterations: int) -> Triple:
    u, s, v = torch.svd_lowrank(matrix, q=r + 10, niter=iterations)
    return u[:, :r], s[:r], v[:, :r].T


def lanczos(matrix: Tensor, r: int) -> Triple:
    u, s, vt = svds(matrix.numpy(), k=r)
    return torch.from_numpy(u.copy()), torch.from_numpy(s.copy()), torch.from_numpy(vt.copy())


def ours(matrix: Tensor, r: int) -> Triple:
    factors = svd(matrix, r)
    return factors.left, torch.ones(r), factors.right


@lru_cache(maxsize=1)
def measured(row: str) -> tuple[Turns, dict[str, float], float]:
    """Times, residuals over the least one, and how many times ours the best way takes."""
    case, kind = row.split(", ")
    m, n, r = CASES[case][0]
    values = spectrum(kind, n, r)
    matrix = planted(m, n, values)
    least = float(values[r:].norm())
    # Rounding, for what is exactly of low rank.
    near = (1 + EXCESS) * least + 1e-6 * float(values.norm())
    few = next((k for k in range(16) if residual(matrix, sketch(matrix, r, k)) <= near), 16)
    calls: dict[str, Callable[[], Triple]] = {
        "ours": lambda: ours(matrix, r),
        "sketch": lambda: sketch(matrix, r, few),
        "lanczos": lambda: lanczos(matrix, r),
    }
    if n < LARGE:
        calls["exact"] = lambda: exact(matrix, r)
    turns = Turns.take(calls, 5 if n < LARGE else 3)
    off = {way: residual(matrix, found) for way, found in turns.results.items()}
    taken = {way: min(turns.samples[way]) for way in calls}
    best = min(taken[way] for way in calls if way != "ours" and off[way] <= near)
    over = {
        way: (loss / least if least else loss / float(values.norm())) for way, loss in off.items()
    }
    return turns, over, best / taken["ours"]


@pytest.mark.parametrize("row", ROWS)
def test_svd_choice(benchmark: Any, row: str) -> None:
    turns, over, ratio = measured(row)
    fastest = {way: min(samples) for way, samples in turns.samples.items()}
    benchmark.group = row
    benchmark.pedantic(turns.calls["ours"], rounds=3)
    others = {
        f"{way}_over_ours": t / fastest["ours"] for way, t in fastest.items() if way != "ours"
    }
    benchmark.extra_info.update(
        case=row, peer="ours", best_over_ours=ratio, residual_over_least=over["ours"], **others
    )


@pytest.mark.parametrize(
    ("m", "n", "pair"), [(1024, 1024, ((32, 32), (32, 32))), (300, 400, ((15, 20), (20, 20)))]
)
def test_kron_choice(benchmark: Any, m: int, n: int, pair: Any) -> None:
    """Four terms, white noise of half the norm, beside the rearrangement and `svd_lowrank`."""
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, *shape, generator=draws) for shape in pair)
    whole = torch.stack([torch.kron(x, y) for x, y in zip(a, b, strict=True)]).sum(0)
    white = torch.randn(m, n, generator=draws)
    weight = whole + white * 0.5 * float(whole.norm() / white.norm())

    def theirs() -> Triple:
        (m1, n1), (m2, n2) = pair
        rows = weight.reshape(m1, m2, n1, n2).transpose(1, 2).reshape(m1 * n1, m2 * n2)
        return sketch(rows, 4, 2)

    calls = {"ours": lambda: kron(weight, 4, shapes=pair), "sketch": theirs}
    turns = Turns.take(calls, 9)
    case = f"kron {m}x{n} s4"
    benchmark.group = case
    benchmark.pedantic(calls["ours"], rounds=3)
    ratio = min(turns.samples["sketch"]) / min(turns.samples["ours"])
    benchmark.extra_info.update(
        case=case,
        peer="ours",
        best_over_ours=ratio,
        sketch_over_ours=statistics.median(turns.ratios("ours", "sketch")),
    )
