"""An attention that turns some of its rotary pairs only.

The model makes its tables of cosines and sines for all frequencies and hands them to every
attention as `position_embeddings`. An attention whose heads keep some of the pairs takes the
entries of these out of the tables, and is of its type as before in all else.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.nn.derived import Derived, derive, type_of, underive

ARGUMENT = "position_embeddings"
"""Under which attentions of transformers take (cos, sin)."""


class RotarySubset(Derived):
    """What such an attention has beside its type, of which it is made a subclass.

    rotary_entries  (r,) of the tables, on the device of the module, not in its state dict
    rotary_whole    entries that the tables are to have
    rotary_place    of the tables among the arguments of its forward, counted without self; -1 where
                    they come by their name only
    """

    rotary_entries: Tensor
    rotary_whole: int
    rotary_place: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """That of its type, on the tables of the pairs that are left."""
        at = self.rotary_place
        if ARGUMENT in kwargs:
            kwargs = {**kwargs, ARGUMENT: self._taken(kwargs[ARGUMENT])}
        elif 0 <= at < len(args):
            args = (*args[:at], self._taken(args[at]), *args[at + 1 :])
        return super().forward(*args, **kwargs)

    def _taken(self, tables: Any) -> Any:
        if tables is None:
            return None
        if tables[0].shape[-1] != self.rotary_whole:
            raise ShapeError(
                f"{ARGUMENT} have {tables[0].shape[-1]} entries; this attention was made from one "
                f"with {self.rotary_whole}"
            )
        return tuple(table.index_select(-1, self.rotary_entries) for table in tables)


def with_table(module: Any, entries: Sequence[int], whole: int) -> None:
    """Have an attention take these entries of its rotary tables, in place.

    entries  of the tables that the model makes, each in [0, whole)
    """
    derive(module, RotarySubset)
    device = next((p.device for p in module.parameters()), None)
    module.register_buffer(
        "rotary_entries", torch.tensor(entries, dtype=torch.long, device=device), persistent=False
    )
    module.rotary_whole = whole
    names = list(inspect.signature(type_of(module).forward).parameters)[1:]
    module.rotary_place = names.index(ARGUMENT) if ARGUMENT in names else -1


def without_table(module: Any) -> None:
    """Have it be of its type alone again, in place."""
    underive(module)
    del module.rotary_entries, module.rotary_whole, module.rotary_place
