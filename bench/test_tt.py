"""Tensor trains by TT-SVD beside tensorly `tensor_train` on the torch backend, float32, at equal
ranks: time in turn and the true error.

torchTT takes the place of a second peer where it can be imported; it is no requirement (without a
compiler it is had by `pip install --no-build-isolation --no-deps torchTT==0.5.0`). The floor is the
Gram matrix of the first or the last unfolding, whichever is smaller: one look at the tensor. The
kernel is given in the order (O, kw, kh, I) in which a train of it is four convolutions.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.test_cp import tensorly_on_torch
from bench.test_tucker import noisy
from bench.turns import FLOOR, Turns
from tensorlrf.decomposition import tt
from tensorlrf.factors import TTFactors

ROUNDS = 9
HAS_TORCHTT = importlib.util.find_spec("torchtt") is not None
PEERS = ("ours", "tensorly", *(("torchTT",) if HAS_TORCHTT else ()), FLOOR)


def kernel() -> Tensor:
    """256 x 256 x 3 x 3, channels mixed by 96 of each side, and white noise of half its norm."""
    made = noisy((256, 256, 3, 3), (0, 1), (64, 64))
    return made.permute(0, 3, 2, 1).contiguous()


def pines() -> Tensor:
    """The hyperspectral image of Indian pines (Baumgardner, Biehl & Landgrebe 2015)."""
    tensorly_on_torch()
    from tensorly import datasets

    return torch.as_tensor(datasets.load_indian_pines().tensor, dtype=torch.float32)


def planted() -> Tensor:
    """20^5: a Gaussian train of rank 12, and white noise of a tenth of its norm."""
    draws = torch.Generator().manual_seed(0)
    ranks = (1, 12, 12, 12, 12, 1)
    cores = tuple(torch.randn(ranks[k], 20, ranks[k + 1], generator=draws) for k in range(5))
    whole = TTFactors(cores).to_dense()
    white = torch.randn(whole.shape, generator=draws)
    return whole.add_(white, alpha=0.1 * float(whole.norm() / white.norm()))


CASES: dict[str, tuple[Callable[[], Tensor], tuple[int, ...]]] = {
    "256x3x3x256 r64": (kernel, (64, 64, 64)),
    "Indian pines 145x145x200 r20": (pines, (20, 20)),
    "20^5 r12": (planted, (12, 12, 12, 12)),
}


@lru_cache(maxsize=1)
def measured(case: str) -> tuple[Tensor, Turns]:
    make, ranks = CASES[case]
    tensor = make()
    tensorly = tensorly_on_torch()

    def theirs() -> TTFactors:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = tensorly.decomposition.tensor_train(tensor, [1, *ranks, 1])
        return TTFactors(tuple(found.factors))

    def torchtt() -> TTFactors:
        import torchtt as library

        found = library.TT(tensor, eps=0.0, rmax=[1, *ranks, 1])
        return TTFactors(tuple(found.cores))

    def floor() -> Tensor:
        first, last = tensor.flatten(1), tensor.flatten(0, -2)
        return first @ first.T if len(first) <= last.shape[1] else last.T @ last

    calls = {"ours": lambda: tt(tensor, ranks), "tensorly": theirs, "torchTT": torchtt}
    calls[FLOOR] = floor
    return tensor, Turns.take({name: calls[name] for name in PEERS}, ROUNDS)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", CASES)
def test_tt(benchmark: Any, case: str, peer: str) -> None:
    tensor, turns = measured(case)
    found = turns.results[peer]
    error = None if peer == FLOOR else found.rel_error(tensor)
    turns.row(benchmark, case, peer, "tensorly", rel_error=error)
