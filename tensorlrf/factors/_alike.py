"""Factors of one structure, whose tensors are stacked."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors


def stacked(word: str, each: tuple[Factors, ...], whole: type[Factors]) -> dict[str, Tensor]:
    """The tensors of the factors of each "place" or "group", which are no `whole` themselves, by
    name, with a dimension in front. Raises ArgumentError or ShapeError where they are none, or
    differ."""
    if not each:
        raise ArgumentError(f"{word}s=() is empty; give the factors of one {word} at least")
    first = each[0]
    if isinstance(first, Factors) and not first.indices.isdisjoint(first.tensors()):
        raise ArgumentError(
            f"{word}s[0] is a {type(first).__name__} with indices, which the {word}s do not have "
            "in common; use svd for these"
        )
    for k, f in enumerate(each):
        if not isinstance(f, Factors) or isinstance(f, whole):
            raise ArgumentError(
                f"{word}s[{k}] is a {type(f).__name__}; pass the factors of one {word}, such as "
                "LowRank"
            )
        if type(f) is not type(first):
            raise ArgumentError(
                f"{word}s[{k}] is a {type(f).__name__}, {word}s[0] a {type(first).__name__}; all "
                f"{word}s must have one format"
            )
        if f.shape != first.shape or f.rank != first.rank or f.meta() != first.meta():
            raise ShapeError(
                f"{word}s[{k}] has shape {f.shape} and rank {f.rank}, {word}s[0] {first.shape} "
                f"and {first.rank}; all {word}s must have the same"
            )
        if f.dtype != first.dtype or f.device != first.device:
            raise ArgumentError(
                f"{word}s[{k}] is {f.dtype} on {f.device}, {word}s[0] {first.dtype} on "
                f"{first.device}; bring them together with .to()"
            )
    named = [f.tensors() for f in each]
    return {name: torch.stack([tensors[name] for tensors in named]) for name in named[0]}
