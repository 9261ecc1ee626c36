"""Blocks of one given rank: no dearer than one SVD after the other, and as near."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition import _blr_spectra
from tensorlrf.decomposition._blr import blr, fit_blr

EXCESS = 1e-3


def weight_of(kind: str, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    white = torch.randn(n, n, generator=draws, dtype=torch.float64)
    if kind == "noise":
        return white.to(dtype)
    if kind == "low rank":
        return (white[:, :3] @ white[:3]).to(dtype)
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    near = 1 / ((x[:, None] - x - 1e-3).abs() + 1e-3)
    return (near + 1e-3 * near.norm() / n * white).to(dtype)


def least(weight: Tensor, block: int, r: int) -> float:
    """Relative error of the nearest matrix with rank r in every block."""
    wide, lost = weight.double(), 0.0
    for rows in wide.split(block):
        for part in rows.split(block, dim=1):
            lost += float(torch.linalg.svdvals(part)[r:].square().sum())
    return math.sqrt(lost) / float(wide.norm())


@pytest.mark.parametrize("kind", ["noise", "near field", "low rank"])
@pytest.mark.parametrize("r", [1, 5, 20])
@pytest.mark.parametrize("block", [64, 50])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_as_near_as_the_svd_of_each(kind: str, r: int, block: int, dtype: torch.dtype) -> None:
    weight = weight_of(kind, 256, dtype)
    factors = blr(weight, r, block=block, dense_blocks=False)
    off = factors.to(torch.float64).to_dense() - weight.double()
    reached = float(off.norm() / weight.double().norm())
    rounding = 8 * torch.finfo(dtype).eps * math.sqrt(r)
    assert reached <= math.hypot(least(weight, block, r) * (1 + EXCESS), rounding)
    fit = fit_blr(weight, r, block=block, dense_blocks=False)
    assert torch.equal(fit.factors.to_dense(), factors.to_dense())
    assert fit.error == pytest.approx(reached, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "r", "most"), [("noise", 8, 0), ("near field", 8, 8), ("near field", 32, 8)]
)
def test_few_blocks_are_taken_apart_by_lapack(
    kind: str, r: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    whole = _blr_spectra._svd

    def counted(stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        taken.append(len(stack))
        return whole(stack)

    monkeypatch.setattr(_blr_spectra, "_svd", counted)
    blr(weight_of(kind, 512), r, block=128)
    assert sum(taken) <= most


def test_blocks_that_float32_grams_cannot_judge_go_to_lapack_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a look at a few of them."""
    looked: list[int] = []
    whole = _blr_spectra._by_single_grams

    def counted(stack: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor] | None:
        looked.append(len(stack))
        return whole(stack, r)

    monkeypatch.setattr(_blr_spectra, "_by_single_grams", counted)
    fit = fit_blr(weight_of("low rank", 256), 8, block=32, dense_blocks=False)
    assert looked == [4]
    assert fit.error <= 1e-6


def test_large_blocks_come_from_krylov_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise AssertionError("the whole spectrum is not wanted")

    monkeypatch.setattr(_blr_spectra, "_svd", refused)
    monkeypatch.setattr(_blr_spectra, "stacked_eigh", refused)
    weight = weight_of("near field", 768)
    fit = fit_blr(weight, 4, block=384, dense_blocks=False)
    assert fit.error <= least(weight, 384, 4) * (1 + EXCESS)
