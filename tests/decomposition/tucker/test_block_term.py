"""Block terms: planted terms are found, and no sweep raises the loss."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.decomposition import fit_block_term
from tensorlrf.decomposition.tucker._block_term_sweep import BlockTermProblem
from tensorlrf.errors import ArgumentError, RankError, ShapeError, UnsupportedError
from tensorlrf.factors import BlockTerm, Grouped, LowRank
from tensorlrf.nn.stock import to_stock_layer
from tests.draws import seeded
from tests.metrics import second_moments


def planted_ll1() -> BlockTerm:
    """Three matrices (9, 8) of rank 2 times vectors (7,)."""
    return BlockTerm(seeded(3, 2, 8, 1), (seeded(3, 9, 2, seed=1), seeded(3, 7, 1, seed=2)), (0, 2))


def test_planted_terms_of_a_matrix_and_a_vector_are_found() -> None:
    planted = planted_ll1()
    tensor = planted.to_dense()
    options: dict[str, Any] = {"n_restarts": 8, "random_state": 0, "tol": 1e-9, "n_iter_max": 1000}
    fit = fit_block_term(tensor, 2, n_terms=3, form="ll1", **options)
    assert fit.error < 1e-6
    assert fit.factors.rel_error(tensor) == pytest.approx(fit.error, abs=1e-12)
    left = list(planted.terms())
    for found in fit.factors.terms():  # each of them is one of those planted
        offs = [found.rel_error(true.to_dense()) for true in left]
        assert min(offs) < 1e-4
        left.pop(offs.index(min(offs)))


def test_planted_full_terms_are_fitted() -> None:
    """Terms in subspaces of their own."""
    bases = [torch.linalg.qr(seeded(n, 4, seed=n))[0] for n in (6, 7, 5)]
    factors = tuple(basis.reshape(-1, 2, 2).transpose(0, 1) for basis in bases)
    tensor = BlockTerm(seeded(2, 2, 2, 2), factors).to_dense()
    fit = fit_block_term(tensor, 2, n_terms=2, n_restarts=5, random_state=0, tol=1e-9)
    assert fit.error < 1e-6
    one = fit_block_term(tensor, 2, n_terms=1, random_state=0)
    assert one.error > fit.error


def test_one_term_is_a_tucker_tensor() -> None:
    tensor = seeded(6, 5, 4)
    fit = fit_block_term(tensor, (3, 2, 2), n_terms=1, random_state=0, n_restarts=3, tol=1e-9)
    tucker = tensorlrf.decomposition.fit_tucker(tensor, (3, 2, 2), tol=1e-9, n_iter_max=500)
    assert fit.error == pytest.approx(tucker.error, rel=1e-2)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=4),
    rank=st.integers(1, 3),
    n_terms=st.integers(1, 3),
    kind=st.sampled_from(["noise", "zero", "rank one"]),
)
def test_the_loss_never_rises(sizes: list[int], rank: int, n_terms: int, kind: str) -> None:
    tensor = seeded(*sizes)
    if kind == "zero":
        tensor = 0 * tensor
    elif kind == "rank one":
        tensor = torch.ones_like(tensor)
    forms = ("full", "ll1") if len(sizes) == 3 else ("full",)
    for form in forms:
        options: dict[str, Any] = {"n_terms": n_terms, "form": form, "random_state": 0}
        fit = fit_block_term(tensor, rank, n_iter_max=8, **options)
        assert all(b <= a * (1 + 1e-9) + 1e-15 for a, b in pairwise(fit.errors[:-1]))
        assert fit.error <= 1 + 1e-12


def lost(kernel: Tensor, factors: BlockTerm, gram: Tensor) -> float:
    """Relative error of the outputs."""
    off, whole = (
        (w.flatten(1) @ gram) * w.flatten(1) for w in (kernel - factors.to_dense(), kernel)
    )
    return float((off.sum() / whole.sum()).sqrt())


def test_one_term_in_a_metric_is_tucker_2() -> None:
    kernel, gram = seeded(8, 6, 3, 3), second_moments(seeded(54, 200, seed=1))
    fit = fit_block_term(kernel, (4, 3), n_terms=1, modes=(0, 1), gram=gram, random_state=0)
    tucker = tensorlrf.decomposition.fit_tucker(kernel, (4, 3), modes=(0, 1), gram=gram)
    assert fit.error == pytest.approx(tucker.error, rel=2e-3)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3)),
    n_terms=st.integers(1, 3),
    rank=st.integers(1, 3),
    seen=st.integers(1, 40),
)
def test_rounds_in_a_metric_never_raise_the_error_of_the_outputs(
    sizes: tuple[int, int, int], n_terms: int, rank: int, seen: int
) -> None:
    """With fewer inputs than columns too."""
    kernel = seeded(*sizes)
    gram = second_moments(seeded(sizes[1] * sizes[2], seen, seed=1))
    options: dict[str, Any] = {"n_terms": n_terms, "modes": (0, 1), "random_state": 0}
    fit = fit_block_term(kernel, rank, gram=gram, n_iter_max=6, tol=0.0, **options)
    assert all(b <= a * (1 + 1e-9) + 1e-12 for a, b in pairwise(fit.errors[:-1]))
    assert fit.error == pytest.approx(lost(kernel, fit.factors, gram), abs=1e-7)
    plain = fit_block_term(kernel, rank, n_iter_max=6, tol=0.0, **options)
    if not fit.shrinkage:
        assert fit.error <= lost(kernel, plain.factors, gram) + 1e-9


def test_planted_terms_are_found_in_a_metric() -> None:
    planted = BlockTerm(seeded(2, 3, 2, 3, 3), (seeded(2, 12, 3), seeded(2, 8, 2, seed=1)), (0, 1))
    kernel, gram = planted.to_dense(), second_moments(seeded(72, 400, seed=2))
    fit = fit_block_term(kernel, (3, 2), modes=(0, 1), gram=gram, random_state=0, tol=0.0)
    assert fit.error < 1e-3


def test_conjugate_gradients_reach_what_the_normal_matrix_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = BlockTermProblem(seeded(7, 6, 5), 2, (0, 1, 2), (3, 3, 2))
    state = problem.start(torch.Generator().manual_seed(0)).state
    _, error = problem._with_cores(state)
    monkeypatch.setattr(sys.modules[BlockTermProblem.__module__], "DIRECT", 0)
    before = 1.0
    stepped = state._replace(cores=torch.zeros_like(state.cores))
    for _ in range(12):
        stepped, reached = problem._with_cores(stepped)
        assert reached <= before * (1 + 1e-12)  # rounding
        before = reached
    assert reached == pytest.approx(error, rel=1e-6)


def test_a_model_is_compressed_saved_loaded_and_exported(tmp_path: Path) -> None:
    """Convolutions become block terms, with inputs and without; matrices their SVD."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, groups=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 64),
    )  # fmt: skip
    x = seeded(80, 6, 8, 8, dtype=torch.float32)
    for calibration in (None, [x]):
        chosen = tensorlrf.BlockTerms(n_terms=3, n_iter_max=5)
        small, report = tensorlrf.compress(
            model, keep_params=0.6, method=chosen, calibration=calibration, skip=[]
        )
        assert report.eligible.share <= 0.6
        first, second, last = (small[k].factors for k in (0, 2, 5))
        assert isinstance(first, BlockTerm)
        assert len(first.cores) == 3
        assert isinstance(second, Grouped)
        assert isinstance(second.group(0), BlockTerm)
        assert isinstance(last, LowRank)
        tensorlrf.save(small, tmp_path / "small.safetensors", overwrite=True)
        again = tensorlrf.load(tmp_path / "small.safetensors", model)
        assert torch.equal(again(x), small(x))
        exported = tensorlrf.export(small)
        # float32: sums of a hundred products in another order, through three layers.
        assert torch.allclose(exported(x), tensorlrf.densify(small)(x), atol=1e-5)
        _, middle, _ = to_stock_layer(small[0], "chain").children()
        assert middle.groups == 3


def test_layers_have_outer_factors_in_common() -> None:
    """Of a stack of kernels with its own mode left whole: what each layer runs on is a part."""
    sides = seeded(2, 8, 2), seeded(2, 6, 2, seed=1)
    kernels = BlockTerm(seeded(2, 3, 2, 2, 3, 3), sides, (1, 2)).to_dense()
    options: dict[str, Any] = {"tol": 1e-9, "n_restarts": 4, "random_state": 0}
    f = tensorlrf.block_term(kernels, 2, modes=(1, 2), **options)
    assert f.rel_error(kernels) < 1e-5
    for own, kernel in zip(f.cores.unbind(1), kernels, strict=True):
        assert BlockTerm(own, f.factors, (0, 1)).rel_error(kernel) < 1e-4


def test_a_matrix_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="BlockTerm, on which no linear layer runs"):
        tensorlrf.nn.factorize(nn.Linear(6, 5), "block_term", 2)


def test_a_callback_sees_each_sweep_and_stops() -> None:
    seen: list[float] = []

    def stop(factors: BlockTerm, error: float) -> bool:
        assert factors.rank == (2, 2, 2)
        seen.append(error)
        return len(seen) == 2

    fit = fit_block_term(seeded(4, 5, 3), 2, callback=stop, tol=0.0, random_state=0)
    assert len(seen) == 2
    assert "stopped by callback" in fit.reason


def test_bad_input_is_told() -> None:
    tensor = seeded(4, 5, 3)

    def refused(kind: Any, words: str, rank: Any = 2, weight: Any = tensor, **options: Any) -> None:
        with pytest.raises(kind, match=words):
            fit_block_term(weight, rank, **options)

    refused(RankError, r"asks for rank 5 along mode 0, which allows 4", (5, 2, 2))
    refused(RankError, r"has 2 entries; terms of form 'full' .* have 3", (2, 2))
    refused(RankError, r"has 2 entries; terms of form 'll1' .* have 1", (2, 2), form="ll1")
    refused(ArgumentError, "n_terms=0 must", n_terms=0)
    refused(ArgumentError, "form='odd' is unknown; choose one of full, ll1", form="odd")
    refused(ShapeError, "form='ll1' is for three modes", weight=seeded(3, 4), form="ll1")
    refused(ArgumentError, "modes=.* form='full'", form="ll1", modes=(0, 1))
    refused(UnsupportedError, r"with modes \(0, 1\)", gram=torch.eye(15))
    refused(ArgumentError, "one of the two", error=0.1)
