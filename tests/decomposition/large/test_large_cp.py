"""CP by slabs: the iterates of the function for tensors in memory, whatever the slabs are."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlrf
from tensorlrf.decomposition import fit_cp
from tensorlrf.decomposition.large import _cp_sweep
from tensorlrf.decomposition.large._cp_sweep import add_contracted, contracted_rows
from tensorlrf.decomposition.linalg.multilinear._mttkrp import cut_modes
from tensorlrf.errors import ArgumentError, DegenerateWarning, RankError, ShapeError
from tensorlrf.factors import CPFactors
from tests.decomposition.large.planted import Sliced, npy, of_terms, slice_of
from tests.draws import seeded

LARGE = tensorlrf.large.fit_cp


def quietly(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Degenerate data are what some tests are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)
        return call(*args, **kwargs)


def distance(a: CPFactors, b: CPFactors) -> float:
    """The largest relative difference of tensors of both."""
    pairs = zip(a.tensors().values(), b.tensors().values(), strict=True)
    return max(float((u - v).abs().max() / v.abs().max()) for u, v in pairs)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 6), min_size=3, max_size=5).map(tuple),
    rank=st.integers(1, 5),
    data=st.data(),
)
def test_each_contraction_is_that_of_the_definition(
    shape: tuple[int, ...], rank: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(1, len(shape) - 1))
    stop = data.draw(st.integers(start + 1, len(shape)))
    piece = seeded(*shape)
    columns = [seeded(n, rank, seed=k) for k, n in enumerate(shape)]
    letters = "abcde"[: len(shape)]

    def einsum(kept: str) -> torch.Tensor:
        others = [k for k, letter in enumerate(letters) if letter not in kept]
        terms = ",".join([letters, *(f"{letters[k]}z" for k in others)])
        return torch.einsum(f"{terms}->{kept}z", piece, *(columns[k] for k in others))

    def close(a: torch.Tensor, b: torch.Tensor) -> None:
        # Sums of at most 6^5 products of normal numbers.
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)

    close(contracted_rows(piece, columns), einsum(letters[0]))
    partial = seeded(math.prod(shape[start:stop]), rank, seed=9)
    wanted = partial + einsum(letters[start:stop]).reshape(-1, rank)
    add_contracted(partial, piece, columns, (start, stop))
    close(partial, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("order", [3, 4])
def test_iterates_are_those_in_memory(dtype: torch.dtype, order: int, tmp_path: Path) -> None:
    tensor = of_terms((13, 9, 7, 6)[:order], 4, dtype=dtype)
    # In memory the inner modes go first, then the outer ones: from the front, for this shape.
    assert cut_modes(tensor.shape).inner[:1] == (0,)
    options: dict[str, Any] = {"random_state": 3, "n_iter_max": 12, "tol": 0.0}
    known = fit_cp(tensor, 3, **options)
    rounding = 2e3 * torch.finfo(dtype).eps  # twelve sweeps of systems of a condition near 100
    for source in (npy(tensor, tmp_path), slice_of(tensor, tmp_path), Sliced(tensor)):
        fit = LARGE(source, 3, **options)
        assert fit.error == pytest.approx(known.error, rel=rounding)
        assert distance(fit.factors, known.factors) < rounding
        assert fit.passes == 1 + 12 + 1  # the look, a pass a sweep, the residual
        assert fit.bytes_sent == 0


@pytest.mark.parametrize("along", [1, 2])
def test_along_any_mode_it_goes_as_with_that_mode_in_front(along: int) -> None:
    tensor = of_terms((8, 11, 9), 4)
    start = CPFactors(
        torch.ones(3, dtype=torch.float64, device="cpu"),
        tuple(seeded(n, 3, seed=k) for k, n in enumerate(tensor.shape)),
    )
    axes = [along, *(k for k in range(3) if k != along)]
    turned = CPFactors(start.weights, tuple(start.factors[k] for k in axes))
    fit = LARGE(tensor, 3, init=start, n_iter_max=10, tol=0.0, along=along)
    known = fit_cp(tensor.permute(axes).contiguous(), 3, init=turned, n_iter_max=10, tol=0.0)
    back = CPFactors(
        known.factors.weights, tuple(known.factors.factors[axes.index(k)] for k in range(3))
    )
    assert distance(fit.factors, back) < 1e-11
    assert fit.passes == 1 + 1 + 10 + 1  # one more for the scale of the start


def test_fortran_order_is_read_as_it_lies(tmp_path: Path) -> None:
    tensor = of_terms((8, 11, 9), 4)
    options: dict[str, Any] = {"random_state": 3, "n_iter_max": 10, "tol": 0.0}
    fit = LARGE(npy(tensor, tmp_path, fortran=True), 3, **options)
    turned = torch.from_numpy(np.asfortranarray(tensor.numpy()))
    assert distance(fit.factors, fit_cp(turned, 3, **options).factors) < 1e-11


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    shape=st.lists(st.integers(1, 7), min_size=3, max_size=4).map(tuple),
    rank=st.integers(1, 4),
    data=st.data(),
)
def test_neither_slabs_nor_groups_change_the_result(
    shape: tuple[int, ...], rank: int, data: st.DataObject
) -> None:
    tensor = seeded(*shape)
    rows = data.draw(st.integers(1, shape[0]))
    groups = data.draw(st.sampled_from([
        tuple((1 + a, 1 + b) for a, b in _cp_sweep.parted(shape[1:], count))
        for count in range(1, len(shape))
    ]))  # fmt: skip
    passes = _cp_sweep.Passes(groups, rows, rows)
    options: dict[str, Any] = {
        "random_state": 1, "n_iter_max": 4, "tol": 0.0, "along": 0,
    }  # fmt: skip
    known = quietly(LARGE, tensor, rank, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cp_sweep.Passes, "within", lambda *_: passes)
        fit = quietly(LARGE, tensor, rank, **options)
    # Other sums; the directions of what has no weight are another matter.
    dense = known.factors.to_dense()
    torch.testing.assert_close(fit.factors.to_dense(), dense, rtol=0, atol=1e-8)
    assert fit.passes == 1 + 4 * len(groups) + 1


def test_a_small_limit_takes_a_pass_for_each_other_mode() -> None:
    tensor = of_terms((40, 50, 60), 3, dtype=torch.float32)
    options: dict[str, Any] = {"random_state": 3, "n_iter_max": 10, "tol": 0.0}
    one = LARGE(tensor, 300, memory_limit="100MB", **options)
    with pytest.raises(ArgumentError, match="give memory_limit=") as refused:
        LARGE(tensor, 300, memory_limit="32MiB", **options)
    least = int(str(refused.value).split("give memory_limit=")[1].split()[0])
    two = LARGE(tensor, 300, memory_limit=least, **options)
    assert (one.passes, two.passes) == (12, 22)
    assert two.error == pytest.approx(one.error, rel=1e-2)  # a model that has too many terms


def test_errors_at_checkpoints_are_true_and_fall() -> None:
    tensor = of_terms((12, 10, 8), 4, noise=0.3)
    seen: list[float] = []

    def callback(factors: CPFactors, error: float) -> None:
        seen.append(error)
        assert error == pytest.approx(factors.rel_error(tensor), rel=1e-9)

    fit = LARGE(tensor, 3, random_state=0, n_iter_max=60, tol=1e-12, callback=callback)
    assert list(fit.errors) == seen
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(seen))
    assert fit.error == pytest.approx(fit.factors.rel_error(tensor), rel=1e-9)
    stopped = LARGE(tensor, 3, random_state=0, callback=lambda f, e: True)
    assert len(stopped.errors) == 1
    assert not stopped.converged


@pytest.mark.parametrize("init", ["random", "svd"])
def test_an_exact_tensor_is_found(init: str) -> None:
    tensor = of_terms((12, 10, 8), 3, noise=0.0, dtype=torch.float32)
    fit = LARGE(tensor, 3, init=init, random_state=0, n_restarts=2)
    assert fit.error < 1e-5
    assert fit.converged


def test_starts_side_by_side_cost_the_passes_of_one() -> None:
    tensor = of_terms((12, 10, 8), 4)
    options: dict[str, Any] = {"random_state": 0, "n_iter_max": 10, "tol": 0.0}
    fit = LARGE(tensor, 3, n_restarts=4, **options)
    assert fit.passes == LARGE(tensor, 3, **options).passes
    assert fit.error == pytest.approx(fit_cp(tensor, 3, n_restarts=4, **options).error, rel=1e-9)


@pytest.mark.parametrize("rank", [2, 6, 9])
def test_a_matrix_begins_at_its_svd(rank: int) -> None:
    tensor = of_terms((9, 6), 6, noise=0.0)
    fit = quietly(LARGE, tensor, rank, random_state=0)
    best = tensorlrf.svd(tensor, min(rank, 6)).rel_error(tensor)
    assert fit.error == pytest.approx(best, abs=1e-12)
    assert fit.factors.rank == rank


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_the_error_after_the_cast(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = of_terms((12, 10, 8), 3, dtype=dtype)
    fit = LARGE(slice_of(tensor, tmp_path), 3, random_state=0, n_iter_max=20)
    assert fit.factors.dtype == dtype
    wide = fit.factors.to(torch.float32)
    assert fit.error == pytest.approx(wide.rel_error(tensor.float()), rel=1e-5)
    assert fit.error >= fit.errors[-2] * (1 - 1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(scale: float) -> None:
    tensor = of_terms((12, 10, 8), 3)
    options: dict[str, Any] = {"random_state": 0, "n_iter_max": 10}
    fit = LARGE((tensor * scale).float(), 3, **options)
    known = LARGE(tensor.float(), 3, **options)
    assert fit.error == pytest.approx(known.error, rel=1e-4)  # rounding of the scale, ten sweeps
    assert math.isfinite(fit.factors.rel_error((tensor * scale).float()))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(5, 4, 3, dtype=torch.float32, device="cpu"),
        torch.ones(5, 4, 3, dtype=torch.float32, device="cpu"),
        torch.ones(1, 1, 1, dtype=torch.float64, device="cpu"),
        seeded(1, 6, 5),
        seeded(6, 1, 5),
        seeded(1, 7),
        of_terms((7, 6, 5), 1, noise=0.0),
    ],
    ids=["zero", "constant", "one entry", "first mode one", "middle mode one", "row", "rank one"],
)
@pytest.mark.parametrize("rank", [1, 3])
def test_degenerate_tensors(tensor: torch.Tensor, rank: int) -> None:
    fit = quietly(LARGE, tensor, rank, random_state=0)
    assert all(bool(torch.isfinite(t).all()) for t in fit.factors.tensors().values())
    known = quietly(fit_cp, tensor, rank, random_state=0)
    assert fit.error <= max(known.error * 1.05, 1e-5)  # another order of modes, another minimum


def test_arguments_are_refused_as_in_memory() -> None:
    tensor = seeded(5, 4, 3)
    for wrong, error in (
        ({"rank": 0}, RankError),
        ({"rank": 2, "n_iter_max": 0}, ArgumentError),
        ({"rank": 2, "tol": 2.0}, ArgumentError),
        ({"rank": 2, "init": "best"}, ArgumentError),
        ({"rank": 2, "init": (None, [seeded(5, 2), seeded(4, 2)])}, ShapeError),
        ({"rank": 2, "n_restarts": 0}, ArgumentError),
        ({"rank": 2, "random_state": "x"}, ArgumentError),
        ({"rank": None}, ArgumentError),
    ):
        with pytest.raises(error):
            LARGE(tensor, **wrong)


def test_a_seed_repeats_and_the_global_generator_is_left_alone() -> None:
    tensor = of_terms((8, 7, 6), 3)
    before = torch.get_rng_state()
    a = LARGE(tensor, 3, random_state=5, n_iter_max=5).factors
    b = LARGE(tensor, 3, random_state=5, n_iter_max=5).factors
    assert torch.equal(torch.get_rng_state(), before)
    assert distance(a, b) == 0.0
