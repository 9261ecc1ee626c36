"""What `bench/before_after.py` calls equal, better and worse."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from bench.before_after import cases, others, residual, spelled, verdict
from tensorlrf import decomposition

OLD = {"dtype": "float32", "residual": 0.25, "n_params": 100, "rank": "3"}
EPS = 1.2e-7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "equal"),
        ({"residual": 0.25 + 5 * EPS}, "equal"),
        ({"residual": 0.2501}, "worse"),
        ({"residual": 0.2499}, "better"),
        ({"n_params": 90}, "better"),
        ({"n_params": 110}, "worse"),
        ({"n_params": 90, "residual": 0.3}, "other"),
        ({"raised": "RankError"}, "other"),
    ],
)
def test_at_a_rank_the_error_counts(change: dict[str, Any], said: str) -> None:
    assert verdict(OLD, {**OLD, **change}) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"residual": 0.29}, "equal"),
        ({"residual": 0.31}, "worse"),
        ({"n_params": 90, "residual": 0.29}, "better"),
        ({"n_params": 90, "residual": 0.31}, "worse"),
        ({"n_params": 110, "residual": 0.1}, "worse"),
    ],
)
def test_within_an_error_the_size_counts(change: dict[str, Any], said: str) -> None:
    asked = {**OLD, "asked": 0.3}
    assert verdict(asked, {**asked, **change}) == said


BEFORE = {
    *("svd", "tucker", "cp", "tt", "tt_matrix", "tr", "kron"),
    *("blr", "hierarchical", "hodlr", "monarch", "blast"),
}
"""What former checkouts have."""


def test_every_decomposition_is_there_and_every_case_has_a_name_of_its_own() -> None:
    names = [(case.word, case.name) for case in cases()]
    assert len(names) == len(set(names)) > 800
    fits = {n.removeprefix("fit_") for n in decomposition.__all__ if n.startswith("fit_")}
    assert {word for word, _ in names} == BEFORE <= fits
    assert {"tt_round", "tt_cross"} <= set(inspect.getsource(others).replace('"', " ").split())


def test_the_residual_is_that_of_the_outputs_where_there_is_a_metric() -> None:
    case = next(
        c for c in cases() if c.word == "svd" and "gram" in c.options and c.tensor.ndim == 2
    )
    fit = decomposition.fit_svd(case.tensor, **case.options)
    assert residual(case, fit.factors.to_dense()) == pytest.approx(fit.error, rel=1e-5)


def test_an_option_is_spelled_as_the_checkout_does() -> None:
    def new(tensor: object, solver: str = "auto") -> None: ...

    def old(tensor: object, method: str = "auto") -> None: ...

    assert spelled(new, {"method": "exact", "rank": 2}) == {"solver": "exact", "rank": 2}
    assert spelled(old, {"method": "exact"}) == {"method": "exact"}
