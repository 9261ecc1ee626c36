"""CUR within the bounds of the papers, and layers on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tensorlrf
from tensorlrf.decomposition import cur, fit_cur, fit_svd
from tensorlrf.errors import ArgumentError, RankError, UnsupportedError
from tensorlrf.factors import Skeleton
from tests.decomposition.skeleton.test_interpolative import decaying, spectral
from tests.draws import seeded
from tests.metrics import moments

SAMPLINGS = ("pivots", "deim", "leverage", "cross")


@settings(max_examples=20, deadline=None, derandomize=True)
@given(m=st.integers(2, 14), n=st.integers(2, 14), seed=st.integers(0, 99), flat=st.booleans())
def test_deim_keeps_its_bound(m: int, n: int, seed: int, flat: bool) -> None:
    w = seeded(m, n, seed=seed)
    w = w if flat else w * torch.logspace(0, -3, n, dtype=w.dtype)
    left, values, right = torch.linalg.svd(w, full_matrices=False)
    for r in range(1, min(m, n)):
        f = cur(w, r, sampling="deim")
        assert f.row_indices is not None
        assert f.column_indices is not None
        off = sum(
            1 / float(torch.linalg.svdvals(basis[picked.long()])[-1])
            for basis, picked in ((left[:, :r], f.row_indices), (right[:r].T, f.column_indices))
        )
        assert spectral(w - f.to_dense()) <= off * float(values[r]) * (1 + 1e-6) + 1e-7


@settings(max_examples=20, deadline=None, derandomize=True)
@given(m=st.integers(1, 12), n=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_cross_reproduces_its_columns_and_rows(m: int, n: int, seed: int) -> None:
    w = seeded(m, n, seed=seed)
    values = torch.linalg.svdvals(w)
    for r in range(1, min(m, n) + 1):
        f = cur(w, r, sampling="cross")
        assert f.row_indices is not None
        assert f.column_indices is not None
        off = (w - f.to_dense()).abs()
        rows, columns = f.row_indices.long(), f.column_indices.long()
        small = 1e-9 * float(values[0] / values[r - 1])
        assert float(off[:, columns].max()) < small
        assert float(off[rows].max()) < small
        # No entry is off by much more than where the volume is largest of all.
        beyond = float(values[r]) if r < len(values) else 0.0
        assert float(off.max()) <= 4 * (r + 1) * beyond + small


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_columns_and_rows_are_those_of_the_matrix(sampling: str) -> None:
    w = seeded(12, 9, dtype=torch.float32)
    f = cur(w, 4, sampling=sampling, random_state=3)
    assert f.row_indices is not None
    assert f.column_indices is not None
    assert torch.equal(f.columns, w[:, f.column_indices.long()])
    assert f.rows is not None
    assert torch.equal(f.rows, w[f.row_indices.long()])
    assert f.n_params == 4 * (12 + 9 + 4 + 2)


@pytest.mark.parametrize("sampling", ["pivots", "deim", "leverage"])
def test_no_other_core_is_better(sampling: str) -> None:
    """Nor in a metric."""
    w, gram = seeded(12, 9), moments(9)
    for given_gram in (None, gram):
        f = cur(w, 4, sampling=sampling, gram=given_gram, random_state=0)
        metric = torch.eye(9, dtype=w.dtype) if given_gram is None else gram
        assert f.rows is not None
        residual = f.columns.T @ (w - f.to_dense()) @ metric @ f.rows.T  # the gradient
        assert float(residual.norm()) < 1e-4 * float((f.columns.T @ w @ metric @ f.rows.T).norm())


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_errors_follow_the_spectrum(sampling: str) -> None:
    w = decaying(60, 50, dtype=torch.float32)
    for r in (5, 20):
        error = fit_cur(w, r, sampling=sampling, random_state=0).error
        assert error < (8 if sampling in ("pivots", "deim") else 30) * fit_svd(w, r).error
    exact = seeded(20, 4) @ seeded(4, 15, seed=1)
    for r in (4, 9):
        assert cur(exact, r, sampling=sampling, random_state=0).rel_error(exact) < 1e-6


def test_rows_face_the_columns() -> None:
    """So that pivots lose no more than sqrt(2) times what the columns alone do, by much less than
    DEIM on the whole, and nearly as little as the columns with half as many rows again."""
    by_pivots, by_deim, lost = [], [], []
    for seed in range(6):
        left, right = (torch.linalg.qr(seeded(n, 60, seed=seed))[0] for n in (160, 60))
        w = left * torch.logspace(0, -3, 60, dtype=torch.float64) @ right.T
        for r in (6, 12):
            f, wider = cur(w, r), cur(w, (r, r + r // 2))
            basis = torch.linalg.qr(f.columns)[0]
            columns = float((w - basis @ (basis.T @ w)).norm() / w.norm())
            assert columns <= wider.rel_error(w) < f.rel_error(w) < 2**0.5 * columns
            assert wider.rank == r
            assert wider.n_params == r * 161 + (r + r // 2) * 61 + r * (r + r // 2)
            by_pivots.append(f.rel_error(w))
            by_deim.append(cur(w, r, sampling="deim").rel_error(w))
            lost.append(wider.rel_error(w) / columns)
    assert sum(by_pivots) < 0.98 * sum(by_deim)
    assert sum(lost) / len(lost) < 1.1


def test_other_numbers_of_rows() -> None:
    w = seeded(14, 9)
    gram = moments(9)
    for rank in ((3, 5), (5, 3), [4, 4], (2, 14)):
        for f in (cur(w, rank), cur(w, rank, gram=gram)):
            assert f.core is not None
            assert tuple(f.core.shape) == tuple(rank)
    for rank in ((10, 3), (3, 15)):
        with pytest.raises(RankError, match=r"is above the 9 columns and 14 rows"):
            cur(w, rank)
    with pytest.raises(RankError, match=r"rank=\(3, 4\).*which sampling='deim' has not"):
        cur(w, (3, 4), sampling="deim")
    layer = tensorlrf.nn.factorize(nn.Linear(9, 14), "cur", (3, 5))
    assert layer.factors.n_params == 3 * 15 + 5 * 10 + 15


def test_a_cross_has_no_metric() -> None:
    with pytest.raises(UnsupportedError, match="gram= does not go with sampling='cross'"):
        cur(seeded(6, 5), 2, sampling="cross", gram=moments(5))


X, IMAGE = seeded(5, 24, dtype=torch.float32), seeded(2, 6, 7, 7, dtype=torch.float32)
SEEN = seeded(400, 24, seed=1, dtype=torch.float32)
METHODS = {
    "interpolative": tensorlrf.Interpolative(),
    "columns": tensorlrf.Interpolative(axis="columns"),
    "cur": tensorlrf.CUR(),
}


@pytest.mark.parametrize("word", METHODS)
def test_models_are_compressed_saved_and_exported(word: str, tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 20))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draws) / p.shape[-1] ** 0.5)
    small, report = tensorlrf.compress(
        model, keep_params=0.6, method=METHODS[word], calibration=[SEEN], skip=[]
    )
    assert report.eligible.share <= 0.6
    kinds = [m.factors for m in small if hasattr(m, "factors")]
    assert kinds
    assert all(isinstance(f, Skeleton) for f in kinds)
    tensorlrf.save(small, tmp_path / "small.safetensors")
    again = tensorlrf.load(tmp_path / "small.safetensors", model)
    assert torch.equal(again(X), small(X))
    stock = tensorlrf.export(small)
    torch.testing.assert_close(stock(X), tensorlrf.densify(small)(X), rtol=1e-4, atol=1e-5)


def test_convolutions_but_those_with_groups() -> None:
    for word in ("interpolative", "cur"):
        conv = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        small = tensorlrf.nn.factorize(conv, word, 4)
        dense = tensorlrf.densify(small)
        torch.testing.assert_close(small(IMAGE), dense(IMAGE), rtol=1e-4, atol=1e-5)
        with pytest.raises(ArgumentError, match=r"Skeleton with indices.*use svd"):
            tensorlrf.nn.factorize(nn.Conv2d(6, 8, 3, groups=2), word, 2)


def test_layers_keep_rows_unless_columns_are_asked_for() -> None:
    layer = nn.Linear(12, 9)
    kept = tensorlrf.nn.factorize(layer, "interpolative", 3).factors
    assert isinstance(kept, Skeleton)
    assert kept.row_indices is not None
    columns = tensorlrf.nn.factorize(layer, "interpolative", 3, axis="columns").factors
    assert isinstance(columns, Skeleton)
    assert columns.column_indices is not None
    assert cur(layer.weight, 3).rank == 3
