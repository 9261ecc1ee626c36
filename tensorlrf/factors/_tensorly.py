"""To and from the types of tensorly, without copying."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError
from tensorlrf.factors._base import Factors
from tensorlrf.factors._cp import CPFactors
from tensorlrf.factors._tr import TRFactors
from tensorlrf.factors._tt import TTFactors, TTMatrix
from tensorlrf.factors._tucker import TuckerFactors
from tensorlrf.factors.arrays import as_dense
from tensorlrf.factors.trees._parafac2 import Parafac2Factors

_TRAINS: dict[str, type[TTFactors] | type[TTMatrix] | type[TRFactors]] = {
    "TTTensor": TTFactors,
    "TTMatrix": TTMatrix,
    "TRTensor": TRFactors,
}


def from_tensorly(
    decomposition: Any,
) -> CPFactors | TuckerFactors | TTFactors | TTMatrix | TRFactors | Parafac2Factors:
    """Factors of tensorly as ours; the tensors are shared, not copied.

    Parameters
    ----------
    decomposition : CPTensor, TuckerTensor, TTTensor, TTMatrix, TRTensor or Parafac2Tensor
        Of tensorly; arrays of its numpy backend are taken too. Weights of None become ones. The
        projections of a Parafac2Tensor are put together, and so copied.

    Returns
    -------
    CPFactors, TuckerFactors, TTFactors, TTMatrix, TRFactors or Parafac2Factors

    Raises
    ------
    ArgumentError
        For any other type.

    Examples
    --------
    >>> f = tensorlrf.cp(torch.ones(3, 4, 5), 1)
    >>> tensorlrf.from_tensorly(tensorlrf.to_tensorly(f)).factors[0] is f.factors[0]
    True
    """
    kind = type(decomposition).__name__
    if kind == "CPTensor":
        weights, matrices = decomposition
        factors = tuple(_dense(f) for f in matrices)
        if weights is None:
            ones = factors[0].new_ones(factors[0].shape[1])
            return CPFactors(ones, factors)
        return CPFactors(_dense(weights).to(factors[0].dtype), factors)
    if kind == "TuckerTensor":
        core, matrices = decomposition
        return TuckerFactors(_dense(core), tuple(_dense(f) for f in matrices))
    if kind == "Parafac2Tensor":
        weights, matrices, projections = decomposition
        a, b, c = (_dense(f) for f in matrices)
        parts = [_dense(p) for p in projections]
        rows = tuple(int(p.shape[0]) for p in parts)
        return Parafac2Factors(_dense(weights).to(a.dtype), (a, b, c), torch.cat(parts), rows)
    if kind in _TRAINS:
        return _TRAINS[kind](tuple(_dense(core) for core in decomposition))
    raise ArgumentError(
        f"decomposition is a {kind}; from_tensorly takes a tensorly CPTensor, TuckerTensor, "
        f"Parafac2Tensor, {', '.join(_TRAINS)}"
    )


def to_tensorly(factors: Factors) -> Any:
    """Factors as tensorly's type of that format; the tensors are shared, not copied.

    They are torch tensors: call `tensorly.set_backend("pytorch")` to compute with them. A partial
    Tucker gets identities along the modes that are left whole, since tensorly's type has no modes.

    Parameters
    ----------
    factors : CPFactors, TuckerFactors, TTFactors, TTMatrix, TRFactors or Parafac2Factors

    Returns
    -------
    CPTensor, TuckerTensor, TTTensor, TTMatrix, TRTensor or Parafac2Tensor
        Of tensorly.

    Raises
    ------
    ArgumentError
        For a format that tensorly lacks, and for what it cannot say: a train with its modes in
        another order, a TT-matrix with padding, a ring that is reshaped.
    MissingExtraError
        Where tensorly is not installed, the extra `tensorly`.

    Examples
    --------
    >>> weights, factors = tensorlrf.to_tensorly(tensorlrf.cp(torch.ones(3, 4, 5), 1))
    >>> [tuple(factor.shape) for factor in factors]
    [(3, 1), (4, 1), (5, 1)]
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
    if isinstance(factors, (TTFactors, TTMatrix, TRFactors)):
        return _train(factors)
    if isinstance(factors, Parafac2Factors):
        from tensorly import backend_context
        from tensorly.parafac2_tensor import Parafac2Tensor

        weights, matrices, projections = factors
        with backend_context("pytorch", local_threadsafe=True):  # it computes P^T P to check it
            return Parafac2Tensor((weights, list(matrices), list(projections)))
    raise ArgumentError(
        f"factors is a {type(factors).__name__}; tensorly has a type for CPFactors, TuckerFactors, "
        "TTFactors, TTMatrix, TRFactors and Parafac2Factors only"
    )


def _train(factors: TTFactors | TTMatrix | TRFactors) -> Any:
    from tensorly.tr_tensor import TRTensor
    from tensorly.tt_matrix import TTMatrix as TheirMatrix
    from tensorly.tt_tensor import TTTensor

    cores = list(factors.cores)
    if isinstance(factors, TTFactors):
        if factors.modes != tuple(range(len(cores))):
            raise ArgumentError(
                f"factors has modes={factors.modes}; a TTTensor has its modes in order"
            )
        return TTTensor(cores)
    if isinstance(factors, TTMatrix):
        if factors.shape != (math.prod(factors.row_sizes), math.prod(factors.column_sizes)):
            raise ArgumentError(f"factors is padded to {factors.shape}; a TTMatrix has no padding")
        return TheirMatrix(cores)
    if factors.shape != factors.sizes:
        raise ArgumentError(
            f"factors is reshaped to {factors.shape}; a TRTensor has one mode a core"
        )
    return TRTensor(cores)


def _dense(array: Any) -> Tensor:
    return as_dense(array, "decomposition")
