"""A tensor that is known by a function of indices alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition._input import check_sequence
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors.arrays import as_dense

Function = Callable[[Tensor], Tensor]
"""From indices (M, N), int64 on the CPU, to values (M,)."""

_CHUNK = 1 << 18


class Values:
    """A function of indices whose values are checked and counted.

    of_tensor  the function that serves tensors instead
    """

    def __init__(self, function: Function, of_tensor: str) -> None:
        if not callable(function):
            raise ArgumentError(
                f"function is a {type(function).__name__}; pass a callable from indices (M, N) "
                f"to values (M,), or use {of_tensor}() for a tensor"
            )
        self.function = function
        self.count = 0
        self.like = torch.zeros(0, dtype=torch.float64, device="cpu")

    def __call__(self, indices: Tensor) -> Tensor:
        """Float64 values (M,) at `indices` (M, N)."""
        return torch.cat([self._some(part) for part in torch.split(indices, _CHUNK)])

    def _some(self, indices: Tensor) -> Tensor:
        m = indices.shape[0]
        # A copy, so that a function which writes into its argument does not move the pivots.
        values = self.function(indices.clone())
        at = tuple(indices[0].tolist())
        if not isinstance(values, Tensor) or not values.is_floating_point():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise ArgumentError(
                f"function returned {kind} at {m} indices, the first {at}; it must return a "
                "floating-point tensor"
            )
        as_dense(values, f"what function returned at {m} indices")
        if tuple(values.shape) != (m,):
            raise ShapeError(
                f"function returned shape {tuple(values.shape)} at {m} indices, the first {at}; "
                f"it must return ({m},), one value for each row of indices"
            )
        finite = values.isfinite()
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            raise ArgumentError(
                f"function returned {float(values[bad])} at index {tuple(indices[bad].tolist())}; "
                "its values must be finite"
            )
        self.count += m
        self.like = values.detach()[:0]
        return values.detach().to("cpu", torch.float64)

    def estimate(self, entries: Function, indices: Tensor) -> tuple[float, Tensor]:
        """Relative error of what has these `entries` over `indices` (M, N), and the index where it
        is worst."""
        truth = self(indices)
        difference = truth - entries(indices)
        norm = float(torch.linalg.vector_norm(truth))
        residual = float(torch.linalg.vector_norm(difference))
        return residual / norm if norm > 0 else residual, indices[int(difference.abs().argmax())]


def drawn(sizes: Sequence[int], m: int, draws: torch.Generator) -> Tensor:
    """Indices (m, N), uniformly and with replacement."""
    each = [torch.randint(n, (m,), generator=draws, device=draws.device) for n in sizes]
    return torch.stack(each, dim=1)


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Two sizes at least. Raises ShapeError."""
    check_sequence(shape, "shape", "(30, 30, 30)")
    sizes = tuple(shape)
    if len(sizes) < 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ShapeError(f"shape={sizes} must be two sizes at least, each an int of at least 1")
    return sizes
