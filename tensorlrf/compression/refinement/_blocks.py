"""The blocks of a model, found by its structure: what a list of modules repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

LISTS = (nn.ModuleList, nn.Sequential)
"""Exactly these: their subclasses are modules with a name for what they do."""


def blocks_of(model: nn.Module) -> list[str]:
    """Names of the outermost children of ModuleLists and Sequentials whose type recurs in such
    places and which hold further modules, in the order of the model. A Sequential in a list is a
    block where none of its own children is."""
    kinds = Counter(type(child) for _, child in _children_of_lists(model) if _is_whole(child))
    return list(_outermost(model, "", kinds))


def _children_of_lists(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for place, module in model.named_modules():
        if type(module) in LISTS:
            for name, child in module.named_children():
                yield f"{place}.{name}".lstrip("."), child


def _is_whole(module: nn.Module) -> bool:
    """Whether it is called itself and is made of others."""
    return type(module) not in LISTS and next(module.children(), None) is not None


def _outermost(module: nn.Module, place: str, kinds: Counter[type]) -> Iterator[str]:
    in_list = type(module) in LISTS
    sequences = sum(type(child) is nn.Sequential for child in module.children())
    for name, child in module.named_children():
        path = f"{place}.{name}".lstrip(".")
        if in_list and _is_whole(child) and kinds[type(child)] > 1:
            yield path
            continue
        deeper = list(_outermost(child, path, kinds))
        if in_list and not deeper and type(child) is nn.Sequential and sequences > 1 and len(child):
            deeper = [path]
        yield from deeper


def hidden(output: Any) -> Tensor | None:
    """The first floating-point tensor of what a block returns: the hidden state."""
    leaves = pytree.tree_leaves(output)
    return next((t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()), None)


def detached(value: Any) -> Any:
    """The same arguments or outputs without a graph."""
    return pytree.tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, value)


def checkpoint_blocks(model: nn.Module, names: list[str]) -> None:
    """Keep of these blocks nothing but their inputs for the pass back, which runs them once more
    (Chen et al. 2016)."""
    from torch.utils.checkpoint import checkpoint

    for name in names:
        block: Any = model.get_submodule(name)
        again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        vars(block)["forward"] = again
