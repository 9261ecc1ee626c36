"""Every way to decompose a matrix (16, 12), as a call of the weight and a rank that suits it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tensorlrf import decomposition as d
from tensorlrf.factors import Factors
from tests.draws import seeded
from tests.metrics import second_moments

SHARE, COUNT = 0.6, 3


def matrix(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return seeded(16, 12, seed=seed, dtype=dtype)


def gram_of_inputs() -> Tensor:
    """Of 60 inputs of the matrix."""
    return second_moments(seeded(12, 60, seed=1))


PLAIN: dict[str, Callable[..., Any]] = {
    "svd": d.svd,
    "svd sketched": partial(d.svd, solver="randomized", random_state=0),
    "cp": partial(d.cp, n_iter_max=5, random_state=0),
    "cp from svd": partial(d.cp, n_iter_max=5, init="svd"),
    "cprand": partial(d.cp, n_iter_max=5, solver="cprand", random_state=0),
    "leverage": partial(d.cp, n_iter_max=5, solver="leverage", random_state=0),
    "tucker": d.tucker,
    "hosvd": partial(d.tucker, solver="hosvd"),
    "tucker sketched": partial(d.tucker, solver="randomized", random_state=0),
    "tt": d.tt,
    "tt_matrix": d.tt_matrix,
    "tr": partial(d.tr, random_state=0),
    "kron": d.kron,
    "blr": d.blr,
    "hierarchical": partial(d.hierarchical, leaf=4, random_state=0),
    "hodlr": partial(d.hodlr, leaf=4, random_state=0),
    "monarch": d.monarch,
    "blast": partial(d.blast, random_state=0),
    "group_reduce": d.group_reduce,
    "interpolative": partial(d.interpolative, random_state=0),
    "cur": partial(d.cur, random_state=0),
    "nystrom": lambda w, rank: d.nystrom(w @ w.T, rank, random_state=0),
    "lplr": partial(d.lplr, n_iter_max=4),
    "staged": d.staged,
    "low_rank_plus_sparse": d.low_rank_plus_sparse,
    "low_rank_plus_quantized": d.low_rank_plus_quantized,
    "hierarchical_tucker": d.hierarchical_tucker,
    "nmf": lambda w, rank: d.nmf(abs(w), rank, random_state=0),
    "constrained_cp": partial(d.constrained_cp, n_iter_max=5, random_state=0),
    "nonnegative_tucker": partial(d.nonnegative_tucker, n_iter_max=5, random_state=0),
    "symmetric_cp": lambda w, rank: d.symmetric_cp(w @ w.T, rank, random_state=0),
    "dictionary": partial(d.dictionary, n_iter_max=3),
    "block_term": partial(d.block_term, n_iter_max=5, random_state=0),
    "nonnegative_cp": partial(d.nonnegative_cp, n_iter_max=5, random_state=0),
    "generalized_cp": partial(d.generalized_cp, n_iter_max=5, random_state=0),
    "cp_apr": lambda w, rank: d.cp_apr(abs(w), rank, n_iter_max=5, random_state=0),
}
IN_METRIC = {
    f"{name} in a metric": (lambda w, rank, f=PLAIN[name]: f(w, rank, gram=gram_of_inputs()))
    for name in ("svd", "cp", "tucker", "tt", "tt_matrix", "tr", "kron", "blr", "monarch", "blast")
}
EVERY = {**PLAIN, **IN_METRIC}

BY_SHARE = ("blr", "hierarchical", "hodlr", "monarch", "blast")
"""Those whose rank is a share of the parameters here."""


def rank_of(name: str) -> Any:
    return SHARE if name.startswith(BY_SHARE) else COUNT


def decomposed(name: str, weight: Any) -> Factors:
    found: Factors = EVERY[name](weight, rank_of(name))
    return found
