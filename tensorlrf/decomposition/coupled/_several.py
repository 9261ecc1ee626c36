"""Several tensors that are decomposed together: checked one by one, and against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import as_tensor, check_sequence
from tensorlrf.decomposition.rank import plain
from tensorlrf.errors import ArgumentError, RankError


def together(values: Any, name: str, such_as: str) -> list[Tensor]:
    """Tensors of a sequence, without a graph, of one dtype and device.

    Raises ArgumentError for what is no sequence or empty, and with its place for a tensor that is
    not like the first, or cannot be decomposed.
    """
    check_sequence(values, name, such_as)
    if not values:
        raise ArgumentError(f"{name}=[] is empty; give one tensor at least")
    found = [as_tensor(value, f"{name}[{k}]").detach() for k, value in enumerate(values)]
    check_alike(found, name)
    return found


def check_alike(tensors: Sequence[Tensor], name: str) -> None:
    """All of one dtype, on one device. Raises ArgumentError with the first that is not."""
    first = tensors[0]
    for k, one in enumerate(tensors):
        if one.dtype != first.dtype or one.device != first.device:
            raise ArgumentError(
                f"{name}[{k}] is {one.dtype} on {one.device} but {name}[0] is {first.dtype} on "
                f"{first.device}; bring them together with .to()"
            )


def count_of_terms(rank: Any) -> int:
    """An int of at least one. Raises RankError."""
    rank = plain(rank, "rank")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise RankError(f"rank={rank!r} must be an int of at least 1, the number of components")
    return rank


def unit_columns(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(n, r) with columns of length one, but for those of zeros, and their lengths (r,)."""
    norms = torch.linalg.vector_norm(matrix, dim=0)
    return matrix / torch.where(norms > 0, norms, 1), norms
