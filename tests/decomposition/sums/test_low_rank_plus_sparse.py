"""Low rank and sparse: what was made so is found, and worth its bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import tensorlrf
from tensorlrf.decomposition import fit_low_rank_plus_sparse, fit_svd
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import LowRank, SparseTensor
from tests.draws import generator, seeded
from tests.metrics import output_error, second_moments


def planted(noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """(the low-rank part, the whole)."""
    low = seeded(40, 3) @ seeded(3, 32, seed=1)
    at = torch.randperm(40 * 32, generator=generator(2))[:64]
    sparse = torch.zeros(40 * 32, dtype=torch.float64)
    sparse[at] = 8 * seeded(64, seed=3)
    return low, low + sparse.view(40, 32) + noise * seeded(40, 32, seed=4)


def test_finds_what_was_planted() -> None:
    low, w = planted()
    fit = fit_low_rank_plus_sparse(w, 3, sparsity=0.95, n_iter_max=200, tol=0.0)
    assert all(b <= a for a, b in pairwise(fit.errors[:-1]))
    assert fit.error < 1e-5
    found, entries = fit.factors.parts
    assert isinstance(found, LowRank)
    assert isinstance(entries, SparseTensor)
    assert found.rel_error(low) < 1e-5
    assert entries.nnz == 64


def test_beats_low_rank_at_equal_bytes_on_data_made_so() -> None:
    _, w = planted(noise=0.05)
    w = w.to(torch.float32)
    both = fit_low_rank_plus_sparse(w, 3)
    alone = next(
        f for r in range(32, 0, -1) if (f := fit_svd(w, r)).factors.n_bytes <= both.factors.n_bytes
    )
    assert both.error < 0.5 * alone.error


def test_serves_the_outputs_of_inputs() -> None:
    _, w = planted(noise=0.3)
    gram = second_moments(seeded(32, 200, seed=5) * torch.linspace(0.1, 3, 32).double()[:, None])
    aware, plain = (fit_low_rank_plus_sparse(w, 2, **k) for k in ({"gram": gram}, {}))
    assert aware.error < 0.9 * output_error(w, plain.factors, gram)


@pytest.mark.parametrize("pattern", ["top", "2:4", "random"])
def test_patterns_keep_as_many_entries_as_they_say(pattern: str) -> None:
    _, w = planted(noise=0.3)
    f = tensorlrf.low_rank_plus_sparse(w, 2, pattern=pattern, random_state=0, n_iter_max=2)
    entries = f.parts[1]
    assert isinstance(entries, SparseTensor)
    mask = torch.zeros(40, 32, dtype=torch.int64)
    mask[tuple(entries.coordinates.long())] = 1
    assert int(mask.sum()) == entries.nnz == (640 if pattern == "2:4" else 64)
    if pattern == "2:4":
        assert bool((mask.view(40, 8, 4).sum(-1) == 2).all())
    again = tensorlrf.low_rank_plus_sparse(w, 3, pattern=pattern, random_state=0, n_iter_max=2)
    same = torch.equal(again.parts[1].tensors()["coordinates"], entries.coordinates)
    assert same == (pattern == "random")  # whatever is fitted there


def test_a_kernel_keeps_its_shape() -> None:
    kernel = seeded(6, 4, 3, 3)
    f = tensorlrf.low_rank_plus_sparse(kernel, 2, sparsity=0.9, n_iter_max=2)
    assert f.shape == (6, 4, 3, 3)
    rows = f.parts[1].to_dense().flatten(1)
    flat = tensorlrf.low_rank_plus_sparse(kernel.flatten(1), 2, sparsity=0.9, n_iter_max=2)
    assert torch.equal(rows, flat.parts[1].to_dense())


def test_refuses_by_name() -> None:
    _, w = planted()
    for sparsity in (0.0, 1.0, -0.1, 1.5, True, "much"):
        with pytest.raises(ArgumentError, match=r"sparsity=.* must lie in \(0, 1\)"):
            fit_low_rank_plus_sparse(w, 2, sparsity=sparsity)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"pattern='3:4'.* choose one of top, 2:4, random"):
        fit_low_rank_plus_sparse(w, 2, pattern="3:4")
    with pytest.raises(ArgumentError, match=r"sparsity=0\.5 does not go with pattern='2:4'"):
        fit_low_rank_plus_sparse(w, 2, sparsity=0.5, pattern="2:4")
    with pytest.raises(ArgumentError, match="inputs in fours, and the matrix 40 x 30 has 30"):
        fit_low_rank_plus_sparse(w[:, :30], 2, pattern="2:4")
    with pytest.raises(RankError, match=r"rank=0\.1 is a share below that of the sparse part"):
        fit_low_rank_plus_sparse(w, 0.1)
