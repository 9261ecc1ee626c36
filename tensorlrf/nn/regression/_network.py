"""A contraction of an input with tensors, as a list of pairwise products that is made once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.errors import ShapeError

ROWS = 64
"""Of the input for which the order of the products is chosen."""


@dataclass(frozen=True)
class Network:
    """Products in the order that opt_einsum finds (Smith & Gray 2018).

    steps  which of the operands are multiplied, the last ones first, and by which einsum; what
           comes out is a last operand
    """

    steps: tuple[tuple[tuple[int, ...], str], ...]

    @classmethod
    def of(cls, expression: str, shapes: Sequence[Sequence[int]]) -> Network:
        """For operands of these shapes, an einsum with an explicit output."""
        from opt_einsum import contract_path

        _, info = contract_path(expression, *map(tuple, shapes), shapes=True, optimize="auto")
        return cls(tuple((tuple(which), str(one)) for which, _, one, *_ in info.contraction_list))

    def run(self, operands: Sequence[Tensor]) -> Tensor:
        """Straight code for a compiler: what it looks at was settled before."""
        left = list(operands)
        for which, expression in self.steps:
            left.append(torch.einsum(expression, *[left.pop(k) for k in which]))
        return left[0]


def symbols() -> Iterator[str]:
    """Letters, each once."""
    from opt_einsum import get_symbol

    k = 0
    while True:
        yield get_symbol(k)
        k += 1


def as_rows(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(..., *shape) as (rows, *shape). Raises ShapeError."""
    if x.ndim < len(shape) or tuple(x.shape[x.ndim - len(shape) :]) != shape:
        raise ShapeError(
            f"input has shape {tuple(x.shape)}; its last {len(shape)} dimensions must be {shape}"
        )
    return x.reshape(math.prod(x.shape[: x.ndim - len(shape)]), *shape)
