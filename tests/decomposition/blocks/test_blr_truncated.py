"""Blocks of one given rank: no dearer than one SVD after the other, and as near."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition.blocks import _blr_truncated
from tensorlrf.decomposition.blocks._blr import blr, fit_blr

EXCESS = 1e-3


def weight_of(kind: str, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    white = torch.randn(n, n, generator=draws, dtype=torch.float64)
    if kind == "noise":
        return white.to(dtype)
    if kind == "zero":
        return torch.zeros(n, n, dtype=dtype)
    if kind == "low rank":
        return (white[:, :3] @ white[:3]).to(dtype)
    if kind == "low rank and noise":
        return (white[:, :3] @ white[:3] + 1e-4 * white).to(dtype)
    if kind == "some low rank":
        low = white[:, :3] @ white[:3]
        left = torch.arange(n)[:, None] < n // 2
        return torch.where(left, low, white).to(dtype)
    if kind == "falling":
        left, _, right = torch.linalg.svd(white)
        return ((left * 0.8 ** torch.arange(n)) @ right).to(dtype)
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    near = 1 / ((x[:, None] - x - 1e-3).abs() + 1e-3)
    return (near + 1e-3 * near.norm() / n * white).to(dtype)


def least(weight: Tensor, block: int, r: int) -> float:
    """Relative error of the nearest matrix with rank r in every block."""
    wide, lost = weight.double(), 0.0
    for rows in wide.split(block):
        for part in rows.split(block, dim=1):
            lost += float(torch.linalg.svdvals(part)[r:].square().sum())
    return math.sqrt(lost) / float(wide.norm().clamp(min=1e-300))


KINDS = (
    "noise",
    "near field",
    "low rank",
    "low rank and noise",
    "some low rank",
    "falling",
    "zero",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 5, 20])
@pytest.mark.parametrize("block", [64, 50])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_as_near_as_the_svd_of_each(kind: str, r: int, block: int, dtype: torch.dtype) -> None:
    weight = weight_of(kind, 256, dtype)
    factors = blr(weight, r, block=block, dense_blocks=False)
    off = factors.to(torch.float64).to_dense() - weight.double()
    reached = float(off.norm() / weight.double().norm().clamp(min=1e-300))
    rounding = 8 * torch.finfo(dtype).eps * math.sqrt(r)
    assert reached <= math.hypot(least(weight, block, r) * (1 + EXCESS), rounding)
    fit = fit_blr(weight, r, block=block, dense_blocks=False)
    assert torch.equal(fit.factors.to_dense(), factors.to_dense())
    assert fit.error == pytest.approx(reached, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [2, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hardly_a_block_is_taken_apart_by_lapack(
    kind: str, r: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which costs as much as one SVD after the other does."""
    taken: list[int] = []
    whole = _blr_truncated.thin_svd

    def counted(stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        taken.append(len(stack))
        return whole(stack)

    monkeypatch.setattr(_blr_truncated, "thin_svd", counted)
    blr(weight_of(kind, 512, dtype), r, block=128)
    assert sum(taken) <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [4, 60])
def test_few_blocks_are_taken_apart_once(
    kind: str, r: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No trial goes before: nothing of the side of a block is decomposed more often than there are
    blocks."""
    taken: list[int] = []

    def counting(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def counted(stack: Tensor) -> Any:
            if stack.shape[-1] == 128:
                taken.append(len(stack))
            return function(stack)

        return counted

    for name in ("thin_svd", "descending_eigh"):
        monkeypatch.setattr(_blr_truncated, name, counting(getattr(_blr_truncated, name)))
    blr(weight_of(kind, 256), r, block=128)
    assert sum(taken) <= 4


@pytest.mark.parametrize("kind", ["low rank", "falling", "zero"])
def test_no_whole_spectrum_of_what_a_sketch_holds(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[int] = []
    whole = _blr_truncated.descending_eigh

    def counted(stack: Tensor) -> tuple[Tensor, Tensor]:
        sides.append(stack.shape[-1])
        return whole(stack)

    monkeypatch.setattr(_blr_truncated, "descending_eigh", counted)
    blr(weight_of(kind, 256), 6, block=64, dense_blocks=False)
    assert max(sides) <= 64 // 2


def test_doubt_is_an_upper_bound() -> None:
    """Of what a sketch and Grams miss of the optimum, whatever the spectrum is."""
    for kind in KINDS:
        weight = weight_of(kind, 256)
        stack = torch.stack([part for rows in weight.split(64) for part in rows.split(64, dim=1)])
        values = torch.linalg.svdvals(stack.double())
        sketch = _blr_truncated._sketched(stack, 6)
        assert sketch is not None
        known, found = sketch
        for cut in (
            found,
            _blr_truncated._by_grams(stack, 6),
            _blr_truncated._by_grams(stack, 6, known),
        ):
            left, sizes, right = (part.double() for part in cut.triples)
            reached = (stack - left * sizes[:, None] @ right).square().sum((1, 2))
            missed = reached - values[:, 6:].square().sum(1)
            # Half a rounding of every one of 64 columns and rows.
            slack = 64 * torch.finfo(stack.dtype).eps ** 2 * values.square().sum(1)
            assert bool((missed <= cut.excess + slack).all()), kind


def test_large_blocks_come_from_krylov_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise AssertionError("the whole spectrum is not wanted")

    monkeypatch.setattr(_blr_truncated, "thin_svd", refused)
    monkeypatch.setattr(_blr_truncated, "descending_eigh", refused)
    weight = weight_of("near field", 768)
    fit = fit_blr(weight, 4, block=384, dense_blocks=False)
    assert fit.error <= least(weight, 384, 4) * (1 + EXCESS)
