"""The products of a recurrent layer's directions at every step, made for all of them at once.

A step at batch one is as long as its calls: two directions in one are half as many, and factors
that are laid side by side beforehand need no module to be called. Directions of unequal ranks get
zeros up to the largest. A direction alone keeps its matrices where they are, without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.factors.kinds import two_matrices
from tensorlrf.nn._layer import FactoredLayer


def beside(tensors: Sequence[Tensor]) -> Tensor:
    """(turns, ...) of all, or the one there is, as it is."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0]


@dataclass(frozen=True)
class Abreast:
    """Linear layers of equal sizes, one for each direction.

    matrices  to be multiplied by from the right, one after the other: each (turns, in, out), of one
              direction (in, out)
    bias      (turns, 1, out) or (out,), or None
    """

    matrices: tuple[Tensor, ...]
    bias: Tensor | None

    @classmethod
    def of(cls, layers: Sequence[Any], x: Tensor) -> Abreast | None:
        """Of layers that are all dense, or all of low rank and run as a chain on rows x; None for
        others."""
        found = [_matrices(layer, x) for layer in layers]
        if any(each is None for each in found) or len({len(each or ()) for each in found}) > 1:
            return None
        chains = [each for each in found if each is not None]
        if len(layers) == 1:
            return cls(chains[0], layers[0].bias)
        rank = max(each[0].shape[-1] for each in chains)
        matrices = []
        for k, parts in enumerate(zip(*chains, strict=True)):
            if len(chains[0]) == 2:  # (in, r) and (r, out)
                parts = tuple(_widened(part, rank, dim=1 - k) for part in parts)
            matrices.append(torch.stack(parts))
        biases = [layer.bias for layer in layers]
        bias = None
        if any(b is not None for b in biases):
            zeros = matrices[-1].new_zeros(matrices[-1].shape[-1])
            bias = torch.stack([zeros if b is None else b for b in biases])[:, None]
        return cls(tuple(matrices), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """(turns, rows, in) to (turns, rows, out); of one direction without the turns."""
        return self.onto(self.bias, x)

    def onto(self, start: Tensor | None, x: Tensor) -> Tensor:
        """The product without the bias, added to what is given of its shape or that of a bias."""
        *first, last = self.matrices
        for matrix in first:
            x = x @ matrix
        if start is None:
            return x @ last
        return (torch.baddbmm if x.ndim == 3 else torch.addmm)(start, x, last)


def _matrices(layer: Any, x: Tensor) -> tuple[Tensor, ...] | None:
    """By which rows are multiplied, one after the other."""
    if type(layer) is nn.Linear:
        return (layer.weight.mT,)
    pair = two_matrices(layer.factors) if isinstance(layer, FactoredLayer) else None
    if pair is None or layer._path(x) != "chain":
        return None
    left, right = pair
    return right.mT, left.mT


def _widened(matrix: Tensor, size: int, dim: int) -> Tensor:
    """With zeros behind it, up to a size."""
    missing = size - matrix.shape[dim]
    if not missing:
        return matrix
    return F.pad(matrix, (0, missing) if dim == 1 else (0, 0, 0, missing))
