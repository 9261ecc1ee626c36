"""The benchmark of sharded models runs, and tells what ranks hold."""

from __future__ import annotations

import pytest

from bench.sharded import CASES, SHARDED, WHOLE, measured


@pytest.mark.slow
def test_of_a_sharded_model_a_rank_has_a_matrix_or_two() -> None:
    found = measured(4, 32)
    assert [one["way"] for one in found] == [SHARDED, WHOLE] * len(CASES)
    for one in found:
        assert one["put together"] <= 3 if one["way"] == SHARDED else one["put together"] > 4
        assert one["difference"] < 1e-4  # sums in float32 of two halves of the batches
