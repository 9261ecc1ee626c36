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
from torch import Tensor, nn

from tensorlrf.nn.behaviour.seen import forget
from tensorlrf.nn.memory_format import CHANNELS_LAST, is_channels_last
from tensorlrf.nn.resized.rotary import with_table, without_table

MARK = "resized"
"""The attribute of a module that holds a `Resized`."""


@dataclass(frozen=True)
class Resized:
    """What a module has in place of what its architecture gives it.

    sizes   attribute -> its number, as head_dim or out_features
    shapes  parameter or buffer of its own -> its shape
    was     the same tensors -> their shapes in the architecture
    table   the entries of the rotary tables that an attention turns by, of those that it is given;
            () for all
    whole   how many entries these tables have
    parts   of an attention that has such a table the layers of queries, keys, values, and the one
            behind, by their names in it
    rows    where what is left of a head was among `whole` numbers
    """

    sizes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    was: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    table: tuple[int, ...] = ()
    whole: int = 0
    parts: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()


def resized_of(module: nn.Module) -> Resized | None:
    """What the module has in place of what its architecture gives it; None of any other."""
    found = vars(module).get(MARK)
    return found if isinstance(found, Resized) else None


def resize_(module: nn.Module, to: Resized) -> None:
    """Give the module these sizes, in place. Its own tensors get memory without values, of their
    dtype, on their device, laid out as they were.

    Raises AttributeError where it has no such tensor or number.
    """
    before = resized_of(module)
    was = {} if before is None else dict(before.was)
    for name, shape in to.shapes.items():
        old = tensors_in(module).get(name)
        if old is None:
            raise AttributeError(f"it has no parameter or buffer {name!r}")
        was.setdefault(name, tuple(old.shape))
        blank = _blank(old, shape)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(blank, requires_grad=old.requires_grad)
        else:
            module._buffers[name] = blank
    for name, size in to.sizes.items():
        if type(vars(module).get(name)) is not int:
            raise AttributeError(f"it has no whole number {name!r}")
        setattr(module, name, size)
    if to.table:
        with_table(module, to.table, to.whole)
    vars(module)[MARK] = replace(to, was=was)
    forget(module)


def tensors_in(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of the module itself, by their names."""
    own = (module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    return {name: t for part in own for name, t in part}


def _blank(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    last = is_channels_last(like)
    layout = CHANNELS_LAST[len(shape)] if last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def stock_(model: nn.Module) -> None:
    """Make all such modules of a model plain ones of their types, in place: smaller ones, but for
    attentions that take a part of their rotary tables. No attention of transformers does, so these
    have zeros again for what was left out.

    Raises AttributeError where the layers of such an attention are outside of it.
    """
    for module in model.modules():
        to = resized_of(module)
        if to is not None and to.table:
            _filled_with_zeros(module, to)
    for module in model.modules():
        vars(module).pop(MARK, None)


def _filled_with_zeros(attention: nn.Module, to: Resized) -> None:
    """An attention over all of its rotary tables, of which those left out turn zeros."""
    if not to.parts:
        raise AttributeError("its layers are outside of it")
    layers = [attention.get_submodule(name) for name in to.parts]
    for layer in dict.fromkeys(layers[:3]):
        own = _shown(layer)
        heads = own.shape[0] // len(to.rows)
        at = _entries(heads, to)
        bias = layer._parameters.get("bias")
        _put(layer, _spread(own, at, heads * to.whole), bias, at)
    behind = layers[3]
    own = _shown(behind)
    heads = own.shape[1] // len(to.rows)
    _put(behind, _spread(own.T, _entries(heads, to), heads * to.whole).T, None, None)
    for name, size in to.sizes.items():
        setattr(attention, name, size // len(to.rows) * to.whole)
    without_table(attention)


def _shown(layer: Any) -> Tensor:
    """The weight of a linear layer, (out, in)."""
    weight: Tensor = layer.weight.detach()
    return weight.T if "nx" in vars(layer) else weight


def _entries(heads: int, to: Resized) -> Tensor:
    """Where the rows of so many heads were."""
    rows = torch.tensor(to.rows, device="cpu")
    return (torch.arange(heads, device="cpu")[:, None] * to.whole + rows).flatten()


def _spread(rows: Tensor, at: Tensor, n: int) -> Tensor:
    """Rows among n, the others zero."""
    spread = rows.new_zeros(n, *rows.shape[1:])
    spread[at.to(rows.device)] = rows
    return spread


def _put(layer: nn.Module, weight: Tensor, bias: Tensor | None, at: Tensor | None) -> None:
    """Another weight (out, in), and a bias that is spread like its rows where `at` is told."""
    resize_(layer, linear_sizes(layer, *weight.shape))
    with torch.no_grad():
        _shown(layer).copy_(weight)
        if bias is not None and at is not None:
            own = layer._parameters["bias"]
            assert own is not None
            own.copy_(_spread(bias.detach(), at, len(weight)))


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


def conv_sizes(layer: Any, out: int, inputs: int) -> Resized:
    """Of a convolution of all channels with `out` outputs and `inputs` inputs; of one on each
    channel alone, which has as many of both."""
    alone = layer.groups > 1
    kernel = tuple(layer.weight.shape[2:])
    shapes: dict[str, tuple[int, ...]] = {"weight": (out, 1 if alone else inputs, *kernel)}
    if layer.bias is not None:
        shapes["bias"] = (out,)
    sizes = {"out_channels": out, "in_channels": inputs, **({"groups": out} if alone else {})}
    return Resized(sizes, shapes)


def groups_before(layer: Any) -> int:
    """Of a convolution, in its architecture."""
    to = resized_of(layer)
    groups: int = layer.groups if to is None or "groups" not in to.sizes else to.was["weight"][0]
    return groups


def of_each(module: nn.Module, n: int) -> bool:
    """Whether each of its own tensors has one number for each of n channels, or one number in all;
    not all of them the latter."""
    whole = [t for t in tensors_in(module).values() if t.numel() != 1]
    kept = module._non_persistent_buffers_set.isdisjoint(tensors_in(module))
    return kept and bool(whole) and all([k for k in t.shape if k != 1] == [n] for t in whole)


def select_(module: nn.Module, entries: Tensor) -> None:
    """Leave a module that is `of_each` of n channels these entries, (k,), in place."""
    left = {}
    for name, t in tensors_in(module).items():
        if t.numel() != 1:
            dim = next(k for k, size in enumerate(t.shape) if size != 1)
            left[name] = t.detach().index_select(dim, entries.to(t.device))
            n = t.shape[dim]
    sizes = [key for key, size in vars(module).items() if type(size) is int and size == n]
    numbers = dict.fromkeys(sizes, len(entries))
    resize_(module, Resized(numbers, {name: tuple(t.shape) for name, t in left.items()}))
    with torch.no_grad():
        for name, value in left.items():
            tensors_in(module)[name].copy_(value)
