"""Second moments in less room than a matrix do what the matrix does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf import decomposition
from tensorlrf.decomposition.configs import SVD
from tensorlrf.decomposition.linalg.compact import (
    BlockDiagonal,
    Compact,
    Drawn,
    LowRankPlusDiagonal,
    about_mean,
    dense,
    mixed,
    squared,
)
from tensorlrf.decomposition.second_moments import SecondMoments
from tensorlrf.decomposition.shrinkage import (
    is_spanned,
    least_amount,
    ledoit_wolf,
    mean_eigenvalue,
    shrunk,
)
from tests.decomposition.every import BY_SHARE, IN_METRIC, PLAIN, matrix, rank_of
from tests.draws import seeded

sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@st.composite
def compacts(draw: st.DrawFn) -> Compact:
    seed, widths = draw(st.integers(0, 99)), draw(sizes)
    kind = draw(st.sampled_from((BlockDiagonal, LowRankPlusDiagonal, Drawn)))
    if kind is Drawn:
        own = seeded(sum(widths), sum(widths) + 2, seed=seed)
        return Drawn(own @ own.T, draw(st.floats(0.1, 1)), draw(st.floats(0, 2)))
    if kind is BlockDiagonal:
        parts = [seeded(b, b + 2, seed=seed + k) for k, b in enumerate(widths)]
        return BlockDiagonal(tuple(part @ part.T for part in parts))
    n, l = sum(widths), draw(st.integers(0, 6))
    return LowRankPlusDiagonal(seeded(l, n, seed=seed), seeded(n, seed=seed + 1).square(), 0.5)


def near(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


@given(compacts(), st.integers(1, 4), st.floats(0.01, 10))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_all_that_is_asked_of_them_is_what_the_matrix_gives(
    gram: Compact, m: int, factor: float
) -> None:
    whole, n = gram.dense(), len(gram)
    d = seeded(m, n, seed=3)
    assert torch.equal(dense(gram), whole)
    assert near(d @ gram, d @ whole)
    assert near(d[0] @ gram, d[0] @ whole)
    assert near(gram.diagonal(), whole.diagonal())
    assert squared(gram) == pytest.approx(squared(whole))
    assert near(gram.times(factor).dense(), factor * whole)
    ridged = gram.plus(factor)
    assert near(ridged.dense(), whole + factor * torch.eye(n, dtype=whole.dtype))
    assert near(ridged.solve(d), torch.linalg.solve(ridged.dense(), d.T).T)
    other = gram.times(2.0).plus(factor)
    for one in (gram, whole):
        got = dense(mixed(one, other, 0.3))
        assert near(got, 0.3 * whole + 0.7 * other.dense())
    assert near(whole, gram.dense())  # which nothing of this has changed
    least = float(torch.linalg.eigvalsh(whole)[0])
    assert not gram.is_definite(-least - 1e-6 * float(whole.diagonal().max()) - 1e-12)


@given(compacts(), st.floats(0, 1))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_they_are_shrunk_as_the_matrix_is(gram: Compact, amount: float) -> None:
    whole = gram.dense()
    assert mean_eigenvalue(gram) == pytest.approx(mean_eigenvalue(whole))
    assert near(dense(shrunk(gram, amount)), shrunk(whole, amount))
    warranted = ledoit_wolf(gram, 3 * squared(whole), 50)
    assert warranted == pytest.approx(ledoit_wolf(whole, 3 * squared(whole), 50))
    assert is_spanned(shrunk(gram, least_amount(gram)))


@given(st.integers(0, 99), sizes)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_blocks_about_a_mean_are_the_blocks_of_the_matrix_about_it(
    seed: int, widths: list[int]
) -> None:
    n = sum(widths)
    x = seeded(n, 2 * n + 3, seed=seed) + 1
    mu, whole = x.mean(1), x @ x.T / x.shape[1]
    ends = torch.tensor(widths).cumsum(0).tolist()
    parts = [slice(end - b, end) for end, b in zip(ends, widths, strict=True)]
    gram = BlockDiagonal(tuple(whole[part, part] for part in parts))
    centred = about_mean(whole, mu, 1e-7)
    assert near(gram.about(mu, 1e-7).dense(), torch.block_diag(*(centred[p, p] for p in parts)))


@given(st.integers(0, 99), st.integers(2, 12), st.integers(0, 6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_sketch_about_a_mean_is_off_by_what_it_says(seed: int, n: int, l: int) -> None:
    x = seeded(n, 3 * n, seed=seed) * torch.logspace(0, -2, n).double()[:, None] + 1
    x[0] = 2.0  # does not vary
    mu, whole = x.mean(1), x @ x.T / x.shape[1]
    values, vectors = torch.linalg.eigh(whole)
    rows = (vectors[:, n - min(l, n) :] * values[n - min(l, n) :].sqrt()).T
    left = whole - rows.T @ rows
    off = float(torch.linalg.eigvalsh(left)[-1])
    gram = LowRankPlusDiagonal(rows, left.diagonal().clamp(min=0), off).about(mu, 1e-7)
    error = gram.dense() - about_mean(whole, mu, 1e-7)
    assert float(torch.linalg.matrix_norm(error, 2)) <= gram.off + 1e-9
    assert not gram.diagonal()[0]
    assert float(torch.linalg.eigvalsh(gram.dense())[0]) > -1e-9


def of_inputs(n: int) -> list[Compact]:
    rows = seeded(4, n, seed=5)
    blocks = [seeded(b, 30, seed=b) for b in (n // 2, n - n // 2)]
    return [
        LowRankPlusDiagonal(rows, 0.1 + seeded(n, seed=6).square()),
        BlockDiagonal(tuple(block @ block.T / 30 for block in blocks)),
    ]


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("name", sorted({n.removesuffix(" in a metric") for n in IN_METRIC}))
def test_every_method_fits_in_them_as_in_the_matrix(name: str, kind: int) -> None:
    gram, weight = of_inputs(12)[kind], matrix()
    moments = [SecondMoments.known(one) for one in (gram, gram.dense())]
    assert moments[0].shrinkage == moments[1].shrinkage
    found = [PLAIN[name](weight, rank_of(name), gram=one).to_dense() for one in moments]
    assert name not in BY_SHARE or rank_of(name) < 1
    assert torch.allclose(*found, atol=1e-4 * float(weight.norm()))


@pytest.mark.parametrize("shape", [(5, 40), (40, 24)])
@pytest.mark.parametrize("metric", ["full", "diagonal"])
def test_an_svd_config_fits_in_them_as_in_the_matrix(shape: tuple[int, int], metric: str) -> None:
    weight = seeded(*shape, dtype=torch.float32)
    for gram in of_inputs(shape[1]):
        found = []
        for one in (gram, gram.dense()):
            config = SVD(rank=4, metric=metric)
            moments = SecondMoments.known(one)
            found.append(config.decompose(weight, config.gram_of(moments, weight), 0).to_dense())
        assert torch.allclose(*found, atol=1e-5 * float(weight.norm()))


def test_a_wide_weight_needs_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(_: Compact) -> Tensor:
        raise AssertionError("a matrix of all second moments was made")

    for gram in of_inputs(64):
        monkeypatch.setattr(type(gram), "dense", made)
        moments, weight = SecondMoments.known(gram), seeded(6, 64, dtype=torch.float32)
        given_outputs = SVD(rank=2).gram_of(moments, weight)
        for one in (moments, given_outputs):
            assert decomposition.svd(weight, 2, gram=one).rank == 2
