"""Sweeps of small tensors by numpy are those of torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import fit_cp
from tensorlrf.decomposition.cp._als import sweeps_of
from tensorlrf.decomposition.cp._small import NumpySweeps, is_small
from tensorlrf.decomposition.cp._state import CPState, make_state
from tensorlrf.decomposition.cp._sweep import RENEWED, TorchSweeps
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor

SHAPES = ((9, 8), (7, 6, 5), (4, 30, 4), (5, 4, 3, 4), (1, 6, 1), (3, 2, 3, 2, 3))


def problem(
    shape: tuple[int, ...], rank: int, dtype: torch.dtype, seed: int
) -> tuple[CutTensor, CPState]:
    rng = torch.Generator().manual_seed(seed)
    factors = [torch.randn(n, 1, rank, generator=rng, dtype=dtype) for n in shape]
    weights = torch.rand(1, rank, generator=rng, dtype=torch.float64)
    tensor = torch.randn(shape, generator=rng, dtype=dtype)
    return CutTensor.of(tensor), make_state(factors, weights)


def dense(state: CPState) -> Tensor:
    letters = "abcde"[: len(state.factors)]
    spec = ",".join(letter + "r" for letter in letters)
    parts = [u[:, 0].double() for u in state.factors]
    return torch.einsum(f"{spec},r->{letters}", *parts, state.weights[0])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    rank=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    sweeps=st.integers(1, 2 * RENEWED + 1),
    fixed=st.sets(st.integers(0, 4), max_size=2),
    empty=st.none() | st.integers(0, 4),
    seed=st.integers(0, 50),
    unit=st.sampled_from([0.25, 1.0, 16.0]),
)
def test_numpy_sweeps_as_torch_does(
    shape: tuple[int, ...],
    rank: int,
    dtype: torch.dtype,
    sweeps: int,
    fixed: set[int],
    empty: int | None,
    seed: int,
    unit: float,
) -> None:
    """From one start, with fixed modes and with a column of zeros in one of them."""
    data, state = problem(shape, rank, dtype, seed)
    kept = frozenset(k for k in fixed if k < len(shape) - 1)
    if empty is not None:
        state.factors[empty % len(shape)][:, 0, 0] = 0
        state = make_state([*state.factors], state.weights)
    ridge = 1e-2  # well-conditioned systems: what differs is rounding alone
    made = [
        kind(data, state, kept, unit).rescale().run([ridge] * sweeps)
        for kind in (NumpySweeps, TorchSweeps)
    ]
    ours, theirs = (sweep.state() for sweep in made)
    rounding = 50 * (sweeps + 1) * math.prod(shape) ** 0.5 * torch.finfo(dtype).eps / ridge
    largest = float(dense(theirs).norm())
    assert float((dense(ours) - dense(theirs)).norm()) <= rounding * max(largest, 1e-3)
    for one, other in zip(ours.factors, theirs.factors, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype == dtype
    for k in kept:
        assert torch.equal(ours.factors[k], state.factors[k])
    norm = float(data.blocks.double().square().sum())
    for measure in ("square_residuals", "progress"):
        one, other = (getattr(sweep, measure)() for sweep in made)
        assert one == pytest.approx(other, rel=rounding, abs=rounding * norm)


def test_what_is_small() -> None:
    """Where OpenBLAS takes one thread: 2^18 multiply-adds, 2^13 of a product with a vector."""
    small = [((12, 10, 8), 5), ((5, 201, 61), 3), ((64, 64), 16), ((90, 91), 1), ((2, 2, 2), 64)]
    large = [((4096, 64), 16), ((64, 64, 64), 2), ((91, 91), 1), ((2, 2, 2), 65), ((2000, 2), 12)]
    for cases, expected in ((small, True), (large, False)):
        for shape, rank in cases:
            assert is_small(CutTensor.of(torch.empty(shape)), rank) is expected


def test_numpy_is_for_one_start_without_a_graph() -> None:
    data, state = problem((7, 6, 5), 3, torch.float64, 0)
    assert isinstance(sweeps_of(data, state), NumpySweeps)
    assert isinstance(sweeps_of(data, state.pick([0, 0])), TorchSweeps)
    weights = state.weights.clone().requires_grad_()
    assert isinstance(sweeps_of(data, CPState(state.factors, weights)), TorchSweeps)


def test_nothing_of_the_callers_is_written() -> None:
    rng = torch.Generator().manual_seed(0)
    tensor = torch.randn(6, 5, 4, generator=rng, dtype=torch.float64)
    start = [torch.randn(n, 2, generator=rng, dtype=torch.float64) for n in tensor.shape]
    given_tensors = [tensor, *start]
    copies = [t.clone() for t in given_tensors]
    fit = fit_cp(tensor, 2, init=(None, start), fixed_modes=[1], n_iter_max=25, tol=0)
    assert all(torch.equal(t, c) for t, c in zip(given_tensors, copies, strict=True))
    found = fit.factors.tensors().values()
    assert not any(t.is_inference() or t.requires_grad for t in found)
