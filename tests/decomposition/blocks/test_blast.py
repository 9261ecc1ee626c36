"""Blocks with shared bases: exactness, losses that never rise, the metric of the inputs."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.blocks import _blast
from tensorlrf.decomposition.blocks._blast import blast, fit_blast
from tensorlrf.decomposition.blocks._blast_als import Bases, SharedBases
from tensorlrf.decomposition.blocks._blast_start import of_eigenvectors, starts
from tensorlrf.decomposition.linalg._output_spectrum import OutputSpectrum
from tensorlrf.decomposition.linalg._spectrum import FullSVD
from tensorlrf.decomposition.svd._svd import fit_svd
from tensorlrf.errors import (
    RankError,
    ShapeError,
    UnsupportedError,
)
from tensorlrf.factors import BlastFactors
from tests.draws import seeded
from tests.metrics import in_moments, moments

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def planted(m: int, n: int, p: int, q: int, r: int, seed: int = 0) -> Tensor:
    mb, nb = -(-m // p), -(-n // q)
    return BlastFactors(
        seeded(p, mb, r, seed=seed),
        seeded(q, r, nb, seed=seed + 1),
        seeded(p, q, r, seed=seed + 2),
        (m, n),
    ).to_dense()


def of_all(problem: SharedBases) -> FullSVD:
    return FullSVD(problem.weight.reshape(-1, problem.n))


@pytest.mark.parametrize(
    ("m", "n", "p", "q", "r"),
    [
        (48, 48, 3, 3, 4),
        (64, 64, 4, 4, 8),
        (32, 32, 2, 2, 8),
        (61, 70, 4, 3, 10),
        (40, 24, 2, 3, 6),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_planted_ones_are_found_exactly(
    m: int, n: int, p: int, q: int, r: int, dtype: torch.dtype
) -> None:
    for seed in range(2):
        weight = planted(m, n, p, q, r, seed).to(dtype)
        fit = fit_blast(weight, r, blocks=(p, q), random_state=0)
        assert fit.error <= 1e-6
        assert fit.factors.shape == (m, n)
        assert fit.factors.dtype == dtype
        # The SVD of that rank is far off: the scales matter.
        assert fit_svd(weight, r).error > 0.05


def test_eigenvectors_give_the_bases_of_a_planted_matrix_at_once() -> None:
    weight = planted(64, 48, 4, 3, 9)
    problem = SharedBases(Target.of(weight), (4, 3))
    draws = torch.Generator().manual_seed(0)
    errors = [problem.rel_error(start) for start in of_eigenvectors(problem, 9, draws)]
    assert min(errors) <= 1e-6


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    m=st.integers(1, 18),
    n=st.integers(1, 18),
    p=st.integers(1, 4),
    q=st.integers(1, 4),
    r=st.integers(1, 18),
    dtype=st.sampled_from(DTYPES),
)
def test_never_worse_than_the_svd_of_the_same_rank(
    m: int, n: int, p: int, q: int, r: int, dtype: torch.dtype
) -> None:
    p, q, r = min(p, m), min(q, n), min(r, m, n)
    weight = seeded(m, n, dtype=dtype)
    fit = fit_blast(weight, r, blocks=(p, q), n_iter_max=5, random_state=0)
    assert all(torch.isfinite(t).all() for t in fit.factors.tensors().values())
    assert fit.factors.blocks == (p, q)
    # Three factors are rounded; a term is at most sqrt(r) times the whole.
    rounding = 8 * torch.finfo(dtype).eps * (min(m, n) + r)
    best = torch.linalg.svdvals(weight.double())
    assert fit.error <= float(best[r:].norm() / best.norm()) + rounding
    assert fit.factors.to(torch.float64).rel_error(weight.double()) == pytest.approx(
        fit.error, rel=1e-3, abs=rounding
    )


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    mb=st.integers(1, 6),
    nb=st.integers(1, 6),
    p=st.integers(1, 4),
    q=st.integers(1, 4),
    r=st.integers(1, 8),
    kind=st.sampled_from(["none", "full", "few", "dead"]),
)
def test_the_loss_never_rises(mb: int, nb: int, p: int, q: int, r: int, kind: str) -> None:
    """By single steps, from every start."""
    n = q * nb
    r = min(r, p * mb, n)
    gram = None if kind == "none" else moments(max(n, 3), kind)[:n, :n].contiguous()
    problem = SharedBases(in_moments(seeded(p * mb, n), gram), (p, q))
    for start in starts(problem, of_all(problem), r, torch.Generator().manual_seed(0)):
        at = start
        before = problem.rel_error(at)
        noise = 1e-7 if gram is not None else 1e-12
        for _ in range(3):
            for step in (problem.step_left, problem.sweep, Bases.balanced):
                # What the inputs do not span may grow, and the rounding of the loss with it.
                size = float(at.dense().norm())
                at = step(at)
                after = problem.rel_error(at)
                size = max(size, float(at.dense().norm()))
                assert after <= before * (1 + 1e-9) + noise * size
                before = after
        errors = problem.descend([start], 6, 0.0).errors
        assert all(b < a for a, b in pairwise(errors))


def test_each_step_solves_its_least_squares_problem() -> None:
    """The gradient with respect to what was moved last vanishes, plain and in the metric."""
    for gram in (None, moments(12, "full")):
        problem = SharedBases(in_moments(seeded(15, 12), gram), (3, 3))
        start = next(iter(starts(problem, of_all(problem), 2, torch.Generator().manual_seed(0))))
        for name, moved in (("left", problem.step_left(start)), ("right", problem.sweep(start))):
            leaf = getattr(moved, name).clone().requires_grad_()
            parts = {"left": moved.left, "right": moved.right, "scales": moved.scales, name: leaf}
            off = problem.weight - Bases(**parts).dense()
            loss = (off * off).sum() if gram is None else (off @ gram * off).sum()
            gradient = torch.autograd.grad(loss, leaf)[0]
            last = gradient if name == "left" else gradient[-1]
            assert float(last.norm()) <= 1e-9 * problem.target.norm


def test_balancing_keeps_the_matrix() -> None:
    at = Bases(1e3 * seeded(3, 4, 5), 1e-4 * seeded(2, 5, 6), seeded(3, 2, 5))
    even = at.balanced()
    torch.testing.assert_close(even.dense(), at.dense())
    assert float(even.scales.abs().amax((0, 1)).sub(1).abs().max()) <= 1e-12
    torch.testing.assert_close(even.left.norm(dim=1)[0], even.right.norm(dim=2)[0])


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    side=st.sampled_from([8, 16, 32]),
    less=st.integers(0, 2),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    inputs=st.booleans(),
)
@example(side=32, less=0, seed=0, dtype=torch.bfloat16, inputs=False)
def test_the_cast_leaves_it_no_worse_than_the_svd(
    side: int, less: int, seed: int, dtype: torch.dtype, inputs: bool
) -> None:
    """Rounding three factors loses more than rounding two, and near full rank nothing else is
    lost."""
    weight = seeded(side, side, seed=seed, dtype=dtype)
    gram = moments(side, "full") if inputs else None
    fit = fit_blast(weight, side - less, gram=gram, n_iter_max=3, random_state=0)
    usual = fit_svd(weight, side - less, gram=gram)
    if gram is None:
        # Both are rounded alike, and their errors measured in float32.
        assert fit.error <= usual.error + 4 * torch.finfo(torch.float32).eps * side
    else:
        target: Target[Any] = Target.of(weight, gram)
        assert target.of_factors(fit.factors).loss <= target.of_factors(usual.factors).loss * (
            1 + 1e-9
        )


@pytest.mark.parametrize("metric", [False, True])
def test_an_error_takes_the_weight_apart_once(
    metric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of ranks tried."""
    calls: Counter[str] = Counter()
    wide = torch.linalg.svd

    def counted(*args: Any, **options: Any) -> Any:
        calls["svd"] += 1
        return wide(*args, **options)

    solve, whitened = _blast._Solver.solve, _blast.OutputSpectrum

    def solved(self: _blast._Solver, r: int) -> Fit[BlastFactors]:
        calls["ranks"] += 1
        return solve(self, r)

    def made(*args: Any) -> OutputSpectrum:
        calls["metric"] += 1
        return whitened(*args)

    monkeypatch.setattr(torch.linalg, "svd", counted)
    monkeypatch.setattr(_blast._Solver, "solve", solved)
    monkeypatch.setattr(_blast, "OutputSpectrum", made)
    weight, gram = seeded(24, 20), moments(20, "full") if metric else None
    fit = fit_blast(weight, error=0.3, blocks=(3, 4), gram=gram, n_iter_max=3, random_state=0)
    assert fit.error <= 0.3
    assert calls["ranks"] > 3
    # The whole, the 3 block rows and the 4 block columns.
    assert calls["svd"] == 1 + 3 + 4
    assert calls["metric"] == int(metric)


def test_with_white_inputs_a_sweep_is_the_plain_one() -> None:
    white = SharedBases(in_moments(seeded(10, 12), torch.eye(12)), (2, 3))
    plain = SharedBases(Target.of(seeded(10, 12)), (2, 3))
    start = next(iter(starts(plain, of_all(plain), 2, torch.Generator().manual_seed(0))))
    torch.testing.assert_close(white.sweep(start).dense(), plain.sweep(start).dense())


def test_refusals() -> None:
    weight = seeded(12, 10)
    with pytest.raises(RankError, match="rank=11 is above"):
        blast(weight, 11)
    for blocks in (0, 13, (4, 11), (1, 2, 3), "4"):
        with pytest.raises(ShapeError, match="blocks="):
            blast(weight, 1, blocks=blocks)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="svd, kron or tucker"):
        blast(seeded(4, 4, 3, 3), 1)
