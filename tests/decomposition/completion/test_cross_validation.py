"""Entries that are held out tell the rank of a planted tensor."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorlrf
from tensorlrf.errors import ArgumentError, TensorlrfWarning, UnsupportedError
from tests.decomposition.completion.test_completion import CASES
from tests.draws import seeded

RANKS: dict[str, tuple[Any, ...]] = {
    "cp": (1, 2, 3, 5),
    "tucker": ((1, 1, 1), (3, 2, 4), (5, 5, 5)),
    "tt": ((1, 1, 1), (3, 4, 2), (4, 6, 4)),
    "svd": (1, 2, 4),
}


@pytest.mark.parametrize("case", RANKS)
def test_the_planted_rank_is_best_where_the_fit_alone_asks_for_more(case: str) -> None:
    make, _, rank = CASES[case]
    whole = make(torch.float64).to_dense()
    noisy = whole + 0.3 * whole.std() * seeded(*whole.shape, seed=5)
    options = {"n_iter_max": 12} | ({"init": "svd"} if case == "cp" else {})
    found = tensorlrf.cross_validate(
        noisy, case, RANKS[case], folds=3, options=options, random_state=0
    )
    assert found.best == rank
    fitted = [sum(errors) for errors in found.seen]
    assert min(fitted) == fitted[-1]  # the error over what was fitted falls on
    assert found.simplest in RANKS[case][: RANKS[case].index(rank) + 1]
    assert all(len(errors) == 3 for errors in found.errors)


def test_every_known_entry_is_held_out_once_and_no_other() -> None:
    """With a fold for each half of the entries, the errors are of the other half."""
    make, _, _ = CASES["svd"]
    whole = make(torch.float64).to_dense()
    mask = seeded(*whole.shape, seed=3) > -0.5
    hidden = whole.masked_fill(~mask, math.nan)
    found = tensorlrf.cross_validate(hidden.numpy(), "svd", (2,), mask=mask, random_state=1)
    assert found.best == 2
    assert max(found.errors[0]) < 1e-6


def test_it_prints_a_table_and_is_data(tmp_path: Path) -> None:
    noise = seeded(9, 8, 7)
    found = tensorlrf.cross_validate(noise, "cp", (1, 2), folds=2, random_state=0)
    lines = str(found).splitlines()
    assert lines[0] == "cp of 9x8x7, 2 folds"
    assert [line.split()[0] for line in lines[1:]] == ["rank", "1", "2"]
    assert sum("best" in line for line in lines) == 1
    assert json.loads(found.to_json())["ranks"] == [1, 2]
    again = tensorlrf.cross_validate(noise, "cp", (1, 2), folds=2, random_state=0)
    assert again == found
    found.plot(tmp_path / "ranks.svg")
    assert (tmp_path / "ranks.svg").read_text().count("<svg") == 1


def test_what_cannot_be_compared() -> None:
    noise = seeded(9, 8)
    for given, kind, words in (
        ({"method": "monarch"}, UnsupportedError, "takes no mask=.*cp"),
        ({"method": "odd"}, ArgumentError, "^method='odd' is unknown"),
        ({"ranks": ()}, ArgumentError, "^ranks="),
        ({"ranks": 3}, ArgumentError, "^ranks=3 must be a sequence"),
        ({"folds": 1}, ArgumentError, r"^folds=1 must .* 2 to 72"),
        ({"options": {"sweeps": 3}}, ArgumentError, "^options='sweeps' is unknown.*n_iter_max"),
        ({"options": {"mask": 3}}, ArgumentError, "^options='mask' is unknown"),
    ):
        with pytest.raises(kind, match=words):
            tensorlrf.cross_validate(noise, **{"method": "svd", "ranks": (1,), **given})
    with pytest.warns(TensorlrfWarning, match="^3 of 3 fits: rank=7 has 70 free parameters"):
        tensorlrf.cross_validate(
            noise, "svd", (7,), folds=3, options={"n_iter_max": 1}, random_state=0
        )
