"""Binary trees over the modes of a tensor: nested pairs with modes as leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tensorlrf.errors import ArgumentError

Tree = Any
"""A mode, or a pair of trees."""


def as_tree(value: Any) -> Tree:
    """Nested lists or tuples of ints as nested pairs. Raises ArgumentError for what is no tree."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return as_tree(value[0]), as_tree(value[1])
    raise ArgumentError(
        f"tree has {value!r}; it must be pairs with modes as leaves, such as ((0, 1), (2, 3))"
    )


def balanced(modes: Sequence[int]) -> Tree:
    """Halves, and halves of these (Grasedyck 2010, definition 3.1)."""
    if len(modes) == 1:
        return modes[0]
    half = (len(modes) + 1) // 2
    return balanced(modes[:half]), balanced(modes[half:])


def in_a_chain(modes: Sequence[int]) -> Tree:
    """One mode after the other is split off: a train with a basis for each mode (TT-Tucker)."""
    return modes[0] if len(modes) == 1 else (modes[0], in_a_chain(modes[1:]))


def leaves_of(tree: Tree) -> tuple[int, ...]:
    """The modes, from left to right."""
    return (tree,) if isinstance(tree, int) else (*leaves_of(tree[0]), *leaves_of(tree[1]))


def nodes_of(tree: Tree) -> Iterator[Tree]:
    """Every node, the root first, each before what is below it, left before right."""
    yield tree
    if not isinstance(tree, int):
        yield from nodes_of(tree[0])
        yield from nodes_of(tree[1])


def check_tree(tree: Tree, order: int, owner: str) -> None:
    """Raise ArgumentError unless every mode of an order is a leaf, once."""
    if sorted(leaves_of(tree)) != list(range(order)) or order < 2:
        raise ArgumentError(
            f"{owner}: tree={tree} has the leaves {leaves_of(tree)}; it must have each of "
            f"{tuple(range(order))} once, and two at least"
        )
