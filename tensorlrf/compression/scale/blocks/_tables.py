"""Embeddings, which blocks behind the first of a chain do not need: while these run, rows are NaN
and take no memory, unless the model turns out to use them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tensorlrf.compression.scale.blocks._course import Parted
from tensorlrf.compression.scale.blocks._weights import Loaded
from tensorlrf.nn.plain import is_table

LARGE = 1 << 22
"""Bytes of a table that is put away."""


@dataclass
class Tables:
    """Those of models in parts, in none of their blocks.

    parted  the models
    around  what is at hand of the files, of which tables are taken out when they are put away
    needed  whether some block behind the first uses them
    """

    parted: Sequence[Parted]
    around: Loaded
    needed: bool = False
    _away: list[tuple[Any, Any]] = field(default_factory=list)
    _all: list[tuple[Any, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        modules = (module for one in self.parted for module in one.model.modules())
        # Of blocks there are none: these are hollow by now.
        self._all += [(m, m.weight) for m in modules if is_table(m) and m.weight.is_meta]

    @property
    def away(self) -> bool:
        """Whether some are put away."""
        return bool(self._away)

    def put_away(self) -> None:
        """Take the memory of large ones."""
        for module, blank in self._all:
            own = module.weight
            if own.is_meta or own.numel() * own.element_size() < LARGE:
                continue
            for name in [name for name, held in self.around.items() if held is own]:
                del self.around[name]
            nan = torch.full((), float("nan"), dtype=own.dtype, device=own.device)
            rows = nn.Parameter(nan.expand(own.shape), requires_grad=False)
            module._parameters["weight"] = rows
            self._away.append((module, blank))
        self._tell()

    def bring_back(self) -> bool:
        """Have them be read again; whether any were away."""
        was = self.away
        for module, blank in self._away:
            module._parameters["weight"] = blank
        self._away.clear()
        self._tell()
        return was

    def _tell(self) -> None:
        for one in self.parted:
            one.course.partial = self.away
