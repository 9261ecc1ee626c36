"""Online CP: follows a planted model, at the cost of a slab."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tensorlrf
from tensorlrf import CPFactors, OnlineCP
from tensorlrf.errors import ArgumentError, ShapeError
from tests.draws import seeded
from tests.laws.refusals import not_dense


def planted(rows: int = 40, noise: float = 0.0) -> torch.Tensor:
    factors = tuple(seeded(n, 2, seed=k) for k, n in enumerate((rows, 6, 5)))
    whole = CPFactors(torch.ones(2, dtype=torch.float64), factors).to_dense()
    return whole + noise * seeded(*whole.shape, seed=9)


def streamed(tensor: torch.Tensor, step: int = 10, **options: Any) -> OnlineCP:
    first, *others = tensor.split(step)
    stream = OnlineCP(tensorlrf.cp(first, 2, n_restarts=3, random_state=0), **options)
    for slab in others:
        stream.update(slab)
    return stream


def test_a_planted_model_is_followed_exactly() -> None:
    tensor = planted()
    stream = streamed(tensor)
    assert stream.factors.rel_error(tensor) < 1e-6
    assert stream.slab_error < 1e-6
    assert stream.n_rows == 40


def test_with_noise_it_is_near_the_fit_of_the_whole_and_a_seed_repeats() -> None:
    tensor = planted(noise=0.3)
    stream = streamed(tensor, n_iter=2)
    batch = tensorlrf.cp(tensor, 2, n_restarts=3, random_state=0).rel_error(tensor)
    assert batch <= stream.factors.rel_error(tensor) < 1.1 * batch
    norms = stream.factors.factors[1].norm(dim=0)
    torch.testing.assert_close(norms, torch.ones(2, dtype=torch.float64))


def test_any_order_slabs_of_one_row_and_zeros() -> None:
    matrix = seeded(9, 4)
    stream = OnlineCP(tensorlrf.cp(matrix[:5], 2))
    for row in matrix[5:]:
        stream.update(row[None])
    assert stream.factors.shape == (9, 4)
    whole = seeded(6, 3, 2, 4)
    four = OnlineCP(tensorlrf.cp(whole[:4], 2, random_state=0))
    four.update(0 * whole[4:].numpy())
    assert four.factors.to_dense()[4:].abs().max() < 1e-12
    assert four.slab_error == pytest.approx(0, abs=1e-12)


def test_it_goes_on_where_a_look_was_taken_and_factors_keep_the_dtype() -> None:
    tensor = planted(noise=0.1).float()
    first, *others = tensor.split(10)
    start = tensorlrf.cp(first, 2, random_state=0)
    plain, looked = OnlineCP(start), OnlineCP(start)
    for slab in others:
        plain.update(slab)
        looked.update(slab)
        assert looked.factors.dtype == torch.float32
    assert torch.equal(plain.factors.to_dense(), looked.factors.to_dense())


def test_bad_slabs_are_told_and_change_nothing() -> None:
    tensor = planted().float()
    stream = OnlineCP(tensorlrf.cp(tensor[:10], 2, random_state=0))
    before = stream.factors.to_dense()
    slab = tensor[10:20]

    def refused(kind: Any, words: str, value: Any) -> None:
        with pytest.raises(kind, match=words):
            stream.update(value)
        assert torch.equal(stream.factors.to_dense(), before)

    refused(ShapeError, r"slab has shape \(10, 6, 4\); it must be \(m, 6, 5\)", slab[..., :4])
    refused(
        ArgumentError, "slab is torch.float64 on cpu, the model is torch.float32", slab.double()
    )
    for value, words in not_dense(slab).values():
        words = words.rpartition("sparse_coo; ")[2].rpartition("sparse_csr; ")[2]
        refused((ArgumentError, ShapeError), f"^slab .*{words}", value)
    for init in (tensor, 3, None):
        with pytest.raises(ArgumentError, match=r"init is a .*; pass CPFactors"):
            OnlineCP(init)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ArgumentError, match="n_iter=0 must"):
        OnlineCP(tensorlrf.cp(slab, 2), n_iter=0)
    with pytest.raises(ArgumentError, match="init contains NaN"):
        OnlineCP(tensorlrf.cp(slab, 2).map(lambda t: t * torch.nan))
