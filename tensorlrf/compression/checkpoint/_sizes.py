"""Modules that are smaller than their architecture gives them: to the header of a file and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from tensorlrf.compression.checkpoint.header import SizeEntry
from tensorlrf.compression.checkpoint.named_tensors import named_tensors
from tensorlrf.errors import FileFormatError
from tensorlrf.nn.copies import copy_of
from tensorlrf.nn.resized.layers import Resized, resize_, resized_of, tensors_in


def sizes_of(model: nn.Module) -> tuple[SizeEntry, ...]:
    """An entry for each such module."""
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if resized_of(module) is not None:
            places.setdefault(module, []).append(name)
    entries = []
    for module, names in places.items():
        to = resized_of(module)
        assert to is not None
        shapes = {key: tuple(t.shape) for key, t in tensors_in(module).items() if key in to.was}
        entries.append(
            SizeEntry(
                tuple(names),
                dict(to.sizes),
                shapes,
                dict(to.was),
                to.table,
                to.whole,
                to.parts,
                to.rows,
            )
        )
    return tuple(entries)


def with_sizes(model: nn.Module, entries: Sequence[SizeEntry], path: str) -> nn.Module:
    """The architecture in the sizes of a file, on the tensors of `model`, which stays as it is; the
    model itself where no size is another.

    Raises FileFormatError for modules that the model does not have, or that have no such sizes.
    """
    if not entries:
        return model
    shared: dict[int, Any] = {id(place.tensor): place.tensor for place in named_tensors(model)}
    small = copy_of(model, shared)
    for entry in entries:
        try:
            _resize(small, entry)
        except AttributeError as error:
            raise FileFormatError(
                f"path={path!r} does not fit model: {entry.places[0]!r} is smaller in the file, "
                f"which the model's cannot be: {error}"
            ) from None
    return small


def _resize(model: nn.Module, entry: SizeEntry) -> None:
    modules = [model.get_submodule(place) for place in entry.places]
    if any(module is not modules[0] for module in modules):
        raise AttributeError(f"it is not the same as {entry.places[-1]!r}")
    known = resized_of(modules[0])
    for name, was in entry.was.items():
        own = tensors_in(modules[0]).get(name)
        if own is None or is_lazy(own):
            raise AttributeError(f"it has no parameter or buffer {name!r}")
        shape = tuple(own.shape) if known is None else known.was.get(name, tuple(own.shape))
        if shape != was:
            raise AttributeError(f"its {name} is {shape}, not {was}")
    to = Resized(
        entry.sizes, entry.shapes, {}, entry.table, entry.whole, entry.parts, entry.rows
    )  # fmt: skip
    resize_(modules[0], to)
