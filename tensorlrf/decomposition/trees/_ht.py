"""Hierarchical Tucker by truncation from the leaves to the root."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor, working_dtype
from tensorlrf.decomposition._search import out_of_reach
from tensorlrf.decomposition.linalg._budget import TruncationBudget, within_after_rounding
from tensorlrf.decomposition.linalg._gram import left_vectors, scale_of
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.rank import Rank, _one_int, _share, check_rank_or_error, ints
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import HTFactors
from tensorlrf.factors.algebra import mode_product, share_norm
from tensorlrf.factors.trees import tree as trees

TREES = {"balanced": trees.balanced, "train": trees.in_a_chain}


@method(
    "hierarchical_tucker",
    gives=HTFactors,
    on={"tensor"},
    law="no error above sqrt(2 d - 3) times the best; exact at true ranks",
    measured="field_formats: hierarchical",
)
def fit_hierarchical_tucker(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    tree: Any = "balanced",
) -> Fit[HTFactors]:
    """Nested bases of groups of modes, from single modes up a binary tree (hierarchical Tucker).

    Leaves and inner nodes are truncated one after the other, each before the one above it, in what
    those before it have left: the squared errors add up. Bases are orthonormal up to powers of two,
    the root has the norm. Storage is linear in the number of modes, like that of a train, with no
    two modes further apart than the depth of the tree.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_0, ..., n_{d-1}), d >= 2
    rank : int, tuple, float or str, optional
        An int for every node, clipped to what a node can have; a tuple, one for each node but the
        root, each before what is below it (`HTFactors.rank`, with or without the 1 of the root); a
        share of the parameters in (0, 1]; "same"; or instead
    error : float, optional
        Relative error of the whole to stay within: each truncation gets an equal part of the
        squared error that is left, and hands on what it does not use.
    tree : str or nested tuple
        "balanced": halves of halves; "train": modes split off one by one, a tensor train with a
        basis for every mode (TT-Tucker); or pairs with modes as leaves, ((0, 2), (1, 3)).

    Returns
    -------
    HTFactors
        Of `fit_hierarchical_tucker` a `Fit` with the relative error.

    Raises
    ------
    RankError
        For ranks below one, of a wrong number, or above what their node allows, which is named.
    ArgumentError, ShapeError
        For what cannot be decomposed, and a tree that does not have each mode once.

    Warns
    -----
    TensorlrfWarning
        Where rounding to the dtype of `tensor` keeps `error` out of reach.

    Notes
    -----
    With 2 d - 3 truncations the error is at most sqrt(2 d - 3) times that of the best tensor of
    these ranks (Grasedyck 2010, theorem 3.11).

    References
    ----------
    Grasedyck 2010, algorithm 1 of section 3; Dolgov & Khoromskij 2013 (TT-Tucker).

    Examples
    --------
    >>> tensor = torch.ones(4, 5, 6, 3) + torch.arange(3.0)
    >>> f = tensorlrf.hierarchical_tucker(tensor, error=1e-4)
    >>> f.rank, f.tree
    ((1, 1, 1, 1, 1, 1, 1), ((0, 1), (2, 3)))
    """
    tensor = as_tensor(tensor).detach()
    rank, error = check_rank_or_error(rank, error, tensor.dtype)
    shape = tuple(int(n) for n in tensor.shape)
    chosen = _tree(tree, len(shape))
    work = tensor.to(working_dtype(tensor.dtype))
    scale = scale_of(work)
    work = work if scale == 1.0 else work / scale

    def cut(
        ranks: Mapping[Any, int] | None, budget: TruncationBudget[Tensor] | None = None
    ) -> Fit[HTFactors]:
        parts, nodes = _truncated(work, chosen, ranks, budget)
        exponent = round(math.log2(scale))
        shared = [p.to(tensor.dtype).contiguous() for p in share_norm(parts, 0, exponent)]
        own = dict(zip(nodes, shared, strict=True))
        leaves = tuple(own[k] for k in range(len(shape)))
        inner = tuple(own[t] for t in trees.nodes_of(chosen) if not isinstance(t, int))
        found = HTFactors(leaves, inner, chosen)
        loss = found.to(working_dtype(tensor.dtype)).rel_error(tensor)
        return Fit(found, (loss,), True, f"ranks {found.rank}")

    if rank is not None:
        return cut(node_ranks(rank, shape, chosen))
    bound = error or 0.0
    floor = float(torch.finfo(work.dtype).eps)

    def truncated(budget: TruncationBudget[Tensor]) -> tuple[Fit[HTFactors], float]:
        made = cut(None, budget)
        return made, made.error

    turns = max(1, 2 * len(shape) - 3)
    aims = max(bound, floor)
    kept, losses = within_after_rounding(truncated, bound, turns, aims=aims, floor=floor)
    if kept is not None:
        reason = f"ranks {kept.factors.rank} keep the error within {bound}"
        return replace(kept, errors=tuple(losses), reason=reason)
    last = cut(node_ranks(max(shape) ** len(shape), shape, chosen))
    reason = out_of_reach(bound, last.error, tensor.dtype)
    return replace(last, errors=(*losses, last.error), converged=last.error <= bound, reason=reason)


hierarchical_tucker = factors_of(fit_hierarchical_tucker)


def _tree(tree: Any, order: int) -> Any:
    if isinstance(tree, str):
        if tree not in TREES:
            raise ArgumentError(
                f"tree={tree!r} is unknown; choose one of {', '.join(TREES)}, or give nested pairs"
            )
        return TREES[tree](range(order))
    chosen = trees.as_tree(tree)
    trees.check_tree(chosen, order, "hierarchical_tucker")
    return chosen


def _truncated(
    tensor: Tensor,
    tree: Any,
    ranks: Mapping[Any, int] | None,
    budget: TruncationBudget[Tensor] | None,
) -> tuple[list[Tensor], list[Any]]:
    """Orthonormal bases and transfer tensors, the root's first, with their nodes."""
    order = trees.leaves_of(tree)
    core = tensor.permute(order).contiguous()  # an axis for every node that is done, or to be done
    found: dict[Any, Tensor] = {}

    def truncate(node: Any, axis: int) -> None:
        """The axis of a node, and what is below it, in a basis."""
        nonlocal core
        if not isinstance(node, int):
            truncate(node[0], axis)
            truncate(node[1], axis + 1)
            if node is tree:
                found[node] = core[None]
                return
            below = core.shape[axis : axis + 2]
            core = core.flatten(axis, axis + 1)
        vectors, energies = left_vectors(core, axis)
        if node is tree[1]:
            r = _seen(energies, core.dtype)  # its sibling has cut the same singular values
            r = r if ranks is None else min(r, ranks[node])
        elif ranks is not None:
            r = min(ranks[node], vectors.shape[1])
        else:
            assert budget is not None
            r = budget.choose(energies)
        basis = vectors[:, :r]
        core = mode_product(core, basis.T, axis)
        found[node] = basis if isinstance(node, int) else basis.T.reshape(r, *below)

    truncate(tree, 0)
    nodes = list(trees.nodes_of(tree))
    return [found[node] for node in nodes], nodes


def _seen(energies: Tensor, dtype: torch.dtype) -> int:
    """How many directions are more than rounding; one at least."""
    least = (energies[0] * len(energies)) * torch.finfo(dtype).eps ** 2
    return max(1, int((energies > least).sum()))


# ---- ranks ---------------------------------------------------------------------------------------


def node_ranks(rank: Rank, shape: Sequence[int], tree: Any) -> dict[Any, int]:
    """The rank of every node but the root."""
    share = _share(rank)
    if share is not None:
        most = max(_clipped(math.prod(shape), shape, tree).values())
        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            fits = _count(_clipped(middle, shape, tree), shape, tree) <= share * math.prod(shape)
            low, high = (middle, high) if fits else (low, middle - 1)
        return _clipped(low, shape, tree)
    nodes = [t for t in trees.nodes_of(tree) if t is not tree]
    if not isinstance(rank, Sequence) or isinstance(rank, str):
        return _clipped(_one_int(rank), shape, tree)
    listed = ints(rank)
    if len(listed) == len(nodes) + 1 and listed[0] == 1:
        listed = listed[1:]
    if len(listed) != len(nodes):
        raise RankError(
            f"rank={tuple(rank)} has {len(listed)} entries for the {len(nodes)} nodes {nodes} of "
            "the tree; give one each"
        )
    given = dict(zip(nodes, listed, strict=True))
    for node, r in given.items():
        most = _most(node, shape)
        if not isinstance(node, int):
            most = min(most, given[node[0]] * given[node[1]])
        if r > most:
            raise RankError(
                f"rank={tuple(rank)} asks for {r} at the node {node}, which allows {most}"
            )
    return given


def _most(node: Any, shape: Sequence[int]) -> int:
    inside = math.prod(shape[k] for k in trees.leaves_of(node))
    return min(inside, math.prod(shape) // inside)


def _clipped(r: int, shape: Sequence[int], tree: Any) -> dict[Any, int]:
    """r at every node but the root, or what it can have."""
    found: dict[Any, int] = {}
    for node in reversed(list(trees.nodes_of(tree))):
        most = min(r, _most(node, shape))
        found[node] = most if isinstance(node, int) else min(most, found[node[0]] * found[node[1]])
    one, other = tree
    found[one] = found[other] = min(found[one], found[other])
    del found[tree]
    return found


def _count(ranks: Mapping[Any, int], shape: Sequence[int], tree: Any) -> int:
    """Parameters."""
    total = 0
    for node in trees.nodes_of(tree):
        if isinstance(node, int):
            total += shape[node] * ranks[node]
        else:
            total += ranks.get(node, 1) * ranks[node[0]] * ranks[node[1]]
    return total
