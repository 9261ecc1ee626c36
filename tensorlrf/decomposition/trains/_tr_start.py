"""Ranks of a tensor ring, and rings to start from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import thin_svd
from tensorlrf.decomposition.rank import Rank, _one_int, _share, ints, whole
from tensorlrf.decomposition.trains._tt_ranks import rank_limits
from tensorlrf.decomposition.trains._tt_sweep import train_svd
from tensorlrf.errors import RankError

NOISE = 1e-2
"""Size, relative, of what fills the slices of a bond that the start has no use for; zeros there
would stay zeros."""


def ring_ranks(rank: Rank, sizes: Sequence[int], dense: int) -> tuple[int, ...]:
    """r_0, ..., r_{N-1} of a ring with modes of `sizes`.

    An int serves every bond; a share is the largest such int whose sum n_k r^2 parameters are at
    most that part of `dense`; neither goes above the largest rank of a train, which is a ring, and
    exact there. A tuple names them, with r_0 again at the end or without; one of them may be above
    those of trains, up to what the cores on either side of its bond can tell apart.
    """
    most = max(rank_limits(sizes))
    share = _share(rank)
    if share is not None:
        r = math.isqrt(max(1, whole(share * dense / sum(sizes))))
        return (max(1, min(most, r)),) * len(sizes)
    if not isinstance(rank, Sequence) or isinstance(rank, str):
        return (min(most, _one_int(rank)),) * len(sizes)
    ranks = ints(rank)
    if len(ranks) == len(sizes) + 1:
        if ranks[0] != ranks[-1]:
            raise RankError(
                f"rank={ranks} begins with {ranks[0]} and ends with {ranks[-1]}; in a ring these "
                "are one rank"
            )
        ranks = ranks[:-1]
    elif len(ranks) != len(sizes):
        raise RankError(
            f"rank={ranks} has {len(ranks)} entries for a ring of {len(sizes)} cores; give "
            f"{len(sizes)}, or {len(sizes) + 1} with the first again at the end"
        )
    for k, r in enumerate(ranks):
        reach = min(ranks[k - 1] * sizes[k - 1], sizes[k] * ranks[(k + 1) % len(ranks)])
        if r > max(reach, most):
            raise RankError(
                f"rank={ranks} asks for {r} at bond {k}; use at most {max(reach, most)}, all that "
                "the cores on either side of it can tell apart"
            )
    return ranks


def ring_cut(
    tensor: Tensor, ranks: Sequence[int], draws: torch.Generator, mode: int
) -> list[Tensor]:
    """The cores of `ring_svd` where the first SVD is that of another mode: the ring is the same
    wherever it begins, the truncations are not."""
    turned = tensor.permute(*range(mode, tensor.ndim), *range(mode))
    cores = ring_svd(turned, (*ranks[mode:], *ranks[:mode]), draws)
    back = len(cores) - mode
    return [*cores[back:], *cores[:back]]


def ring_svd(tensor: Tensor, ranks: Sequence[int], draws: torch.Generator) -> list[Tensor]:
    """Cores (r_k, n_k, r_{k+1}) by truncated SVDs one after the other (Zhao et al. 2016,
    algorithm 1), the first bond pair from the unfolding of the first mode."""
    sizes = tuple(tensor.shape)
    n, bonds = sizes[0], (*ranks, ranks[0])
    left, values, right = thin_svd(tensor.reshape(n, -1))
    # The bonds r_0 r_1 share what the first unfolding has; r_0 is kept where they do not fit.
    r0 = min(bonds[0], len(values))
    r1 = min(bonds[1], len(values) // r0)
    kept = r0 * r1
    first = left[:, :kept].reshape(n, r0, r1).transpose(0, 1)
    rest = (values[:kept, None] * right[:kept]).reshape(r0, r1, -1).permute(1, 2, 0)
    cores = [first]
    if len(sizes) == 2:
        cores.append(rest)
    else:
        inner = (r1 * sizes[1], *sizes[2:-1], sizes[-1] * r0)
        limits = rank_limits(inner)
        inner_ranks = [min(r, limit) for r, limit in zip(bonds[2:-1], limits, strict=True)]
        inner_ranks = _reachable(inner_ranks, inner)
        train, _ = train_svd(rest.reshape(inner), inner_ranks, None)
        inside = (r1, *inner_ranks, r0)
        for core, size, (r, s) in zip(train, sizes[1:], pairwise(inside), strict=True):
            cores.append(core.reshape(r, size, s))
    return [
        _padded(core, (bonds[k], sizes[k], bonds[k + 1]), draws) for k, core in enumerate(cores)
    ]


def ring_random(
    sizes: Sequence[int], ranks: Sequence[int], norm: float, draws: torch.Generator
) -> list[Tensor]:
    """Gaussian cores, of a ring with the expected norm `norm`."""
    bonds = (*ranks, ranks[0])
    # The expected square of the norm is the product of all n_k r_k times that of the variances.
    spread = math.sqrt(math.prod(sizes) * math.prod(ranks))
    size = (norm / spread) ** (1 / len(sizes))
    return [
        size * torch.randn(r, n, s, generator=draws, dtype=torch.float64, device=draws.device)
        for n, (r, s) in zip(sizes, pairwise(bonds), strict=True)
    ]


def _reachable(ranks: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """The ranks lowered to what their neighbours allow."""
    found = list(ranks)
    for k in range(len(found)):
        found[k] = min(found[k], sizes[k] * (found[k - 1] if k else 1))
    for k in range(len(found) - 1, -1, -1):
        found[k] = min(found[k], sizes[k + 1] * (found[k + 1] if k + 1 < len(found) else 1))
    return found


def _padded(core: Tensor, shape: tuple[int, int, int], draws: torch.Generator) -> Tensor:
    if tuple(core.shape) == shape:
        return core.contiguous()
    size = NOISE * float(core.square().mean().sqrt())
    padded = torch.randn(shape, generator=draws, dtype=core.dtype, device=draws.device) * size
    padded[: core.shape[0], :, : core.shape[2]] = core
    return padded
