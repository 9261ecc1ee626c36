"""A stock module made smaller where it stands: its own parameters in other shapes, and the numbers
from which its forward takes sizes.

It is of its type as before and calls the same forward. Beside that it holds a `Resized`, by which a
file knows what the architecture gave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from tensorlrf.nn.resized.rotary import with_table

MARK = "resized"
"""The attribute of a module that holds a `Resized`."""


@dataclass(frozen=True)
class Resized:
    """What a module has in place of what its architecture gives it.

    sizes   attribute -> its number, as head_dim or out_features
    shapes  parameter of its own -> its shape
    was     the same parameters -> their shapes in the architecture
    table   the entries of the rotary tables that an attention turns by, of those that it is given;
            () for all
    whole   how many entries these tables have
    """

    sizes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    was: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    table: tuple[int, ...] = ()
    whole: int = 0


def resized_of(module: nn.Module) -> Resized | None:
    """What the module has in place of what its architecture gives it; None of any other."""
    found = vars(module).get(MARK)
    return found if isinstance(found, Resized) else None


def resize_(module: nn.Module, to: Resized) -> None:
    """Give the module these sizes, in place. Its own parameters get memory without values, of their
    dtype, on their device.

    Raises AttributeError where it has no such parameter or number.
    """
    before = resized_of(module)
    was = {} if before is None else dict(before.was)
    for name, shape in to.shapes.items():
        old = module._parameters.get(name)
        if old is None:
            raise AttributeError(f"it has no parameter {name!r}")
        was.setdefault(name, tuple(old.shape))
        blank = torch.empty(shape, dtype=old.dtype, device=old.device)
        module._parameters[name] = nn.Parameter(blank, requires_grad=old.requires_grad)
    for name, size in to.sizes.items():
        if type(vars(module).get(name)) is not int:
            raise AttributeError(f"it has no whole number {name!r}")
        setattr(module, name, size)
    if to.table:
        with_table(module, to.table, to.whole)
    vars(module)[MARK] = replace(to, was=was)


def unmarked(module: nn.Module) -> None:
    """Take the mark off, in place: the module is then one of its type that is smaller."""
    vars(module).pop(MARK, None)


def linear_sizes(layer: Any, out: int, inputs: int) -> Resized:
    """Of a linear layer, or of the transposed one of transformers, with `out` outputs and `inputs`
    inputs."""
    transposed = "nx" in vars(layer)
    names = ("nf", "nx") if transposed else ("out_features", "in_features")
    shapes: dict[str, tuple[int, ...]] = {"weight": (inputs, out) if transposed else (out, inputs)}
    if layer.bias is not None:
        shapes["bias"] = (out,)
    sizes = {name: n for name, n in zip(names, (out, inputs), strict=True) if name in vars(layer)}
    return Resized(sizes, shapes)
