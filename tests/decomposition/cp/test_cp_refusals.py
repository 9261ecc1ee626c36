"""What `cp` says of input that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tensorlrf.decomposition.cp._cp import cp, fit_cp
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import CPFactors

X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))


def start(shape: tuple[int, ...] = (4, 5, 6), rank: int = 2) -> CPFactors:
    return CPFactors(torch.ones(rank), tuple(torch.ones(n, rank) for n in shape))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ArgumentError, "give rank or error"),
        ({"rank": 2, "error": 0.1}, ArgumentError, "give rank or error"),
        ({"rank": 0}, RankError, "rank=0"),
        ({"rank": -3}, RankError, "rank=-3"),
        ({"rank": (2, 2, 2)}, RankError, "must be one int"),
        ({"rank": 1.5}, RankError, r"share of the parameters"),
        ({"rank": "many"}, RankError, "'many'"),
        ({"error": 1.5}, ArgumentError, r"error=1\.5"),
        ({"rank": 2, "solver": "sgd"}, ArgumentError, "solver='sgd'.*als, cprand"),
        ({"rank": 2, "init": "hosvd"}, ArgumentError, "init='hosvd'.*random, svd"),
        ({"rank": 2, "init": 3}, ArgumentError, "init is a int"),
        ({"rank": 2, "init": start(rank=3)}, RankError, r"3 columns but rank=2"),
        ({"rank": 2, "init": start((4, 5, 7))}, ShapeError, r"factors\[2\].*mode 2.*size 6"),
        ({"rank": 2, "init": start((4, 5))}, ShapeError, "2 factors for a tensor of 3 modes"),
        ({"rank": 2, "init": (torch.ones(3), start().factors)}, ShapeError, "weights have shape"),
        ({"rank": 2, "init": (None, [torch.ones(4)] * 3)}, ShapeError, "at least 2 modes"),
        ({"rank": 2, "init": start(), "n_restarts": 2}, ArgumentError, "n_restarts=2"),
        ({"error": 0.1, "init": start()}, ArgumentError, "with error= use a word"),
        ({"rank": 2, "n_iter_max": 0}, ArgumentError, "n_iter_max=0"),
        ({"rank": 2, "n_iter_max": 2.5}, ArgumentError, r"n_iter_max=2\.5"),
        ({"rank": 2, "n_restarts": 0}, ArgumentError, "n_restarts=0"),
        ({"rank": 2, "tol": -1e-3}, ArgumentError, r"tol=-0\.001"),
        ({"rank": 2, "tol": float("nan")}, ArgumentError, "tol=nan"),
        ({"rank": 2, "n_samples": 50}, ArgumentError, "belongs to solver='cprand'"),
        ({"rank": 2, "n_samples": 0, "solver": "cprand"}, ArgumentError, "n_samples=0"),
        ({"rank": 2, "fixed_modes": (0,)}, ArgumentError, "fixed_modes=.*init='random'"),
        ({"rank": 2, "fixed_modes": (3,), "init": start()}, ArgumentError, "modes are 0 to 2"),
        ({"rank": 2, "fixed_modes": (0, 1, -1), "init": start()}, ArgumentError, "all 3 modes"),
        ({"rank": 2, "callback": 3}, ArgumentError, "callback=3"),
        ({"rank": 2, "random_state": "a"}, ArgumentError, "random_state='a'"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fit_cp(X, **options)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (X.clone().index_fill_(0, torch.tensor([1]), float("nan")), "NaN"),
        (X.clone().index_fill_(0, torch.tensor([1]), float("inf")), "Inf"),
        (torch.ones(3, 3, dtype=torch.int64), "int64"),
        (torch.ones(3, 3, dtype=torch.complex64), "complex64"),
        (torch.ones(3), "at least 2 modes"),
        (torch.ones(3, 0, 2), "no element"),
        ([[1.0]], "list"),
    ],
)
def test_tensors(tensor: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        cp(tensor, 2)
