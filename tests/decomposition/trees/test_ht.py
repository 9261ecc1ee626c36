"""Hierarchical Tucker: exact at the true ranks, within its bounds elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tensorlrf
from tensorlrf.decomposition import fit_hierarchical_tucker
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import HTFactors
from tensorlrf.factors.trees.tree import leaves_of, nodes_of
from tests.draws import seeded

TREES: list[Any] = ["balanced", "train", ((0, 2), (1, 3)), (3, ((0, 1), 2))]


def discarded(tensor: Tensor, f: HTFactors) -> float:
    """The largest, over nodes, of what the best basis of its rank leaves out: no tensor of these
    ranks has a smaller error."""
    worst = 0.0
    for node, r in zip(nodes_of(f.tree), f.rank, strict=True):
        if node != f.tree:
            inside = leaves_of(node)
            rows = math.prod(tensor.shape[k] for k in inside)
            others = [k for k in range(tensor.ndim) if k not in inside]
            values = torch.linalg.svdvals(tensor.permute(*inside, *others).reshape(rows, -1))
            worst = max(worst, float(values[r:].norm()))
    return worst / float(tensor.norm())


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    rank=st.integers(1, 6),
    train=st.booleans(),
    decay=st.booleans(),
)
def test_the_error_is_within_the_bound_of_the_best(
    sizes: list[int], rank: int, train: bool, decay: bool
) -> None:
    tensor = seeded(*sizes)
    if decay:
        for k, n in enumerate(sizes):
            shape = [n if j == k else 1 for j in range(len(sizes))]
            tensor = tensor * (0.3 ** torch.arange(n, dtype=torch.float64)).reshape(shape)
    fit = fit_hierarchical_tucker(tensor, rank, tree="train" if train else "balanced")
    least = discarded(tensor, fit.factors)
    assert fit.error <= math.sqrt(max(1, 2 * len(sizes) - 3)) * least * (1 + 1e-9) + 1e-13
    # And the bound asked for is kept, with no rank above that of the unfolding.
    asked = fit_hierarchical_tucker(tensor, error=0.2)
    assert asked.error <= 0.2
    assert asked.factors.rel_error(tensor) == pytest.approx(asked.error, rel=1e-6, abs=1e-14)


def test_it_is_exact_at_the_true_ranks() -> None:
    sizes = ((6, 2), (5, 3), (4, 2), (5, 2), (1, 3, 3), (3, 2, 3), (3, 2, 2))
    *leaves, root, one, other = (seeded(*size, seed=k) for k, size in enumerate(sizes))
    planted = HTFactors(tuple(leaves), (root, one, other))
    tensor = planted.to_dense()
    fit = fit_hierarchical_tucker(tensor, planted.rank)
    assert fit.error < 1e-14
    assert fit.factors.rank == planted.rank
    found = fit_hierarchical_tucker(tensor, error=1e-10)
    assert found.factors.rank == planted.rank


@pytest.mark.parametrize("tree", TREES)
def test_every_tree_is_served_and_bases_are_orthonormal(tree: Any) -> None:
    tensor = seeded(4, 5, 3, 6)
    f = tensorlrf.hierarchical_tucker(tensor, 3, tree=tree)
    assert f.shape == (4, 5, 3, 6)
    for u in f.leaves:
        gram = u.T @ u
        torch.testing.assert_close(gram, gram[0, 0] * torch.eye(len(gram), dtype=gram.dtype))
    assert f.rel_error(tensor) < 1
    full = tensorlrf.hierarchical_tucker(tensor, 1000, tree=tree)
    assert full.rel_error(tensor) < 1e-14


def test_a_chain_is_a_train_with_bases() -> None:
    """Of the same ranks between the modes, and so of the same error or less in a leaf's basis."""
    train = tensorlrf.TTFactors([seeded(*s) for s in ((1, 6, 2), (2, 7, 3), (3, 6, 2), (2, 5, 1))])
    f = tensorlrf.hierarchical_tucker(train.to_dense(), error=1e-10, tree="train")
    ranks = dict(zip(nodes_of(f.tree), f.rank, strict=True))
    assert (ranks[0], ranks[1, (2, 3)], ranks[2, 3]) == (2, 2, 3)


def test_bad_ranks_and_trees_are_told() -> None:
    tensor = seeded(4, 5, 3, 6)

    def refused(kind: Any, words: str, rank: Any = 2, **options: Any) -> None:
        with pytest.raises(kind, match=words):
            fit_hierarchical_tucker(tensor, rank, **options)

    refused(RankError, r"has 3 entries for the 6 nodes", (2, 2, 2))
    refused(RankError, r"asks for 5 at the node \(0, 1\), which allows 4", (5, 2, 2, 2, 2, 2))
    refused(RankError, r"asks for 7 at the node 3, which allows 6", (2, 2, 2, 2, 2, 7))
    refused(ArgumentError, "tree='odd' is unknown; choose one of balanced, train", tree="odd")
    refused(ArgumentError, "tree=.* must have each of", tree=((0, 1), 2))
    refused(ArgumentError, "tree has 1.5", tree=((0, 1), (2, 1.5)))
