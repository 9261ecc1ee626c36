"""What one decomposition refuses all refuse, and in the words of its caller."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tensorlrf import decomposition
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tests.decomposition.every import BY_SHARE, COUNT, SHARE, gram_of_inputs, matrix

ITERATIVE = (
    *("cp", "tucker", "tt", "tt_matrix", "tr", "kron"),
    *("blr", "hierarchical", "hodlr", "monarch", "blast"),
)
ABOUT_A_MEAN = ("svd", "cp", "tucker", "tt", "tt_matrix", "tr", "kron")
OF_OUTPUTS = ("svd", "tt", "tt_matrix", "kron", "blr", "hierarchical", "hodlr", "monarch", "blast")
OF_MATRICES = ("tt_matrix", "blr", "hierarchical", "hodlr", "monarch", "blast")


def called(name: str) -> Callable[..., Any]:
    function = getattr(decomposition, name)
    if name not in ("hierarchical", "hodlr"):
        return function  # type: ignore[no-any-return]
    return lambda tensor, rank=None, **options: function(tensor, rank, leaf=4, **options)


def rank_of(name: str) -> Any:
    return SHARE if name in BY_SHARE else COUNT


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("name", ITERATIVE)
def test_sweeps_and_tolerances(name: str, metric: bool) -> None:
    """At least one sweep, and a share of the error below one."""
    options: dict[str, Any] = {"gram": gram_of_inputs()} if metric else {}
    wrong: list[tuple[str, Any]] = [
        *(("n_iter_max", value) for value in (0, -1, 1.0, True, "many")),
        *(("tol", value) for value in (1.0, 2.0, -1e-3, math.nan, True, "little")),
    ]
    for argument, value in wrong:
        with pytest.raises(ArgumentError, match=f"^{argument}={value!r} must"):
            called(name)(matrix(), rank_of(name), **options, **{argument: value})


@pytest.mark.parametrize("name", ABOUT_A_MEAN)
def test_a_mean_needs_the_moments(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"^mean= goes with gram=") as refusal:
        called(name)(matrix(), COUNT, mean=torch.zeros(12))
    assert "tensor(" not in str(refusal.value)


@pytest.mark.parametrize("name", OF_MATRICES)
def test_what_takes_matrices_says_so_by_its_own_name(name: str) -> None:
    with pytest.raises((UnsupportedError, ShapeError)) as refusal:
        called(name)(torch.ones(4, 4, 4), rank_of(name))
    text = str(refusal.value)
    assert "(4, 4, 4)" in text
    own = {"tt_matrix": "TT-matrix"}.get(name, name)
    assert own in text
    assert not [other for other in OF_MATRICES[1:] if other != name and f"{other} takes" in text]


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", OF_OUTPUTS)
@pytest.mark.parametrize("error", [0.3, 0.05])
def test_an_error_in_the_metric_is_that_of_the_outputs(name: str, error: float) -> None:
    weight, gram = matrix(torch.float64), gram_of_inputs()
    off = weight - called(name)(weight, error=error, gram=gram).to_dense()
    reached = (off @ gram * off).sum() / (weight @ gram * weight).sum()
    assert float(reached.sqrt()) <= error * (1 + 1e-9)


@pytest.mark.parametrize("name", ["cp", "tucker"])
def test_an_error_in_the_metric_that_is_not_served_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="gram= needs rank= here"):
        called(name)(matrix(), error=0.1, gram=gram_of_inputs())
