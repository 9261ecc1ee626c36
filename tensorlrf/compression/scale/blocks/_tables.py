"""Embeddings, of which no block needs the table. For the first of a chain what they give for each
batch is kept, as of blocks; behind it nobody asks for that. From then on rows are NaN and take no
memory, unless the model turns out to use them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.scale.blocks._course import Own, Parted
from tensorlrf.compression.scale.blocks._states import Key, States
from tensorlrf.compression.scale.blocks._weights import Loaded
from tensorlrf.nn.plain import is_table

LARGE = 1 << 22
"""Bytes of a table that is put away."""


@dataclass
class _Known:
    """The forward of a table, which gives the same for the same indices."""

    states: States
    name: str
    forward: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if len(given) != 1 or not isinstance(given[0], Tensor):
            return self.forward(*args, **kwargs)
        key = _key(self.name, given[0])
        if key not in self.states:
            self.states.put(key, self.forward(*args, **kwargs))
        return self.states.get(key)


def _key(name: str, indices: Tensor) -> Key:
    raw = indices.detach().cpu().contiguous()
    told = repr((tuple(raw.shape), raw.dtype)).encode() + raw.view(torch.uint8).numpy().tobytes()
    digest = hashlib.blake2b(told, digest_size=8).digest()
    return f"{_TABLE}{name}", 0, int.from_bytes(digest, "little")


_TABLE = "table "


@dataclass
class Tables:
    """Those of models in parts, in none of their blocks.

    parted  the models
    around  what is at hand of the files, of which tables are taken out when they are put away
    rows    names of layers that get factors: what such a table gives will be something else
    needed  whether some block uses them in another way than to look up its inputs
    tried   whether it was seen that none does
    """

    parted: Sequence[Parted]
    around: Loaded
    rows: Collection[str] = ()
    needed: bool = False
    tried: bool = False
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

    def know(self) -> bool:
        """Have what they give be kept from here on; False where no large one can be so."""
        found = False
        for one in self.parted:
            for name, module in one.model.named_modules():
                fixed = is_table(module) and name not in self.rows and module.max_norm is None
                if fixed and _large(module.weight):
                    vars(module)["forward"] = _Known(one.course.states, name, Own(module))
                    found = True
        return found

    def forget(self) -> None:
        """What they have given, which nobody asks for any more."""
        for one in self.parted:
            for module in one.model.modules():
                if isinstance(vars(module).get("forward"), _Known):
                    del vars(module)["forward"]
            kept = one.course.states
            for key in filter(lambda key: key[0].startswith(_TABLE), kept.keys()):
                kept.drop(key)

    def put_away(self) -> None:
        """Take the memory of large ones."""
        away = {id(module) for module, _ in self._away}
        for module, blank in self._all:
            own = module.weight
            if id(module) in away or own.is_meta or not _large(own):
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
        was, self.tried = self.away, False
        for module, blank in self._away:
            module._parameters["weight"] = blank
        self._away.clear()
        self._tell()
        return was

    def _tell(self) -> None:
        for one in self.parted:
            one.course.partial = self.away


def _large(weight: Tensor) -> bool:
    return weight.numel() * weight.element_size() >= LARGE
