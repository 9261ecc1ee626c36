"""CP sweeps beside tensorly in turn, theirs, ours, theirs, ours: the ratio pair by pair.

On a machine whose speed drifts, times taken minutes apart do not give a ratio; pairs do. Start and
number of sweeps are those of `test_cp.py`.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from bench.test_cp import CASES, SWEEPS, noisy, tensorly_on_torch, uniform_start
from tensorlrf.decomposition import fit_cp

PAIRS = {"256x256x3x3 r32": 9, "256x256x3x3 r128": 3, "200x200x200 r16": 9}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize("case", PAIRS)
def test_fifty_sweeps_in_turn(benchmark: Any, case: str) -> None:
    tensorly = tensorly_on_torch()
    shape, rank = CASES[case]
    tensor = noisy(shape, min(rank, 64))
    weights, factors = uniform_start(shape, rank)

    def ours() -> None:
        fit_cp(tensor, rank, init=(weights, list(factors)), n_iter_max=SWEEPS, tol=0)

    def theirs() -> None:
        start = (weights.clone(), [f.clone() for f in factors])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensorly.decomposition.parafac(tensor, rank, init=start, n_iter_max=SWEEPS, tol=0)

    ours()
    pairs = [(seconds(theirs), seconds(ours)) for _ in range(PAIRS[case])]
    ratios = [theirs / own for theirs, own in pairs]
    benchmark.group = f"cp, 50 sweeps in turn, {case}"
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(
        case=case,
        peer="ours",
        pairs=len(pairs),
        ours_median_s=statistics.median(own for _, own in pairs),
        tensorly_median_s=statistics.median(theirs for theirs, _ in pairs),
        ratio_median=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
    )
