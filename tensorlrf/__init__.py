"""Tensor decompositions that make networks smaller and faster.

f = tensorlrf.cp(conv.weight, rank=32)                   weights to factors
layer = tensorlrf.nn.factorize(conv, "svd", 32)          factors to a running layer
small, report = tensorlrf.compress(model, keep_params=0.25, calibration=batches)
"""

from tensorlrf import decomposition, errors, factors, io, nn, ops
from tensorlrf.compression import (
    CP,
    SVD,
    Auto,
    FileReport,
    Plan,
    Report,
    Tucker,
    Tuning,
    apply,
    compress,
    compress_,
    densify,
    export,
    inspect,
    load,
    plan,
    save,
    tune,
)
from tensorlrf.decomposition import cp, svd, tucker
from tensorlrf.factors import CPFactors, LowRank, TuckerFactors, from_tensorly, to_tensorly

__version__ = "0.1.0"

__all__ = [
    "CP",
    "SVD",
    "Auto",
    "CPFactors",
    "FileReport",
    "LowRank",
    "Plan",
    "Report",
    "Tucker",
    "TuckerFactors",
    "Tuning",
    "apply",
    "compress",
    "compress_",
    "cp",
    "decomposition",
    "densify",
    "errors",
    "export",
    "factors",
    "from_tensorly",
    "inspect",
    "io",
    "load",
    "nn",
    "ops",
    "plan",
    "save",
    "svd",
    "to_tensorly",
    "tucker",
    "tune",
]
