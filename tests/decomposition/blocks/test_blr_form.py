"""Block low-rank matrices where outputs count by what is made of them: in a form R D G."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition._quadratic import Product
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.blocks._blr import fit_blr, on_grid
from tensorlrf.decomposition.blocks._blr_fit import uniform
from tensorlrf.decomposition.blocks._blr_outputs import Outputs
from tensorlrf.decomposition.blocks._hierarchical import fit_hierarchical
from tensorlrf.decomposition.second_moments import second_moments
from tensorlrf.decomposition.svd._svd import fit_svd
from tests.draws import seeded
from tests.metrics import moments


def form(m: int, n: int, seed: int = 0) -> Product:
    """R (m, m) and G (n, n) of correlated outputs and inputs, definite."""
    rows = moments(m, seed=seed) + 0.01 * torch.eye(m, dtype=torch.float64)
    gram = moments(n, seed=seed + 1) + 0.01 * torch.eye(n, dtype=torch.float64)
    return Product(rows, second_moments(gram, None, n, rows).given)


def loss(off: Tensor, product: Product) -> Tensor:
    return (product.apply(off) * off).sum()


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    m=st.integers(4, 16),
    n=st.integers(4, 16),
    block=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    rank=st.integers(1, 2),
    seed=st.integers(0, 100),
)
def test_a_sweep_never_raises_the_loss(
    m: int, n: int, block: tuple[int, int], rank: int, seed: int
) -> None:
    block = (min(block[0], m), min(block[1], n))
    target: Target[Any] = Target.of(seeded(m, n, seed=seed), form(m, n, seed))
    tiling = on_grid(target, block)
    outputs, ranks = Outputs(target, tiling.places), uniform(tiling.pieces, rank)
    state = outputs.start(tiling.contents(ranks), ranks).state
    errors = [target.rel_error(state.residual)]
    for _ in range(6):
        state, error = outputs.sweep(state)
        errors.append(error)
    assert all(after <= before * (1 + 1e-9) + 1e-9 for before, after in pairwise(errors))
    left = target.matrix - tiling.packed(state.contents).to(torch.float64).to_dense()
    assert target.rel_error(left) == pytest.approx(errors[-1], rel=1e-6, abs=1e-7)


def test_the_gradient_vanishes_in_the_block_that_came_last() -> None:
    product = form(12, 10)
    target: Target[Any] = Target.of(seeded(12, 10), product)
    tiling = on_grid(target, (4, 10))
    outputs, ranks = Outputs(target, tiling.places), uniform(tiling.pieces, 2)
    run = outputs.descend(outputs.start(tiling.contents(ranks), ranks), 2, 0.0)
    pairs = [content for content in run.state.contents if isinstance(content, tuple)]
    leaves = [tuple(t.clone().requires_grad_() for t in pair) for pair in pairs]
    off = target.matrix - torch.cat([u @ v for u, v in leaves])
    lost = loss(off, product)
    assert float(lost.detach()) / target.norm == pytest.approx(run.error**2, rel=1e-9)
    (last,) = outputs.stacks[-1].members
    for gradient in torch.autograd.grad(lost, leaves[last]):
        assert float(gradient.norm()) <= 1e-9 * target.norm


def test_one_block_is_the_svd_in_the_form() -> None:
    for m, n in ((12, 18), (18, 12)):
        weight, product = seeded(m, n), form(m, n)
        fit = fit_blr(weight, 4, block=(m, n), gram=product)
        assert fit.error == pytest.approx(fit_svd(weight, 4, gram=product).error, rel=1e-8)


def test_what_outputs_count_is_seen() -> None:
    """Less is lost in the form than by blocks that only know the inputs, at one budget."""
    weight, product = seeded(16, 12), form(16, 12)
    inputs = Product(None, product.columns)
    for fit in (fit_blr, fit_hierarchical):
        options: dict[str, Any] = {"block": (4, 12)} if fit is fit_blr else {"leaf": 4}
        aware = fit(weight, 0.5, gram=product, **options).factors
        blind = fit(weight, 0.5, gram=inputs, **options).factors
        assert aware.n_params <= weight.numel() // 2
        lost = [float(loss(weight - f.to_dense(), product)) for f in (aware, blind)]
        assert lost[0] < 0.95 * lost[1]


def test_outputs_that_count_alike_are_the_fit_to_inputs() -> None:
    weight, product = seeded(12, 10), form(12, 10)
    alike = Product(torch.eye(12, dtype=torch.float64), product.columns)
    got = fit_blr(weight, 0.6, block=(4, 5), gram=alike, tol=0.0, n_iter_max=300)
    want = fit_blr(weight, 0.6, block=(4, 5), gram=Product(None, product.columns), tol=0.0,
                   n_iter_max=300)  # fmt: skip
    # Blocks of one height are made at once there, and one after the other here.
    assert got.error == pytest.approx(want.error, rel=1e-3)
