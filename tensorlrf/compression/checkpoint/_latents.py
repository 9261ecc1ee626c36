"""Attentions with a latent cache: to the header of a file and back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tensorlrf.compression.checkpoint.header import LatentEntry
from tensorlrf.errors import FileFormatError, UnsupportedError
from tensorlrf.nn.latent.attention import LatentAttention, with_latents, without_latents


def latents_in(model: nn.Module) -> tuple[LatentEntry, ...]:
    """An entry for each such attention.

    Raises UnsupportedError where what makes its rotary tables is no module of the model.
    """
    names = {module: name for name, module in model.named_modules()}
    entries = []
    for module, name in names.items():
        if not isinstance(module, LatentAttention):
            continue
        tables = module.latent_tables
        if tables is not None and tables not in names:
            raise UnsupportedError(
                f"model: the rotary tables of {name or 'it'} come from a module outside of it; "
                "save the whole model"
            )
        entries.append(LatentEntry(name, module.latents, "" if tables is None else names[tables]))
    return tuple(entries)


def give_latents(model: nn.Module, entries: Sequence[LatentEntry], path: str) -> None:
    """Have the attentions of a model cache latents that those of a file do, and no others, in
    place.

    Raises FileFormatError for attentions that the model does not have, or that cannot.
    """
    without_latents(model)
    for entry in entries:
        try:
            tables = model.get_submodule(entry.tables) if entry.tables else None
            with_latents(model.get_submodule(entry.place), entry.made, tables)
        except AttributeError as error:
            raise FileFormatError(
                f"path={path!r} does not fit model: the cache of {entry.place!r} is latent in the "
                f"file, which the model's cannot be: {error}"
            ) from None
