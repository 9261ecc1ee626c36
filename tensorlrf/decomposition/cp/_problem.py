"""A CP problem made ready: checked tensor, memory order, scale, start, and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.cp._residual import square_residuals
from tensorlrf.decomposition.cp._start import given_start, matrix_start, random_start, svd_start
from tensorlrf.decomposition.cp._state import CPState, make_state, unit_columns
from tensorlrf.decomposition.linalg.multilinear._columns import spread_weights
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.decomposition.linalg.multilinear._residual import norm_of
from tensorlrf.factors import CPFactors

# A tensor whose norm lies outside is decomposed as a rescaled copy, so that squares of its entries
# neither overflow nor vanish.
_SAFE_NORM = {torch.float32: 1e12, torch.float64: 1e120}


@dataclass(frozen=True)
class Problem:
    """What ALS works on.

    data    the tensor through its mode cut, modes in memory order, in the working dtype
    order   data's mode i is the user's mode order[i]
    norm    ||data||
    scale   the user's tensor is scale * data
    dtype   of the user's tensor, and so of the result
    """

    data: CutTensor
    order: tuple[int, ...]
    norm: float
    scale: float
    dtype: torch.dtype

    @property
    def tensor(self) -> Tensor:
        """The data with its modes apart."""
        return self.data.blocks.reshape(self.data.shape)

    def error(self, state: CPState) -> float:
        """True relative error of one start (absolute for a zero tensor)."""
        residual = math.sqrt(float(square_residuals(self.data, state)[0]))
        return residual / (self.norm if self.norm > 0 else 1.0)

    def start(
        self,
        init: Any,
        rank: int,
        starts: int,
        fixed: frozenset[int],
        rng: torch.Generator,
    ) -> CPState:
        """The first iterates, given ones of any scale; `fixed` counts in memory order."""
        tensor = self.tensor
        if not isinstance(init, str):
            factors = [init.factors[k] for k in self.order]
            return given_start(init.weights, factors, tensor, fixed, rng)
        if tensor.ndim == 2:
            return matrix_start(tensor, rank)
        make = svd_start if init == "svd" else random_start
        return make(tensor, rank, starts, rng)

    def state_of(self, factors: CPFactors) -> CPState:
        """The state of factors that this problem made, to go on from or to measure."""
        columns = [factors.factors[k].to(self.data.blocks.dtype)[:, None, :] for k in self.order]
        return make_state(columns, factors.weights.to(torch.float64)[None, :] / self.scale)

    def factors(self, state: CPState, kept: dict[int, Tensor] | None = None) -> CPFactors:
        """One start as the user's CPFactors: unit columns, weights from the largest down.

        `kept` holds the factors of fixed modes (in memory order), which go back untouched, columns
        in their order; the weights then stand for what those columns leave.
        """
        return as_factors(state, self.scale, self.dtype, self.order, kept)


def as_factors(
    state: CPState,
    scale: float,
    dtype: torch.dtype,
    order: tuple[int, ...],
    kept: dict[int, Tensor] | None = None,
) -> CPFactors:
    """One start as factors in `dtype` of `scale` times the data, see `Problem.factors`."""
    weights = state.weights[0] * scale
    factors = [u[:, 0] for u in state.factors]
    if kept:
        for k, given in kept.items():
            length = unit_columns(given)[1]
            weights = torch.where(length > 0, weights / length, 0.0)
            factors[k] = given
    else:
        largest = weights.abs().argsort(descending=True, stable=True)
        weights = weights[largest]
        factors = [u.index_select(1, largest) for u in factors]
    factors, weights = spread_weights(factors, weights, dtype, kept or {})
    back = sorted(range(len(order)), key=order.__getitem__)
    return CPFactors(weights.to(dtype), tuple(factors[i].to(dtype) for i in back))


def pose(tensor: Tensor) -> Problem:
    """The problem of a checked tensor.

    The tensor is copied only where its dtype must be raised, where it is not dense in memory, or
    where its scale is extreme.
    """
    data = tensor.detach().to(working_dtype(tensor.dtype))
    order = tuple(range(data.ndim))
    if not data.is_contiguous():
        strides = data.stride()
        order = tuple(sorted(order, key=lambda k: (-strides[k], k)))
        data = data.permute(order).contiguous()
    cut = CutTensor.of(data)
    norm, scale = norm_of(cut), 1.0
    safe = _SAFE_NORM[data.dtype]
    if not (norm == 0 or 1 / safe < norm < safe):
        scale = float(data.abs().max())
    if norm == 0 and bool(data.any()):  # squares vanished
        scale = float(data.abs().max())
    if scale != 1.0:
        cut = CutTensor(cut.cut, cut.blocks / scale)
        norm = norm_of(cut)
    return Problem(cut, order, norm, scale, tensor.dtype)
