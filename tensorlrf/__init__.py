"""Tensor decompositions that make networks smaller and faster.

f = tensorlrf.cp(conv.weight, rank=32)                   weights to factors
layer = tensorlrf.nn.factorize(conv, "svd", 32)          factors to a running layer
small, report = tensorlrf.compress(model, keep_params=0.25, calibration=batches)
"""

from tensorlrf import decomposition, errors, factors, io, nn, ops
from tensorlrf.compression import Report, compress
from tensorlrf.decomposition import cp, svd, tucker
from tensorlrf.factors import CPFactors, LowRank, TuckerFactors, from_tensorly, to_tensorly

__version__ = "0.1.0"

__all__ = [
    "CPFactors",
    "LowRank",
    "Report",
    "TuckerFactors",
    "compress",
    "cp",
    "decomposition",
    "errors",
    "factors",
    "from_tensorly",
    "io",
    "nn",
    "ops",
    "svd",
    "to_tensorly",
    "tucker",
]
