"""Where the training of an adapter begins: the weight is what it was, and the term what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf.adapters import Start, initialize, milora, nora, nystrom, pissa, svfit
from tensorlrf.errors import ArgumentError, RankError, ShapeError

STARTS: dict[str, Callable[[Any, int], Start]] = {
    "pissa": pissa, "milora": milora, "svfit": svfit, "nystrom": nystrom,
}  # fmt: skip


def weight(m: int, n: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=draws, dtype=torch.float64, device="cpu")


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(sorted(STARTS)), m=st.integers(1, 8), n=st.integers(1, 8),
    share=st.floats(0, 1), seed=st.integers(0, 50), kind=st.sampled_from(["full", "zero", "thin"]),
)  # fmt: skip
def test_residual_and_term_are_the_weight(
    name: str, m: int, n: int, share: float, seed: int, kind: str
) -> None:
    given = weight(m, n, seed)
    given = {"full": given, "zero": 0 * given, "thin": given[:, :1] @ given[:1]}[kind]
    rank = max(1, round(share * min(m, n)))
    start = STARTS[name](given, rank)
    size = float(given.abs().max())
    assert float((start.residual + start.term.to_dense() - given).abs().max()) <= 1e-12 * size
    low = start.low_rank
    assert low.rank == rank
    assert float((low.to_dense() - start.term.to_dense()).abs().max()) <= 1e-10 * size
    assert set(start.trained) <= set(start.term.tensors())


def test_what_the_terms_are() -> None:
    given = weight(9, 6)
    values = torch.linalg.svdvals(given)
    # float64 throughout: 1e-12 is some thousand roundings of values of up to six.
    top = pissa(given, 2)
    assert torch.allclose(torch.linalg.svdvals(top.residual)[:4], values[2:], atol=1e-12)
    assert torch.allclose(top.low_rank.left.norm(dim=0), values[:2].sqrt())
    minor = milora(given, 2)
    assert torch.allclose(torch.linalg.svdvals(minor.residual)[:4], values[:4], atol=1e-12)
    fit = svfit(given, 3)
    assert torch.allclose(fit.term.tensors()["weights"], values[:3])
    assert torch.allclose(fit.term.to_dense(), pissa(given, 3).term.to_dense(), atol=1e-12)


def test_nystrom_is_exact_on_a_matrix_of_that_rank() -> None:
    given = weight(9, 3) @ weight(3, 7, 1)
    assert float(nystrom(given, 3).residual.abs().max()) < 1e-12 * float(given.abs().max())
    # and on the rows and columns that it takes, of any matrix
    start = nystrom(weight(6, 5), 2)
    exact = start.residual.abs() < 1e-12
    assert int(exact.all(1).sum()) == 2
    assert int(exact.all(0).sum()) == 2


def test_nested() -> None:
    given = weight(9, 6)
    nested = nora(given, 4, 2, random_state=0)
    assert float(nested.low_rank.to_dense().abs().max()) == 0.0
    assert nested.inner.n_params == 2 * 4 * 2
    left = weight(4, 2, 3)
    low = type(nested)(nested.outer, type(nested.inner)(left, nested.inner.right)).low_rank
    expected = nested.outer.left @ left @ nested.inner.right @ nested.outer.right
    assert torch.allclose(low.to_dense(), expected, atol=1e-12)
    assert low.rank == 2
    again = nora(given, 4, 2, random_state=0)
    assert torch.equal(again.inner.right, nested.inner.right)


@pytest.mark.parametrize("method", STARTS)
def test_a_model(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    kept = [p.detach().clone() for p in model.parameters()]
    adapter, rest = initialize(model, method, 2, targets=["0"])
    assert adapter.ranks == {"0": 2}
    x = torch.randn(3, 8, device="cpu")
    assert torch.allclose(adapter.merged_into(rest)(x), model(x), atol=1e-5)
    assert not torch.allclose(rest(x), model(x), atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))


def test_bad_input() -> None:
    with pytest.raises(RankError, match="rank=7 must be an int from 1 to 4"):
        pissa(weight(4, 6), 7)
    with pytest.raises(ShapeError, match="give a matrix"):
        milora(torch.ones(2, 2, 2, device="cpu"), 1)
    with pytest.raises(ShapeError, match="give a matrix"):
        svfit(torch.ones(3, device="cpu"), 1)
    with pytest.raises(ArgumentError, match="contains NaN"):
        nystrom(torch.full((2, 2), torch.nan, device="cpu"), 1)
    with pytest.raises(RankError, match="inner=5 must be an int from 1 to 3"):
        nora(weight(4, 6), 3, 5)
    with pytest.raises(ArgumentError, match="method='lora' is unknown; choose one of pissa"):
        initialize(nn.Sequential(nn.Linear(2, 2)), "lora", 1)
    with pytest.raises(ArgumentError, match=r"targets: '\*.q' matches no linear layer"):
        initialize(nn.Sequential(nn.Linear(2, 2)), "pissa", 1, targets="*.q")
