"""Tucker: bounds, monotone sweeps, exact tensors, published figures, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import mode_gram, unfold
from tensorlrf.decomposition.tucker._hooi import hooi_sweep, mode_cross
from tensorlrf.decomposition.tucker._tucker import fit_tucker, tucker
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import TuckerFactors
from tensorlrf.factors.algebra import mode_product
from tests.draws import seeded, seeded32
from tests.public import public

SOLVERS = ("hosvd", "st_hosvd", "hooi", "randomized")
EPS32 = torch.finfo(torch.float32).eps

shapes = st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple)
floats = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


def planted(
    shape: tuple[int, ...],
    ranks: tuple[int, ...],
    noise: float = 0.0,
    *,
    decay: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A tensor of the given multilinear rank, entries of unit size, plus noise.

    Slices of the core fall off as decay ** j along every mode.
    """
    tensor = seeded(*ranks, seed=seed, dtype=torch.float64)
    for k, (n, r) in enumerate(zip(shape, ranks, strict=True)):
        basis = torch.linalg.qr(seeded(n, r, seed=seed + k + 1, dtype=torch.float64))[0]
        tensor = mode_product(tensor, basis * decay ** torch.arange(r), k)
    tensor = tensor / tensor.square().mean().sqrt()
    return (tensor + noise * seeded(*shape, seed=seed + 99, dtype=torch.float64)).to(dtype)


def discarded(tensor: Tensor, ranks: tuple[int, ...]) -> float:
    """Root of the energies that the HOSVD leaves out of all modes, relative."""
    wide = tensor.double()
    lost = sum(
        float(torch.linalg.svdvals(unfold(wide, k))[r:].square().sum()) for k, r in enumerate(ranks)
    )
    return math.sqrt(lost) / float(wide.norm())


def rel_error(factors: TuckerFactors, tensor: Tensor) -> float:
    return factors.to(torch.float64).rel_error(tensor.double())


@settings(derandomize=True, deadline=None, max_examples=40)
@given(shape=shapes, data=st.data(), dtype=floats, turned=st.booleans())
def test_errors_keep_the_order_of_the_theory(
    shape: tuple[int, ...], data: st.DataObject, dtype: torch.dtype, turned: bool
) -> None:
    ranks = tuple(data.draw(st.integers(1, n)) for n in shape)
    tensor = seeded(*shape, dtype=dtype)
    if turned:
        tensor = seeded(*reversed(shape), dtype=dtype).permute(*reversed(range(len(shape))))
    copy = tensor.clone()
    errors = {}
    for solver in ("hooi", "st_hosvd", "hosvd"):
        factors = tucker(tensor, ranks, solver=solver)
        assert factors.shape == shape
        assert factors.rank == ranks
        assert factors.dtype == dtype
        errors[solver] = rel_error(factors, tensor)
    assert torch.equal(tensor, copy)
    # N + 1 rounded factors, each a relative error of eps / 2 an entry, and sums of n_k terms.
    rounding = (len(shape) + 1 + max(shape)) * torch.finfo(dtype).eps
    assert errors["hooi"] <= errors["st_hosvd"] + rounding
    bound = discarded(tensor, ranks) + rounding
    assert errors["st_hosvd"] <= bound
    assert errors["hosvd"] <= bound
    assert bound <= math.sqrt(len(shape)) * errors["hooi"] + (len(shape) + 2) * rounding


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_are_orthonormal_and_the_core_is_the_projection(
    solver: str, dtype: torch.dtype
) -> None:
    tensor = planted((30, 300, 20), (5, 6, 7), 0.5, dtype=dtype)
    core, factors = tucker(tensor, (4, 5, 6), solver=solver, random_state=0)
    eps = torch.finfo(dtype).eps
    for factor in factors:
        r = factor.shape[1]
        # Two rounded products with orthogonal matrices of up to 300 rows.
        assert float((factor.T @ factor - torch.eye(r, dtype=dtype)).norm()) <= 30 * r * eps
    projected = tensor
    for k, factor in enumerate(factors):
        projected = mode_product(projected, factor.T, k)
    assert float((projected - core).norm()) <= 100 * eps * float(core.norm())
    for k in range(3):
        gram = mode_gram(core, k)
        energies = gram.diagonal()
        assert (energies[:-1] >= energies[1:] * (1 - 1e-5)).all()
        off = gram - torch.diag(energies)
        assert float(off.norm()) <= 100 * eps * float(energies.sum())


@pytest.mark.parametrize(
    ("shape", "modes", "rank"),
    [
        ((40, 30, 20), None, (6, 5, 4)),
        ((300, 280, 3, 3), (0, 1), (40, 30)),
        ((280, 12, 300), (0, 2), (20, 150)),
        ((12, 10, 8, 9), None, (4, 3, 2, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sweeps_never_raise_the_error(
    shape: tuple[int, ...],
    modes: tuple[int, ...] | None,
    rank: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    if dtype == torch.float64 and math.prod(shape) > 100_000:
        shape, rank = tuple(min(n, 30) for n in shape), tuple(min(r, 9) for r in rank)
    ranks = tuple(n if n < 20 else n // 4 for n in shape)
    tensor = planted(shape, ranks, 0.7, dtype=dtype)
    fit = fit_tucker(tensor, rank, modes=modes)
    start = fit_tucker(tensor, rank, modes=modes, solver="st_hosvd").error
    assert fit.converged
    assert len(fit.errors) >= 3
    assert fit.errors[0] == pytest.approx(start, rel=1e-5)
    assert all(after <= before for before, after in pairwise(fit.errors[:-1]))
    # The last is a residual, the one before it came from the norm of the core: 1 - |core|^2 is
    # known to eps times the length of a sum's block, and halves over the error in the root.
    noise = 64 * torch.finfo(dtype).eps / (2 * fit.error)
    assert fit.error == pytest.approx(fit.errors[-2], abs=noise)
    assert fit.error == pytest.approx(rel_error(fit.factors, tensor), rel=1e-5)


def test_a_sweep_is_the_one_of_the_definition() -> None:
    """Leading vectors of the tensor contracted with all other factors, mode after mode."""
    tensor = planted((9, 8, 7), (4, 4, 4), 0.5, dtype=torch.float64)
    start = {
        k: torch.linalg.qr(seeded32(n, 3, seed=k).double())[0] for k, n in enumerate((9, 8, 7))
    }
    swept = dict(start)
    core = hooi_sweep(tensor, [0, 1, 2], swept, fine=True)
    by_hand = dict(start)
    for k in (0, 2, 1):  # the leaves of the tree, in its order
        rest = tensor
        for j in range(3):
            if j != k:
                rest = mode_product(rest, by_hand[j].T, j)
        by_hand[k] = torch.linalg.svd(unfold(rest, k), full_matrices=False)[0][:, :3]
    for k in range(3):
        torch.testing.assert_close(swept[k] @ swept[k].T, by_hand[k] @ by_hand[k].T)
    assert float(core.norm()) == pytest.approx(
        float(torch.einsum("ijk,ia,jb,kc->abc", tensor, *(swept[k] for k in range(3))).norm())
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("decay", [1.0, 0.4])
@pytest.mark.parametrize(
    ("shape", "ranks", "modes"),
    [((40, 30, 20), (6, 5, 4), None), ((300, 270, 3, 3), (12, 8, 3, 3), (0, 1))],
)
def test_exact_tensors_come_back_to_rounding(
    shape: tuple[int, ...],
    ranks: tuple[int, ...],
    modes: tuple[int, ...] | None,
    decay: float,
    solver: str,
) -> None:
    """Also where singular values fall to 4e-5 of the first, below what a float32 Gram sees."""
    tensor = planted(shape, ranks, decay=decay)
    rank = ranks if modes is None else ranks[:2]
    fit = fit_tucker(tensor, rank, modes=modes, solver=solver, random_state=0)
    # Rounding of the tensor, of N + 1 factors and of the products that rebuild it.
    assert fit.error <= 12 * EPS32


@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_randomized_is_close_to_st_hosvd(noise: float) -> None:
    tensor = planted((60, 50, 40), (12, 12, 12), noise)
    best = fit_tucker(tensor, 10, solver="st_hosvd").error
    for seed in range(5):
        fit = fit_tucker(tensor, 10, solver="randomized", random_state=seed)
        assert fit.error <= 1.01 * best


def test_partial_modes_leave_the_others_whole() -> None:
    tensor = seeded32(12, 10, 3, 4)
    factors = tucker(tensor, (5, 2), modes=(1, 3))
    assert factors.modes == (1, 3)
    assert factors.core.shape == (12, 5, 3, 2)
    assert factors.shape == (12, 10, 3, 4)
    swapped = tucker(tensor, (2, 5), modes=(3, 1))
    assert torch.equal(swapped.core, factors.core)
    one = fit_tucker(tensor, 4, modes=(0,))
    values = torch.linalg.svdvals(unfold(tensor, 0))
    assert one.error == pytest.approx(float(values[4:].norm() / values.norm()), rel=1e-5)


def test_of_a_matrix_it_is_the_svd() -> None:
    matrix = seeded32(15, 12)
    values = torch.linalg.svdvals(matrix)
    for solver in ("hooi", "st_hosvd", "hosvd"):
        fit = fit_tucker(matrix, 4, solver=solver)
        assert fit.error == pytest.approx(float(values[4:].norm() / values.norm()), rel=1e-5)
        torch.testing.assert_close(fit.factors.core.diagonal().abs(), values[:4])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_more_columns_than_other_modes_have_room_for_are_orthonormal(
    solver: str, dtype: torch.dtype
) -> None:
    factors = tucker(seeded32(40, 2, 2).to(dtype), (10, 1, 1), solver=solver, random_state=0)
    basis = factors.factors[0].double()
    assert float((basis.T @ basis - torch.eye(10)).norm()) <= 40 * torch.finfo(dtype).eps


def test_the_core_of_a_loud_half_precision_tensor_does_not_overflow() -> None:
    tensor = (seeded32(30, 30, 30) * 1e4).clamp(-6e4, 6e4).half()
    fit = fit_tucker(tensor, 20)
    assert all(torch.isfinite(t).all() for t in fit.factors.tensors().values())
    assert fit.error == pytest.approx(fit_tucker(tensor.float(), 20).error, rel=1e-4)


# ---- error= -----------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    error=st.floats(0.01, 0.8),
    solver=st.sampled_from(["hosvd", "st_hosvd", "hooi"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16]),
    seed=st.integers(0, 3),
)
def test_error_is_kept_within(error: float, solver: str, dtype: torch.dtype, seed: int) -> None:
    tensor = planted((10, 9, 8), (10, 9, 8), decay=0.6, seed=seed, dtype=dtype)
    fit = fit_tucker(tensor, error=error, solver=solver)
    assert fit.error <= error
    assert rel_error(fit.factors, tensor) <= error * (1 + 1e-5)
    # No rank is larger than its mode alone would need with an equal share of the squared error.
    for k, r in enumerate(fit.factors.rank):
        values = torch.linalg.svdvals(unfold(tensor.double(), k))
        share = 0.9 * error / math.sqrt(3)
        need = int((values.square().flip(0).cumsum(0).flip(0).sqrt() > share * values.norm()).sum())
        assert r <= max(1, need)


def test_error_of_an_exact_tensor_gives_its_rank() -> None:
    tensor = planted((20, 18, 16), (3, 4, 5))
    assert tucker(tensor, error=1e-3).rank == (3, 4, 5)
    assert tucker(tensor, error=0.0).rank == (3, 4, 5)


# ---- stopping ---------------------------------------------------------------------------------


def test_callback_sees_every_sweep_and_can_stop() -> None:
    tensor = planted((20, 18, 16), (8, 8, 8), 1.0)
    seen: list[float] = []

    def look(factors: TuckerFactors, error: float) -> bool:
        assert factors.rank == (4, 18, 4)
        assert rel_error(factors, tensor) == pytest.approx(error, rel=1e-4)
        seen.append(error)
        return len(seen) == 2

    fit = fit_tucker(tensor, (4, 18, 4), callback=look, tol=0)
    assert len(seen) == 2
    assert not fit.converged
    assert "callback" in fit.reason
    assert tuple(seen) == fit.errors[1:3]


def test_n_iter_max_and_tol_are_obeyed() -> None:
    tensor = planted((20, 18, 16), (8, 8, 8), 1.0)
    one = fit_tucker(tensor, 4, n_iter_max=1, tol=0)
    start = fit_tucker(tensor, 4, solver="st_hosvd")
    assert one.errors[0] == pytest.approx(start.error, rel=1e-5)
    assert len(one.errors) == 3
    assert not one.converged
    loose = fit_tucker(tensor, 4, tol=0.5)
    assert len(loose.errors) == 3
    assert loose.converged


# ---- products ---------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=25)
@given(shape=shapes, data=st.data())
def test_grams_are_those_of_the_unfoldings(shape: tuple[int, ...], data: st.DataObject) -> None:
    mode = data.draw(st.integers(0, len(shape) - 1))
    tensor = seeded32(*shape)
    other = mode_product(tensor, seeded32(3, shape[mode], seed=1), mode)
    wide = unfold(tensor.double(), mode)
    torch.testing.assert_close(mode_gram(tensor, mode), wide @ wide.T)
    torch.testing.assert_close(
        mode_cross(tensor, other, mode), unfold(tensor, mode) @ unfold(other, mode).T
    )


# ---- published figures ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rank", "solver", "printed"),
    [
        ("covid19_serology", (8, 4, 4), "hooi", ".36578"),
        ("covid19_serology", (8, 4, 4), "hosvd", ".37599"),
        ("kinetic", 4, "hooi", ".03694"),
        ("indian_pines", 20, "hosvd", ".05737"),
        ("indian_pines", 20, "hooi", ".05654"),
    ],
)
def test_figures_on_public_tensors(
    name: str, rank: int | tuple[int, ...], solver: str, printed: str
) -> None:
    tensor = public(name)
    dtypes = (torch.float32,) if name == "indian_pines" else (torch.float32, torch.float64)
    for dtype in dtypes:
        sweeps = {"tol": 1e-8, "n_iter_max": 200} if solver == "hooi" else {}
        factors = tucker(tensor.to(dtype), rank, solver=solver, **sweeps)
        assert f"{rel_error(factors, tensor):.5f}".removeprefix("0") == printed


# ---- refusals ---------------------------------------------------------------------------------


def test_refusals_name_argument_value_and_remedy() -> None:
    tensor = seeded32(4, 5, 6)
    with pytest.raises(RankError, match="rank 5 along mode 0, which has size 4"):
        tucker(tensor, 5)
    with pytest.raises(RankError, match="2 entries for 3 factored modes"):
        tucker(tensor, (2, 2))
    with pytest.raises(ArgumentError, match="solver='randomized' needs rank="):
        tucker(tensor, error=0.1, solver="randomized")
    for option, value in (("n_iter_max", 2), ("tol", 0.1), ("callback", print)):
        with pytest.raises(
            ArgumentError, match=f"{option}= goes with solver='hooi'; 'hosvd' makes"
        ):
            tucker(tensor, 2, solver="hosvd", **{option: value})
