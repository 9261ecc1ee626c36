"""What is asked of a value that may be factors of one kind or another: is it such a format, and
what of a format is seen by those who know no formats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError
from tensorlrf.factors._base import FORMATS, FOUND, Factors
from tensorlrf.factors._lowrank import LowRank
from tensorlrf.factors._tt import TTFactors, TTMatrix
from tensorlrf.factors.arrays import SPARSE_LAYOUTS
from tensorlrf.factors.leaves._sparse import SparseTensor

F = TypeVar("F", bound=Factors)


def check_format(value: Any, formats: tuple[type[Factors], ...], name: str, remedy: str) -> None:
    """The argument `name` is of one of these formats. Raises ArgumentError."""
    if not isinstance(value, formats):
        raise ArgumentError(f"{name} is a {type(value).__name__}; {remedy}")


def is_format(value: Any, format: type[F]) -> TypeGuard[F]:
    """Whether a value that may be a word, say, is factors of that format."""
    return isinstance(value, format)


def found_of(factors: Factors) -> dict[Any, Any]:
    """A place beside the factors, in no copy of them, for what follows from their structure: they
    are values, so it does not change."""
    own = vars(factors)
    found: dict[Any, Any] | None = own.get(FOUND)
    if found is None:
        found = own[FOUND] = {}
    return found


def is_sparse(value: Any) -> bool:
    """Whether a value is a sparse tensor: a SparseTensor, or one of torch or scipy."""
    if isinstance(value, Tensor):
        return value.layout in SPARSE_LAYOUTS
    return isinstance(value, SparseTensor) or hasattr(value, "tocoo")


def format_of(factors: Factors) -> str:
    """The name of the format, with that of the groups of a Grouped behind it."""
    of = factors.meta().get("of")
    return factors.format if of is None else f"{factors.format} {of}"


def indices_of(format: str, meta: Mapping[str, Any]) -> dict[str, torch.dtype]:
    """The tensors of factors, by the name of their format and what a file says of them, that are
    whole numbers -> dtype; none where it says nothing that could be."""
    try:
        return FORMATS[format].index_dtypes(meta) if format in FORMATS else {}
    except (ArgumentError, AttributeError, KeyError, TypeError, ValueError):
        return {}  # the factors themselves are refused where they are put together


def two_matrices(value: Factors | Tensor) -> tuple[Tensor, Tensor] | None:
    """left (m, r) and right (r, n) that the factors are; None where they are something else."""
    return (value.left, value.right) if isinstance(value, LowRank) else None


# ---- trains -------------------------------------------------------------------------------------


def layout(train: TTFactors | TTMatrix) -> str:
    """What a train has beside its shape."""
    if isinstance(train, TTFactors):
        return f"modes {train.modes}"
    return f"row sizes {train.row_sizes} and column sizes {train.column_sizes}"


def inner_cores(train: TTFactors | TTMatrix) -> list[Tensor]:
    """Cores (r, n, r') of what the train stands for, a TT-matrix with zeros as padding."""
    cores = list(train.cores)
    if isinstance(train, TTMatrix):
        sides = ((0, train.row_sizes), (1, train.column_sizes))
        for side, sizes in sides:
            if math.prod(sizes) > train.shape[side]:
                masks = below(sizes, train.shape[side], cores[0])
                spread = "rijs,piq->rpijsq" if side == 0 else "rijs,pjq->rpijsq"
                pairs = zip(cores, masks, strict=True)
                cores = [torch.einsum(spread, c, m).flatten(-2).flatten(0, 1) for c, m in pairs]
    return [c.flatten(1, -2) for c in cores]


def below(sizes: Sequence[int], n: int, like: Tensor) -> list[Tensor]:
    """Cores (p, size, q) of the train that is one at numbers below n, else zero.

    Read from the leading digit on, a number is so far equal to n - 1 (state 0) or below (state 1).
    """
    digits, rest = [], n - 1
    for size in reversed(sizes):
        digits.append(rest % size)
        rest //= size
    masks = []
    for size, digit in zip(sizes, reversed(digits), strict=True):
        core = like.new_zeros(2, size, 2)
        core[0, digit, 0] = 1
        core[0, :digit, 1] = 1
        core[1, :, 1] = 1
        masks.append(core)
    masks[0] = masks[0][:1]
    masks[-1] = masks[-1].sum(2, keepdim=True)
    return masks
