"""Sums and inner products of tensor trains, core by core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import TTFactors, TTMatrix
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.factors.kinds import check_format, inner_cores, layout

Train = TypeVar("Train", TTFactors, TTMatrix)


@without_autocast()
@threaded
def tt_add(first: Train, second: Train) -> Train:
    """The sum of two trains, whose ranks add up.

    Parameters
    ----------
    first, second : TTFactors or TTMatrix
        TTFactors of one shape and one order of modes, or TTMatrix of one shape and equal sizes of
        digits; of one dtype, on one device.

    Returns
    -------
    TTFactors or TTMatrix
        Part of the autograd graph if they are.

    Raises
    ------
    ShapeError, ArgumentError
        Where they do not go together.

    References
    ----------
    Oseledets 2011, section 4.1.

    Examples
    --------
    >>> f = tensorlrf.tt(torch.rand(4, 5, 6), 2)
    >>> tensorlrf.decomposition.tt_add(f, f).rank
    (1, 4, 4, 1)
    """
    check_alike(first, second)
    last = len(first.cores) - 1
    if last == 0:
        return rebuilt(first, [first.cores[0] + second.cores[0]])
    cores = []
    for k, (a, b) in enumerate(zip(first.cores, second.cores, strict=True)):
        if k == 0:
            cores.append(torch.cat([a, b], dim=-1))
        elif k == last:
            cores.append(torch.cat([a, b], dim=0))
        else:
            upper = torch.cat([a, a.new_zeros(*a.shape[:-1], b.shape[-1])], dim=-1)
            lower = torch.cat([b.new_zeros(*b.shape[:-1], a.shape[-1]), b], dim=-1)
            cores.append(torch.cat([upper, lower], dim=0))
    return rebuilt(first, cores)


@without_autocast()
@threaded
def tt_inner(first: Train, second: Train) -> Tensor:
    """The inner product of what two trains stand for.

    Summed in float64 without the whole, from O(N n r^3) multiply-adds; in float32 where the trains
    are of a shorter dtype, else in theirs. Padding of a TT-matrix does not count.

    Parameters
    ----------
    first, second : TTFactors or TTMatrix
        As for `tt_add`.

    Returns
    -------
    Tensor
        0-d; part of the autograd graph if the trains are.

    Raises
    ------
    ShapeError, ArgumentError
        Where the trains do not go together (see `tt_add`).

    References
    ----------
    Oseledets 2011, algorithm 4.

    Examples
    --------
    >>> f = tensorlrf.tt(torch.rand(4, 5, 6), 2)
    >>> squared = tensorlrf.decomposition.tt_inner(f, f)
    >>> torch.allclose(squared, f.to_dense().square().sum(), rtol=1e-4)
    True
    """
    check_alike(first, second)
    left = [c.to(torch.float64) for c in inner_cores(first)]
    right = [c.flatten(1, -2).to(torch.float64) for c in second.cores]
    product = left[0].new_ones(1, 1)
    for a, b in zip(left, right, strict=True):
        half = torch.tensordot(product, b, 1)  # (r, n, s')
        product = a.flatten(0, 1).T @ half.flatten(0, 1)  # (r', s')
    return product.reshape(()).to(working_dtype(first.dtype))


def check_alike(first: Train, second: Train) -> None:
    """Two trains of one kind, with equal sizes, dtype and device."""
    for name, train in (("first", first), ("second", second)):
        check_format(train, (TTFactors, TTMatrix), name, "pass TTFactors or a TTMatrix")
    if type(first) is not type(second):
        raise ArgumentError(
            f"first is a {type(first).__name__} and second a {type(second).__name__}; "
            "both must be of one kind"
        )
    if first.shape != second.shape or layout(first) != layout(second):
        raise ShapeError(
            f"first has shape {first.shape} with {layout(first)}, second has {second.shape} with "
            f"{layout(second)}; both must be alike"
        )
    if first.dtype != second.dtype or first.device != second.device:
        raise ArgumentError(
            f"first is {first.dtype} on {first.device}, second is {second.dtype} on "
            f"{second.device}; bring them together with .to()"
        )


def rebuilt(like: Train, cores: Sequence[Tensor]) -> Train:
    """A train of the kind of `like` from cores (r, ..., r') or (r, sizes multiplied, r')."""
    named = {
        f"cores.{k}": c.reshape(c.shape[0], *old.shape[1:-1], c.shape[-1])
        for k, (c, old) in enumerate(zip(cores, like.cores, strict=True))
    }
    return like.from_tensors(named, like.meta())
