"""To and from the types of tensorly, without copying."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError
from tensorlrf.factors._base import Factors
from tensorlrf.factors._cp import CPFactors
from tensorlrf.factors._tucker import TuckerFactors


def from_tensorly(decomposition: Any) -> CPFactors | TuckerFactors:
    """A tensorly CPTensor or TuckerTensor as our factors; the tensors are shared, not copied.

    Arrays of the numpy backend are taken too. Weights of None become ones.
    Raises ArgumentError for any other type.
    """
    kind = type(decomposition).__name__
    if kind == "CPTensor":
        weights, matrices = decomposition
        factors = tuple(_as_torch(f) for f in matrices)
        if weights is None:
            ones = factors[0].new_ones(factors[0].shape[1])
            return CPFactors(ones, factors)
        return CPFactors(_as_torch(weights).to(factors[0].dtype), factors)
    if kind == "TuckerTensor":
        core, matrices = decomposition
        return TuckerFactors(_as_torch(core), tuple(_as_torch(f) for f in matrices))
    raise ArgumentError(
        f"decomposition is a {kind}; from_tensorly takes a tensorly CPTensor or TuckerTensor"
    )


def to_tensorly(factors: Factors) -> Any:
    """Our factors as tensorly's CPTensor or TuckerTensor; the tensors are shared, not copied.

    They are torch tensors: call `tensorly.set_backend("pytorch")` to compute with them. A partial
    Tucker gets identities along the modes that are left whole, since tensorly's type has no modes.
    Raises ArgumentError for a format that tensorly lacks.
    """
    if isinstance(factors, CPFactors):
        from tensorly.cp_tensor import CPTensor

        return CPTensor((factors.weights, list(factors.factors)))
    if isinstance(factors, TuckerFactors):
        from tensorly.tucker_tensor import TuckerTensor

        given = dict(zip(factors.modes, factors.factors, strict=True))
        matrices = [
            given[k] if k in given else torch.eye(n, dtype=factors.dtype, device=factors.device)
            for k, n in enumerate(factors.core.shape)
        ]
        return TuckerTensor((factors.core, matrices))
    raise ArgumentError(
        f"factors is a {type(factors).__name__}; tensorly has a type for CPFactors and "
        "TuckerFactors only"
    )


def _as_torch(array: Any) -> Tensor:
    return array if isinstance(array, Tensor) else torch.as_tensor(array)
