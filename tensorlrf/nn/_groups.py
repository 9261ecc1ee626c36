"""Decompositions of the weight of a convolution with groups: one a group, all of one rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from tensorlrf.decomposition.rank import Rank
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors, Grouped


def decompose_groups(
    decompose: Callable[..., Factors],
    weight: Tensor,
    groups: int,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    sizes_of: Callable[[Factors], dict[str, Any]] = lambda _: {},
    **options: Any,
) -> Grouped:
    """The weight (g m, n_1, ...) of g groups, each (m, n_1, ...) decomposed for itself.

    decompose  as `svd`: (tensor, rank, error=, **options) to factors
    rank       of one group; a share is one of the parameters of each group, and so of the whole
    error      for each group: the largest rank that any group needs for it is given to all
    sizes_of   the options by which factors get the sizes of given ones: groups have in common those
               that most of them choose
    options    of the decomposition; gram= has one matrix a group, (g, n, n)

    Raises ShapeError where the weight does not split into `groups`, and what `decompose` raises.
    """
    if groups < 1 or weight.ndim == 0 or weight.shape[0] % groups:
        raise ShapeError(
            f"weight has shape {tuple(weight.shape)}; its first dimension must be a multiple of "
            f"groups={groups}"
        )
    blocks = weight.reshape(groups, -1, *weight.shape[1:]).unbind()
    own = [_options_of(options, k, groups) for k in range(groups)]
    fits = [
        decompose(block, rank, error=error, **given)
        for block, given in zip(blocks, own, strict=True)
    ]
    sizes = [sizes_of(f) for f in fits]
    common = max(sizes, key=sizes.count)
    own = [{**given, **common} for given in own]
    if error is not None:
        fits = [
            f if s == common else decompose(block, error=error, **given)
            for f, s, block, given in zip(fits, sizes, blocks, own, strict=True)
        ]
        sizes = [common] * groups
        most = _largest([f.rank for f in fits])
    else:
        most = fits[sizes.index(common)].rank
    fits = [
        f if s == common and f.rank == most else decompose(block, most, **given)
        for f, s, block, given in zip(fits, sizes, blocks, own, strict=True)
    ]
    return Grouped.stack(fits)


def _options_of(options: Mapping[str, Any], k: int, groups: int) -> dict[str, Any]:
    """The options of group k."""
    gram = options.get("gram")
    if gram is None:
        return dict(options)
    if not isinstance(gram, Tensor):
        raise ArgumentError(f"gram is a {type(gram).__name__}; pass a torch.Tensor")
    if gram.ndim != 3 or gram.shape[0] != groups:
        raise ShapeError(
            f"gram has shape {tuple(gram.shape)}; a convolution of {groups} groups needs one "
            f"matrix a group, ({groups}, n, n)"
        )
    return {**options, "gram": gram[k]}


def _largest(ranks: list[int | tuple[int, ...]]) -> int | tuple[int, ...]:
    if isinstance(ranks[0], int):
        return max(r for r in ranks if isinstance(r, int))
    return tuple(map(max, zip(*(r for r in ranks if not isinstance(r, int)), strict=True)))
