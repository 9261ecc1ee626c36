"""What `cp` says of input that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tensorlrf.decomposition.cp._cp import fit_cp
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import CPFactors

X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))


def start(shape: tuple[int, ...] = (4, 5, 6), rank: int = 2) -> CPFactors:
    return CPFactors(torch.ones(rank), tuple(torch.ones(n, rank) for n in shape))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rank": (2, 2, 2)}, RankError, "must be one int"),
        ({"rank": 2, "init": 3}, ArgumentError, "init is a int"),
        ({"rank": 2, "init": start(rank=3)}, RankError, r"3 columns but rank=2"),
        ({"rank": 2, "init": start((4, 5, 7))}, ShapeError, r"factors\[2\].*mode 2.*size 6"),
        ({"rank": 2, "init": start((4, 5))}, ShapeError, "2 factors for a tensor of 3 modes"),
        ({"rank": 2, "init": (torch.ones(3), start().factors)}, ShapeError, "weights have shape"),
        ({"rank": 2, "init": (None, [torch.ones(4)] * 3)}, ShapeError, "at least 2 modes"),
        ({"rank": 2, "init": start(), "n_restarts": 2}, ArgumentError, "n_restarts=2"),
        ({"error": 0.1, "init": start()}, ArgumentError, "with error= use a word"),
        ({"rank": 2, "n_restarts": 0}, ArgumentError, "n_restarts=0"),
        ({"rank": 2, "n_samples": 50}, ArgumentError, "belongs to solver='cprand'"),
        ({"rank": 2, "n_samples": 0, "solver": "cprand"}, ArgumentError, "n_samples=0"),
        ({"rank": 2, "fixed_modes": (0,)}, ArgumentError, "fixed_modes=.*init='auto'"),
        ({"rank": 2, "fixed_modes": 0, "init": start()}, ArgumentError, "such as .0,."),
        ({"rank": 2, "fixed_modes": (3,), "init": start()}, ArgumentError, "modes are 0 to 2"),
        ({"rank": 2, "fixed_modes": (0, 1, -1), "init": start()}, ArgumentError, "all 3 modes"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fit_cp(X, **options)
