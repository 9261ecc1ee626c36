"""What coupled factorisations are given: tensors with what is observed of them, and which of their
modes are one."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import as_tensor, check_sequence
from tensorlrf.decomposition.coupled._coupled_sweep import Coupled
from tensorlrf.decomposition.coupled._several import check_alike
from tensorlrf.errors import ArgumentError, ShapeError, TensorlrfWarning, warn
from tensorlrf.factors.arrays import as_dense

FIRST = object()
"""The name of what tensors share by default."""


def observed(tensors: Any, masks: Any) -> tuple[list[Tensor], list[Tensor | None]]:
    """Checked tensors with zeros where nothing is observed, and their masks."""
    if not len(tensors):
        raise ArgumentError("tensors=[] is empty; give one tensor at least")
    if masks is None:
        masks = [None] * len(tensors)
    check_sequence(masks, "masks", "[mask, None], one a tensor")
    if len(masks) != len(tensors):
        raise ArgumentError(f"masks has {len(masks)} entries for {len(tensors)} tensors")
    found: list[Tensor] = []
    seen: list[Tensor | None] = []
    for k, (tensor, mask) in enumerate(zip(tensors, masks, strict=True)):
        name = f"tensors[{k}]"
        if mask is not None:
            tensor, mask = _masked(as_dense(tensor, name), as_dense(mask, f"masks[{k}]"), k)
        found.append(as_tensor(tensor, name).detach())
        seen.append(mask)
    check_alike(found, "tensors")
    return found, seen


def _masked(tensor: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if mask.dtype != torch.bool:
        raise ArgumentError(
            f"masks[{k}] has dtype {mask.dtype}; it is True where an entry is observed, as "
            "tensor == tensor is for NaN"
        )
    if mask.shape != tensor.shape:
        raise ShapeError(
            f"masks[{k}] has shape {tuple(mask.shape)}, tensors[{k}] has {tuple(tensor.shape)}"
        )
    mask = mask.to(tensor.device)
    return tensor.detach().masked_fill(~mask, 0), mask


def named(modes: Any, tensors: Sequence[Tensor]) -> list[tuple[Hashable, ...]]:
    """The names of the modes of each tensor, of which equal ones have equal sizes."""
    if modes is None:
        modes = [(FIRST, *((k, j) for j in range(1, x.ndim))) for k, x in enumerate(tensors)]
    if isinstance(modes, str):
        raise ArgumentError(f"modes={modes!r} must be a sequence, one of names a tensor")
    check_sequence(modes, "modes", '["ijk", "im"], the names of the modes of each tensor')
    if len(modes) != len(tensors):
        raise ArgumentError(f"modes={modes!r} names {len(modes)} tensors, there are {len(tensors)}")
    names = [tuple(own) for own in modes]
    first: dict[Hashable, tuple[int, int]] = {}
    for k, (own, tensor) in enumerate(zip(names, tensors, strict=True)):
        if len(own) != tensor.ndim or len(set(own)) != len(own):
            raise ShapeError(
                f"modes[{k}]={modes[k]!r} must name the {tensor.ndim} modes of tensors[{k}], of "
                f"shape {tuple(tensor.shape)}, each by a name of its own"
            )
        for name, n in zip(own, tensor.shape, strict=True):
            where, size = first.setdefault(name, (k, int(n)))
            if size != n:
                shown = "0" if name is FIRST else repr(name)
                raise ShapeError(
                    f"mode {shown} is shared and has size {size} in tensors[{where}] but {n} in "
                    f"tensors[{k}]; bring them to one size, or give the modes two names (modes=)"
                )
    return names


def shares_of(importance: Any, count: int) -> list[float]:
    if importance is None:
        return [1.0] * count
    check_sequence(importance, "importance", "[1.0, 0.5], one a tensor")
    wrong = [
        x
        for x in importance
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 < x < math.inf
    ]
    if wrong or len(importance) != count:
        raise ArgumentError(
            f"importance={importance!r} must be {count} positive numbers, one a tensor"
        )
    return [float(x) for x in importance]


def check_slices(problem: Coupled) -> None:
    """Raise ArgumentError for a slice of which nothing is observed."""
    for name in problem.sizes:
        counts = problem.observed(name)
        if not bool((counts > 0).all()):
            k = next(k for k, part in enumerate(problem.parts) if name in part.names)
            mode = problem.parts[k].names.index(name)
            index = int((counts == 0).nonzero()[0])
            raise ArgumentError(
                f"masks hide all entries of index {index} along mode {mode} of tensors[{k}], of "
                "which nothing can be told; leave that slice out"
            )


def warn_if_open(problem: Coupled) -> None:
    masked = [part for part in problem.parts if part.mask is not None]
    seen = sum(part.count for part in problem.parts)
    free = problem.rank * sum(problem.sizes.values())
    if masked and seen < free:
        warn(
            f"rank={problem.rank} has {free:,} parameters and {seen:,} entries are observed, which "
            "cannot tell them; take a smaller rank",
            TensorlrfWarning,
        )
