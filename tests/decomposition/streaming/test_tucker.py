"""Online Tucker: nothing is lost where the ranks suffice, and a bound that holds at any time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf import OnlineTucker, TuckerFactors
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tests.draws import seeded
from tests.laws.refusals import not_dense


def planted(rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(rows, 6, 5), of ranks (3, 2, 2)."""
    factors = tuple(seeded(n, r, seed=n) for n, r in ((rows, 3), (6, 2), (5, 2)))
    return TuckerFactors(seeded(3, 2, 2), factors).to_dense().to(dtype)


def streamed(tensor: Tensor, sizes: list[int], **options: Any) -> OnlineTucker:
    stream = OnlineTucker(**options)
    for slab in tensor.split(sizes):
        stream.update(slab)
    return stream


@settings(max_examples=10, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_nothing_is_lost_where_the_ranks_suffice(sizes: list[int]) -> None:
    tensor = planted(sum(sizes))
    stream = streamed(tensor, sizes, rank=(3, 2, 2))
    assert stream.factors.rel_error(tensor) < 1e-12
    assert stream.bound < 1e-11 * float(tensor.norm())
    assert stream.n_rows == sum(sizes)
    for factor in stream.factors.factors:
        gram = factor.T @ factor
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=gram.dtype))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    rank=st.sampled_from([1, 2, (1, 3, 2), (4, 2, 5), (2, 6, 5)]),
    kind=st.sampled_from(["noise", "decay", "zero", "constant", "one slice again and again"]),
)
def test_the_bound_holds_at_any_time(sizes: list[int], rank: Any, kind: str) -> None:
    tensor = seeded(sum(sizes), 6, 5)
    if kind == "decay":
        tensor = tensor * 0.3 ** torch.arange(5, dtype=torch.float64)
    elif kind == "zero":
        tensor = 0 * tensor
    elif kind == "constant":
        tensor = torch.full_like(tensor, 2.0)
    elif kind == "one slice again and again":
        tensor = tensor[:1].expand_as(tensor)
    stream, seen = OnlineTucker(rank), 0
    for slab in tensor.split(sizes):
        stream.update(slab)
        seen += len(slab)
        off = float((tensor[:seen] - stream.factors.to_dense()).norm())
        assert off <= stream.bound * (1 + 1e-9) + 1e-11
        if seen == len(slab):  # one update is one truncation, and its error known
            assert off == pytest.approx(stream.bound, abs=1e-11)


def test_one_slab_loses_no_more_than_the_discarded_energies() -> None:
    tensor, ranks = seeded(9, 6, 5), (3, 2, 2)
    unfoldings = [tensor.movedim(k, 0).flatten(1) for k in range(3)]
    values = [torch.linalg.svdvals(u) for u in unfoldings]
    discarded = sum(float((v[r:] ** 2).sum()) for v, r in zip(values, ranks, strict=True))
    assert streamed(tensor, [9], rank=ranks).bound <= discarded**0.5


def test_an_error_is_kept_after_every_update() -> None:
    tensor = planted(40) + 0.05 * seeded(40, 6, 5, seed=9)
    stream, seen = OnlineTucker(error=0.2), 0
    for slab in tensor.split(9):
        stream.update(slab)
        seen += len(slab)
        assert stream.factors.rel_error(tensor[:seen]) <= stream.rel_error + 1e-12
        assert stream.rel_error <= 0.2
    assert stream.factors.n_params < tensor.numel() / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_shorter_dtypes_and_of_arrays(dtype: torch.dtype) -> None:
    tensor = planted(20, dtype)
    stream = streamed(tensor, [5] * 4, rank=(3, 2, 2))
    assert stream.factors.dtype == dtype
    # Rounding of the data, and of the four factors after.
    assert stream.factors.to(torch.float32).rel_error(tensor) < 8 * torch.finfo(dtype).eps
    arrays = OnlineTucker((3, 2, 2))
    for slab in np.split(tensor.double().numpy(), 4):
        arrays.update(slab)
    assert arrays.factors.dtype == torch.float64


def test_bad_slabs_are_told_and_change_nothing() -> None:
    stream = OnlineTucker((2, 2, 2))
    with pytest.raises(ArgumentError, match="no slab yet"):
        _ = stream.factors
    good = seeded(5, 4, 3, dtype=torch.float32)
    stream.update(good)
    before = stream.factors

    def refused(kind: Any, words: str, slab: Any) -> None:
        with pytest.raises(kind, match=words):
            stream.update(slab)
        assert stream.factors is before
        assert stream.n_rows == 5

    refused(ShapeError, r"slab has shape \(5, 4, 2\); it must be \(m, 4, 3\)", good[..., :2])
    refused(RankError, r"rank=\(2, 2, 2\) has 3 entries for the 2 modes", good[:, 0])
    refused(ArgumentError, "slab is torch.float64 on cpu, those before are", good.double())
    for value, words in not_dense(good).values():
        words = words.rpartition("sparse_coo; ")[2].rpartition("sparse_csr; ")[2]
        refused(ArgumentError, f"^slab .*{words}", value)
    for options, words in (
        ({"rank": 0}, "rank=0 must"),
        ({"rank": 1.5}, "rank=1.5 must"),
        ({"rank": (2, 0, 1)}, "entry 1, 0, must"),
        ({}, "give rank or error"),
        ({"rank": 2, "error": 0.1}, "give rank or error"),
        ({"error": 1.5}, "error=1.5"),
    ):
        with pytest.raises(ArgumentError, match=words):
            OnlineTucker(**options)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(RankError, match="above the size 4 of mode 1"):
        OnlineTucker((2, 9, 2)).update(good)
    with pytest.raises(ShapeError, match=r"slab has shape \(4,\)"):
        OnlineTucker(2).update(torch.ones(4, dtype=torch.float32, device="cpu"))
