"""cp of sparse tensors: what it finds, that it sees nonzeros alone, and what it refuses."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

import tensorlrf
from tensorlrf import CPFactors, SparseTensor
from tensorlrf.decomposition import fit_cp
from tensorlrf.decomposition.methods import names, registered
from tensorlrf.errors import ArgumentError, DegenerateWarning, ShapeError, UnsupportedError
from tests.decomposition.sparse.drawn import huge, noisy, planted
from tests.draws import seeded

FLOOR = 3e-8
"""Below which errors of sparse tensors are not told."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 10, 9), (6, 5, 4, 5)], ids=str)
def test_a_planted_model_is_found(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = planted(*shape, rank=2).to(dtype)
    fit = fit_cp(SparseTensor.of(tensor), 2, n_restarts=3, random_state=0)
    eps = torch.finfo(dtype).eps
    assert fit.error <= max(8 * eps, FLOOR)
    assert fit.factors.dtype == dtype
    true = fit.factors.rel_error(tensor)
    assert abs(fit.error - true) < FLOOR + 8 * eps * (dtype != torch.float64)


def test_it_ends_where_the_dense_one_does() -> None:
    tensor = noisy(9, 8, 7)
    start = tuple(seeded(n, 2, seed=n) for n in tensor.shape)
    options: dict[str, Any] = {"init": (None, start), "tol": 1e-12, "n_iter_max": 300}
    sparse = fit_cp(SparseTensor.of(tensor), 2, **options)
    dense = fit_cp(tensor, 2, **options)
    assert sparse.error == pytest.approx(dense.error, rel=1e-7)
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(sparse.errors))
    assert sparse.error == pytest.approx(sparse.factors.rel_error(tensor), rel=1e-9)


def test_the_same_seed_gives_the_same_bits_and_svd_is_a_start() -> None:
    s = SparseTensor.of(noisy(9, 8, 7))
    one, other = (fit_cp(s, 3, init="svd", random_state=1, n_iter_max=20) for _ in range(2))
    for a, b in zip(one.factors.tensors().values(), other.factors.tensors().values(), strict=True):
        assert torch.equal(a, b)


def test_sizes_that_no_memory_holds() -> None:
    f = tensorlrf.cp(huge(), rank=2, random_state=0, n_iter_max=5)
    assert f.shape == (10**6,) * 3
    assert bool(f.factors[0].any(1).sum() <= 40)


def test_rows_without_nonzeros_are_zero_and_kinds_of_sparse_tensors_are_one() -> None:
    tensor = noisy(6, 5, 4)
    tensor[:, 2] = 0
    s = SparseTensor.of(tensor)
    f = fit_cp(s, 2, random_state=0, n_iter_max=7)
    assert not f.factors.factors[1][2].any()
    again = fit_cp(tensor.to_sparse(), 2, random_state=0, n_iter_max=7)
    assert again.errors == f.errors
    cube = scipy.sparse.coo_array(tensor.numpy())
    assert fit_cp(cube, 2, random_state=0, n_iter_max=7).errors == f.errors


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_of_a_matrix_it_is_the_svd(rank: int) -> None:
    matrix = noisy(8, 11, rank=3)
    fit = fit_cp(SparseTensor.of(matrix), rank, random_state=0)
    left = torch.linalg.svdvals(matrix)[rank:].norm() / matrix.norm()
    assert fit.error == pytest.approx(float(left), rel=1e-6, abs=FLOOR)


def test_a_fixed_mode_stays_as_it_is_also_where_nothing_is() -> None:
    tensor = noisy(6, 5, 4)
    tensor[2] = 0
    start = CPFactors(
        torch.ones(2, dtype=torch.float64), tuple(seeded(n, 2, seed=n) for n in tensor.shape)
    )
    options: dict[str, Any] = {"init": start, "fixed_modes": (0,), "tol": 1e-12, "n_iter_max": 300}
    f = fit_cp(SparseTensor.of(tensor), 2, **options)
    assert torch.equal(f.factors.factors[0], start.factors[0])
    assert f.error == pytest.approx(fit_cp(tensor, 2, **options).error, rel=1e-7)


def test_a_callback_sees_factors_and_stops() -> None:
    s = SparseTensor.of(noisy(6, 5, 4))
    seen: list[tuple[CPFactors, float]] = []

    def stop(f: CPFactors, error: float) -> bool:
        seen.append((f, error))
        return True

    fit = fit_cp(s, 2, random_state=0, callback=stop)
    ((f, error),) = seen
    assert f.shape == s.shape
    assert error == fit.error
    assert fit.reason == "the callback asked to stop"


def test_a_tensor_of_nothing() -> None:
    none = SparseTensor.from_coordinates([[], [], []], torch.zeros(0).double(), (5, 4, 3))
    for init in ("random", "svd"):
        with pytest.warns(DegenerateWarning):
            fit = fit_cp(none, 2, init=init, random_state=0)
        assert fit.error == 0
        assert not fit.factors.to_dense().any()
    stored = SparseTensor.from_coordinates([[1], [2], [0]], torch.zeros(1).double(), (5, 4, 3))
    with pytest.warns(DegenerateWarning):
        assert fit_cp(stored, 1, random_state=0).error == 0


MEASURED = """
import resource, torch
from tensorlrf import SparseTensor, cp, tucker
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nnz = 2 * 10**5
g = torch.Generator("cpu").manual_seed(0)
places = torch.randint(2000, (3, nnz), generator=g, dtype=torch.int32)
s = SparseTensor.from_coordinates(places, torch.ones(nnz), (2000,) * 3, duplicates="sum")
small = SparseTensor.from_coordinates(places[:, :99], s.values[:99], (2000,) * 3)
for call in (cp, tucker):
    call(small, 4, n_iter_max=1, random_state=0)
    before = peak()
    call(s, 4, n_iter_max=2, random_state=0)
    print((peak() - before) / nnz * 1024)
"""


@pytest.mark.slow
def test_memory_is_linear_in_the_nonzeros() -> None:
    """In bytes for each: sorted copies of cp take 36; of tucker 48, unfoldings with a column for
    each nonzero some 100, and a block of 14 such columns and what comes of it 112 each."""
    command = [sys.executable, "-W", "ignore", "-c", MEASURED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    of_cp, of_tucker = map(float, done.stdout.split())
    assert of_cp < 150
    assert of_tucker < 800


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"solver": "cprand"}, {"solver": "leverage"}, {"n_samples": 50}, {"gram": torch.eye(20)},
        {"differentiable": True}, {"rank": None, "error": 0.1},
    ],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_options_that_are_not_served_are_named(option: dict[str, Any]) -> None:
    s, name = SparseTensor.of(noisy(6, 5, 4)), list(option)[-1]
    with pytest.raises(UnsupportedError, match=rf"cp of a sparse tensor does not serve {name}=.*"):
        fit_cp(s, **{"rank": 2, **option})


@pytest.mark.parametrize("rank", [0.5, "same", "auto"])
def test_ranks_are_counts(rank: Any) -> None:
    with pytest.raises(UnsupportedError, match=rf"rank={rank!r} counts parameters of a dense"):
        tensorlrf.cp(SparseTensor.of(noisy(6, 5, 4)), rank)


def test_bad_tensors_are_named() -> None:
    s = SparseTensor.of(noisy(6, 5, 4))
    values = s.values.clone()
    values[3] = math.nan
    values[5] = math.inf
    where = tuple(s.coordinates[:, 3].tolist())
    bad = SparseTensor(values, s.coordinates, s.shape)
    for fit in (tensorlrf.cp, tensorlrf.tucker, tensorlrf.svd):
        with pytest.raises(ArgumentError, match=re.escape(f"tensor contains nan at {where}")):
            fit(bad, 2)
        with pytest.raises(ArgumentError, match=r"values has dtype torch\.int64"):
            fit(torch.eye(4, dtype=torch.int64, device="cpu").to_sparse(), 2)
        with pytest.raises(ArgumentError, match="rank=0"):
            fit(s, 0)
        with pytest.raises(ArgumentError, match="give rank or error"):
            fit(s, None)
    with pytest.raises(ShapeError, match=r"shape \(3,\); at least 2 modes"):
        tensorlrf.cp(SparseTensor.of(np.ones(3)), 1)
    twice = torch.tensor([[0, 0], [1, 1], [2, 2]], dtype=torch.int64, device="cpu")
    coo = torch.sparse_coo_tensor(twice, seeded(2), (3, 3, 3), check_invariants=True)
    with pytest.raises(ArgumentError, match=r"\(0, 1, 2\) twice"):
        tensorlrf.cp(coo, 1)


SERVED = ("cp", "tucker", "svd", "generalized_cp", "cp_apr")


@pytest.mark.parametrize("name", [n for n in names("tensor") if n not in SERVED])
def test_all_others_say_what_takes_it(name: str) -> None:
    function = registered(name).function
    for sparse in (SparseTensor.of(noisy(6, 6)), noisy(6, 6).to_sparse()):
        with pytest.raises(ArgumentError, match=r"is sparse, which cp.*pass \.to_dense\(\)"):
            function(sparse, 2)
