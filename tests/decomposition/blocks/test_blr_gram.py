"""Block low-rank matrices in the metric of the inputs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tensorlrf.decomposition.blocks._blr import blr, fit_blr, on_grid
from tensorlrf.decomposition.blocks._blr_fit import uniform
from tensorlrf.decomposition.blocks._blr_matrix import matrix_target
from tensorlrf.decomposition.blocks._blr_outputs import Outputs
from tensorlrf.decomposition.svd._svd import fit_svd
from tests.draws import seeded
from tests.metrics import in_moments, moments, output_error


@pytest.mark.parametrize("kind", ["full", "few", "dead"])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_sweep_never_raises_the_error(kind: str, rank: int) -> None:
    weight = matrix_target(seeded(24, 30, seed=3), moments(30, kind), None, "blr")
    tiling = on_grid(weight, (7, 8))
    outputs = Outputs(weight, tiling.places)
    ranks = uniform(tiling.pieces, rank)
    run = outputs.descend(outputs.start(tiling.contents(ranks), ranks), 20, 0.0)
    errors, contents = run.errors, run.state.contents
    assert len(errors) > 5
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]
    # The residual kept on the way is that of the blocks that come out.
    left = weight.work.double() - tiling.packed(contents).to(torch.float64).to_dense()
    assert outputs.target.rel_error(left) == pytest.approx(errors[-1], rel=1e-9)


def test_a_block_is_the_best_for_what_the_others_leave() -> None:
    """The gradient vanishes in the panels of the blocks that were replaced last."""
    gram = moments(20, "full")
    weight = in_moments(seeded(12, 20), gram)
    tiling = on_grid(weight, (6, 5))
    outputs = Outputs(weight, tiling.places)
    ranks = uniform(tiling.pieces, 2)
    run = outputs.descend(outputs.start(tiling.contents(ranks), ranks), 2, 0.0)
    pairs = [content for content in run.state.contents if isinstance(content, tuple)]
    leaves = [tuple(t.clone().requires_grad_() for t in pair) for pair in pairs]
    rows = [torch.cat([u @ v for u, v in leaves[4 * i : 4 * i + 4]], dim=1) for i in range(2)]
    off = weight.work - torch.cat(rows)
    loss = (off @ gram * off).sum() / outputs.target.norm
    assert float(loss.detach()) == pytest.approx(run.error**2, rel=1e-9)
    for i in outputs.stacks[-1].members:
        for gradient in torch.autograd.grad(loss, leaves[i], retain_graph=True):
            assert float(gradient.norm()) <= 1e-9
    # Any other block of that rank in its place makes it worse.
    left, right = (t.detach() for t in leaves[-1])
    for seed in range(5):
        turned = left + 1e-2 * seeded(*left.shape, seed=seed)
        moved = off.detach().clone()
        moved[6:, 15:] += (left - turned) @ right
        assert float((moved @ gram * moved).sum()) / outputs.target.norm > float(loss.detach())


def test_one_block_is_the_svd_in_the_metric() -> None:
    for shape in ((20, 30), (30, 20)):
        weight, gram = seeded(*shape), moments(shape[1], "full")
        fit = fit_blr(weight, 4, block=shape, gram=gram)
        assert fit.error == pytest.approx(fit_svd(weight, 4, gram=gram).error, rel=1e-8)


@pytest.mark.parametrize("kind", ["full", "dead"])
@pytest.mark.parametrize("error", [0.02, 0.2])
def test_an_error_of_the_outputs_is_kept(kind: str, error: float) -> None:
    weight, gram = seeded(24, 30), moments(30, kind)
    fit = fit_blr(weight, error=error, block=(8, 6), gram=gram)
    assert output_error(weight, fit.factors, gram) <= error
    # Fewer than blocks need which do not know of the inputs.
    usual = next(
        factors
        for share in (0.1 * i for i in range(1, 11))
        if output_error(weight, factors := blr(weight, share, block=(8, 6)), gram) <= error
    )
    assert fit.factors.n_params <= usual.n_params


def test_the_block_is_found_by_the_error_of_the_outputs() -> None:
    weight, gram = seeded(32, 40), moments(40, "full")
    fit = fit_blr(weight, 0.4, gram=gram)
    assert fit.error <= fit_svd(weight, 0.4, gram=gram).error * (1 + 1e-8)
    assert fit.error <= fit_blr(weight, 0.4, block=(16, 20), gram=gram).error * (1 + 1e-12)


def test_what_float16_cannot_hold_is_left_plain() -> None:
    """A dense block that makes good what its neighbours leave may grow beyond 65504."""
    weight = (3e4 * seeded(18, 24).clamp(-2, 2)).half()
    gram = moments(24, "few")
    for share in (0.3, 0.7, 0.9):
        fit = fit_blr(weight, share, block=(6, 6), gram=gram)
        assert all(torch.isfinite(t).all() for t in fit.factors.tensors().values())
        usual = output_error(weight, blr(weight, share, block=(6, 6)), gram)
        assert fit.error <= usual * (1 + 1e-9)


def test_an_exact_start_is_left_as_it_is() -> None:
    weight = torch.cat([seeded(12, 2) @ seeded(2, 9, seed=i) for i in range(3)], dim=1)
    for kind in ("full", "few", "dead"):
        fit = fit_blr(weight, 2, block=(6, 9), gram=moments(27, kind))
        assert fit.error <= 1e-13
        assert all(after <= before for before, after in pairwise(fit.errors[:-1]))


@pytest.mark.parametrize("kind", ["full", "dead"])
def test_estimated_ranks_are_those_of_the_weight(kind: str) -> None:
    weight, gram = 0.3 * seeded(24, 30, seed=3), moments(30, kind)
    weight[:12, :15] += seeded(12, 2, seed=1) @ seeded(2, 15, seed=2)
    weight[12:, 15:] += seeded(12, 1, seed=1) @ seeded(1, 15, seed=2)
    usual = blr(weight, "auto", block=(12, 15))
    fit = fit_blr(weight, "auto", block=(12, 15), gram=gram)
    assert [b.rank for b in fit.factors.blocks] == [b.rank for b in usual.blocks] == [2, 0, 0, 1]
    assert fit.error <= output_error(weight, usual, gram) * (1 + 1e-9)
