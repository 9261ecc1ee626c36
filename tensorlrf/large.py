"""Decompositions of tensors that do not fit into memory, or lie with several ranks.

f = tensorlrf.large.cp("tensor.npy", 16, memory_limit="512MB")     read in slabs
f = tensorlrf.large.tucker(dtensor, 8)                             one shard a rank
"""

from tensorlrf.decomposition.large import (
    Divided,
    LargeFit,
    Sharded,
    Slabs,
    cp,
    fit_cp,
    fit_svd,
    fit_tt,
    fit_tucker,
    svd,
    tt,
    tucker,
)

__all__ = [
    "Divided",
    "LargeFit",
    "Sharded",
    "Slabs",
    "cp",
    "fit_cp",
    "fit_svd",
    "fit_tt",
    "fit_tucker",
    "svd",
    "tt",
    "tucker",
]
