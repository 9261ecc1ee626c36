"""A matrix in few bits as a step of a fit: what its codes stand for, and what is stored of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._target import Target
from tensorlrf.factors import Quantized
from tensorlrf.factors.leaves.codes import (
    DENSE,
    WEIGHT,
    Sizes,
    blocks_of,
    decoded,
    encoded,
    named_parts,
)


@dataclass(frozen=True)
class Coded:
    """A matrix (rows, columns) of a target in codes, with the scales that the result will have.

    value  what they stand for, in the dtype that the fit works in
    """

    value: Tensor
    scales: Tensor
    held: Tensor

    @property
    def sizes(self) -> Sizes:
        a, b = self.scales.shape
        return tuple(self.value.shape), (a, b)

    def parts(self, name: str) -> dict[str, Tensor]:
        return named_parts(name, self.scales, self.held)


@dataclass(frozen=True)
class Coder:
    """How the matrices of one fit are brought into codes.

    scale  what a matrix is multiplied by to be one of the weight, a power of two
    dtype  of the weight, which scales have
    """

    codes: str
    group: int | None
    scale: float
    dtype: torch.dtype

    @classmethod
    def of_sides(cls, target: Target[Any], codes: str, group: int | None) -> Coder:
        """For two factors of the weight."""
        return cls(codes, group, target.root, target.dtype)

    @classmethod
    def of_weight(cls, target: Target[Any], codes: str, group: int | None) -> Coder:
        """For a matrix as it is."""
        return cls(codes, group, target.scale, target.dtype)

    def code(self, matrix: Tensor, name: str, *, by_rows: bool = False) -> Coded:
        """In the nearest codes."""
        rows, columns = matrix.shape
        blocks = blocks_of((rows, columns), self.group, name, by_rows=by_rows)
        scales, held = encoded(matrix * self.scale, self.codes, blocks, self.dtype)
        value = decoded(held, scales.to(matrix.dtype), columns, self.codes) / self.scale
        return Coded(value, scales, held)


def low_rank(left: Coded, right: Coded, codes: str, shape: tuple[int, ...]) -> Quantized:
    """The product of two coded matrices, as factors."""
    parts = {**left.parts("left"), **right.parts("right")}
    sizes = {"left": left.sizes, "right": right.sizes}
    return Quantized(parts, "lowrank", codes, {"shape": list(shape)}, sizes)


def matrix_of(coded: Coded, codes: str, shape: tuple[int, ...]) -> Quantized:
    """A coded matrix as it is, as factors."""
    sizes = {WEIGHT: coded.sizes}
    return Quantized(coded.parts(WEIGHT), DENSE, codes, {"shape": list(shape)}, sizes)
