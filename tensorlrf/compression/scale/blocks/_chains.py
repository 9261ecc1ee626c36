"""The chains of blocks of a model: what one puts out goes into the next."""

from __future__ import annotations

from itertools import groupby

from torch import nn

from tensorlrf.compression.refinement._blocks import blocks_of
from tensorlrf.errors import UnsupportedError


def chains_of(model: nn.Module) -> list[list[str]]:
    """Names of blocks, chain by chain, in the order of the model: the children of one list that
    `blocks_of` finds, or without any those of the largest Sequential.

    Raises UnsupportedError where there is neither.
    """
    found = [list(own) for _, own in groupby(blocks_of(model), lambda n: n.rpartition(".")[0])]
    if found:
        return found
    largest, size = "", 0
    for name, module in model.named_modules():
        count = sum(p.numel() for p in module.parameters())
        if type(module) is nn.Sequential and len(module) > 1 and count > size:
            largest, size = name, count
    if not size:
        raise UnsupportedError(
            f"the {type(model).__name__} has no blocks, modules of one type in a ModuleList or a "
            "Sequential, that could be gone through one after the other; tensorlrf.compress takes "
            "it, with the model in memory"
        )
    chain = model.get_submodule(largest)
    return [[f"{largest}.{child}".lstrip(".") for child, _ in chain.named_children()]]
