"""Hierarchical Tucker: bases of groups of modes, each made of those of two smaller groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors.arrays import check_together
from tensorlrf.factors.trees.tree import Tree, as_tree, balanced, check_tree, leaves_of, nodes_of


@dataclass(frozen=True, eq=False, repr=False)
class HTFactors(Factors):
    """A hierarchical Tucker tensor: a basis for every mode, and a transfer tensor for every pair.

    A node t of the tree with children l and r has the basis `U_t[:, i] = sum_jk B_t[i, j, k] U_l[:,
    j] (x) U_r[:, k]`; the whole is that of the root, of rank 1.

    Parameters
    ----------
    leaves : tuple of Tensor
        Mode k has (n_k, r_k).
    transfers : tuple of Tensor
        (r_t, r_l, r_r) of every inner node, the root first, each before what is below it, left
        before right.
    tree : nested tuple, optional
        Pairs with modes as leaves, ((0, 1), (2, 3)); by default halves of halves.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Hackbusch & Kuhn 2009; Grasedyck 2010, definition 3.6.

    Examples
    --------
    >>> leaves = (torch.ones(4, 2), torch.ones(5, 2), torch.ones(6, 3))
    >>> f = tensorlrf.HTFactors(leaves, (torch.ones(1, 2, 3), torch.ones(2, 2, 2)))
    >>> f.tree, f.shape, f.rank
    (((0, 1), 2), (4, 5, 6), (1, 2, 2, 2, 3))
    """

    leaves: tuple[Tensor, ...]
    transfers: tuple[Tensor, ...]
    tree: Tree = None

    format: ClassVar[str] = "ht"

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaves", tuple(self.leaves))
        object.__setattr__(self, "transfers", tuple(self.transfers))
        usual = balanced(range(max(1, len(self.leaves))))
        object.__setattr__(self, "tree", usual if self.tree is None else as_tree(self.tree))
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(u.shape[0]) for u in self.leaves)

    @property
    def rank(self) -> tuple[int, ...]:
        """Of every node, the root first (it has 1), each before what is below it."""
        inner = iter(self.transfers)
        return tuple(
            int(self.leaves[t].shape[1] if isinstance(t, int) else next(inner).shape[0])
            for t in nodes_of(self.tree)
        )

    def tensors(self) -> dict[str, Tensor]:
        named = {f"leaves.{k}": u for k, u in enumerate(self.leaves)}
        named.update((f"transfers.{k}", b) for k, b in enumerate(self.transfers))
        return named

    def meta(self) -> dict[str, Any]:
        return {"tree": _listed(self.tree)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        tree = as_tree(meta["tree"])
        order = len(leaves_of(tree))
        return {
            "leaves": tuple(tensors[f"leaves.{k}"] for k in range(order)),
            "transfers": tuple(tensors[f"transfers.{k}"] for k in range(order - 1)),
            "tree": tree,
        }

    def check(self) -> None:
        check_tree(self.tree, len(self.leaves), "HTFactors")
        check_together(self.tensors(), "HTFactors")
        inner = [t for t in nodes_of(self.tree) if not isinstance(t, int)]
        if len(inner) != len(self.transfers):
            raise ShapeError(
                f"HTFactors: {len(self.transfers)} transfers for {len(inner)} inner nodes of "
                f"{self.tree}"
            )
        for k, u in enumerate(self.leaves):
            if u.ndim != 2 or 0 in u.shape:
                raise ShapeError(f"HTFactors: leaves[{k}] is {tuple(u.shape)}; it must be (n, r)")
        rank = dict(zip(inner, self.transfers, strict=True))

        def of(node: Tree) -> int:
            tensor = self.leaves[node] if isinstance(node, int) else rank[node]
            return int(tensor.shape[1 if isinstance(node, int) else 0])

        for k, (node, b) in enumerate(rank.items()):
            wanted = (1 if k == 0 else of(node) if b.ndim else 0, of(node[0]), of(node[1]))
            if tuple(b.shape) != wanted or 0 in b.shape:
                raise ShapeError(
                    f"HTFactors: transfers[{k}], of the node {node}, is {tuple(b.shape)}; with "
                    f"what is below it it must be (r, {wanted[1]}, {wanted[2]}), of the root (1, "
                    f"{wanted[1]}, {wanted[2]})"
                )

    def _dense(self) -> Tensor:
        inner = iter(self.transfers)

        def basis(node: Tree) -> Tensor:
            """(product of the sizes below it, r)."""
            if isinstance(node, int):
                return self.leaves[node]
            b = next(inner)
            left, right = basis(node[0]), basis(node[1])
            part = torch.tensordot(left, b, dims=([1], [1]))  # (n_l, r, r_r)
            whole: Tensor = torch.tensordot(part, right, dims=([2], [1]))  # (n_l, r, n_r)
            return whole.transpose(1, 2).flatten(0, 1)

        modes = leaves_of(self.tree)
        whole = basis(self.tree).reshape([self.leaves[k].shape[0] for k in modes])
        return whole.permute([modes.index(k) for k in range(len(modes))])


def _listed(tree: Tree) -> Any:
    return tree if isinstance(tree, int) else [_listed(tree[0]), _listed(tree[1])]
