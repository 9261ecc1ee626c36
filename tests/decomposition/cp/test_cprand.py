"""CP by randomised least squares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition.cp import _cprand
from tensorlrf.decomposition.cp._cp import fit_cp
from tensorlrf.decomposition.cp._cprand_mixed import sampled_sweep
from tensorlrf.decomposition.cp._sketch import sketch_tensor
from tensorlrf.decomposition.cp._state import gram, make_state
from tensorlrf.decomposition.cp._sweep import Sweeps
from tensorlrf.factors import CPFactors


def noisy(shape: tuple[int, ...], rank: int, noise: float) -> Tensor:
    rng = torch.Generator().manual_seed(11)
    factors = tuple(torch.randn(n, rank, generator=rng) for n in shape)
    model = CPFactors(torch.ones(rank), factors).to_dense()
    white = torch.randn(shape, generator=rng)
    return model + noise * white * model.norm() / white.norm()


@pytest.mark.parametrize(
    ("shape", "rank", "noise"),
    [
        ((40, 40, 40), 5, 0.1),
        ((40, 40, 40), 5, 1.0),
        ((48, 48, 3, 3), 12, 0.1),
        ((60, 8, 9), 6, 0.2),
        ((12, 13, 14), 10, 0.1),
    ],
)
def test_final_error_is_that_of_converged_als(
    shape: tuple[int, ...], rank: int, noise: float
) -> None:
    tensor = noisy(shape, rank, noise)
    best = fit_cp(tensor, rank, solver="als", n_iter_max=500, n_restarts=5, random_state=99).error
    for seed in range(5):
        fit = fit_cp(tensor, rank, solver="cprand", random_state=seed)
        assert fit.error <= 1.01 * best
        assert fit.error == pytest.approx(fit.factors.rel_error(tensor), rel=1e-4)


def test_at_most_ten_exact_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    begin = _cprand.sweeps_of

    def counted(*args: Any) -> Sweeps[Any]:
        sweeps = begin(*args)
        run = sweeps.run
        sweeps.run = lambda ridges: made.extend(ridges) or run(ridges)
        return sweeps

    monkeypatch.setattr(_cprand, "sweeps_of", counted)
    fit_cp(noisy((10, 11, 12), 9, 0.5), 9, solver="cprand", random_state=0)
    assert 1 <= len(made) <= 10


def test_mixing_keeps_the_tensor_and_spreads_its_rows() -> None:
    tensor = torch.zeros(16, 16, 16)
    tensor[3, 5, 7] = 1
    rng = torch.Generator().manual_seed(0)
    sketch = sketch_tensor(tensor, (16, 16, 16), rng)
    for mode, (mixing, unfolding) in enumerate(zip(sketch.mixing, sketch.unfoldings, strict=True)):
        # Sums of 16 float32 products of entries of unit rows, made by a transform of as many.
        bound = 2 * 16 * torch.finfo(torch.float32).eps
        torch.testing.assert_close(mixing @ mixing.T, torch.eye(16), rtol=0, atol=bound)
        assert unfolding.shape == (256, 16)
        assert float(unfolding.norm()) == pytest.approx(1, rel=1e-5)
        # One entry has become many: no row of 256 holds a large share of the energy.
        assert float(unfolding.square().sum(1).max()) < 0.25
        assert float(unfolding[:, (3, 5, 7)[mode]].norm()) == pytest.approx(1, rel=1e-5)


def test_a_sketch_is_the_mixed_tensor() -> None:
    tensor = noisy((7, 8, 9), 3, 0.5).double()
    sketch = sketch_tensor(tensor, (4, 8, 5), torch.Generator().manual_seed(0))
    a, b, c = sketch.mixing
    torch.testing.assert_close(
        sketch.unfoldings[0], torch.einsum("ijk,bj,ck->bci", tensor, b, c).flatten(0, 1)
    )
    torch.testing.assert_close(
        sketch.unfoldings[1], torch.einsum("ijk,ai,ck->acj", tensor, a, c).flatten(0, 1)
    )
    torch.testing.assert_close(
        sketch.unfoldings[2], torch.einsum("ijk,ai,bj->abk", tensor, a, b).flatten(0, 1)
    )
    mixed = [q @ torch.randn(n, 2, dtype=q.dtype, generator=torch.Generator().manual_seed(1))
             for q, n in zip(sketch.mixing, (7, 8, 9), strict=True)]  # fmt: skip
    whole = sketch.mixed_rows(mixed, 1, None)
    rows = torch.tensor([0, 7, 19, 7])
    torch.testing.assert_close(sketch.mixed_rows(mixed, 1, rows), whole[rows])


def test_a_sweep_over_the_whole_grid_is_exact_least_squares() -> None:
    """On an exact tensor with two true factors, one unmixed solve gives the third."""
    rng = torch.Generator().manual_seed(0)
    true = [torch.randn(n, 1, 2, generator=rng, dtype=torch.float64) for n in (6, 7, 8)]
    weights = torch.ones(1, 2, dtype=torch.float64)
    tensor = CPFactors(weights[0], tuple(f[:, 0] for f in true)).to_dense()
    wrong = torch.randn(6, 1, 2, generator=rng, dtype=torch.float64)
    state = make_state([wrong, *true[1:]], weights)
    sketch = sketch_tensor(tensor, (5, 5, 5), rng)
    after = sampled_sweep(sketch, state, 1000, 1e-12, frozenset({1, 2}), rng)
    expected = true[0] / true[0].norm(dim=0)
    overlap = (after.factors[0] * expected).sum(0).abs()
    torch.testing.assert_close(overlap, torch.ones_like(overlap))
    assert gram(after.factors[0]).shape == (1, 2, 2)


def test_n_samples_is_used() -> None:
    tensor = noisy((20, 20, 20), 3, 0.1)
    few = fit_cp(tensor, 3, solver="cprand", n_samples=8, random_state=0)
    many = fit_cp(tensor, 3, solver="cprand", n_samples=400, random_state=0)
    assert few.errors[0] != many.errors[0]
    assert many.error <= few.error * 1.01
