"""Names that the tensors of a checkpoint have in the model of transformers that is made of it.

Older files, and those of a body without its head, have other names than the model of today, and
some have a tensor for each expert of a mixture where the model has one for all. transformers
renames and converts them while it loads; here its rules are asked, and nothing is loaded.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.errors import UnsupportedError

Rename = Callable[[str], tuple[str, str | None]]
"""From a name in the files to that in the model, and by which pattern of which rule tensors are
made there; None where they are what they were."""


@dataclass(frozen=True)
class Conversion:
    """Parameters that transformers makes of tensors of the files.

    name     of the parameter; of the first one, where there are several
    members  pattern of the rule -> names in the files, in the order in which it takes them
    rule     of transformers
    model    for which
    """

    name: str
    members: Mapping[str, tuple[str, ...]]
    rule: Any
    model: Any

    @property
    def names(self) -> tuple[str, ...]:
        """In the files."""
        return tuple(name for own in self.members.values() for name in own)

    @property
    def parts(self) -> int:
        """How many there are along the first dimension of what comes of it, each of which is made
        of members of its own, one of each pattern; 1 where that is not known."""
        first, *others = self.rule.operations
        counts = {len(own) for own in self.members.values()}
        stacks = type(first).__name__ == "MergeModulelist" and first.dim == 0
        inside = all(type(one).__name__ == "Concatenate" and one.dim > 0 for one in others)
        return counts.pop() if stacks and inside and len(counts) == 1 else 1

    def made(self, read: Callable[[str], Tensor], part: int | None = None) -> dict[str, Tensor]:
        """Name -> the parameter, of what is read; or a part of it, along its first dimension."""
        rule = copy.deepcopy(self.rule)
        for pattern, names in self.members.items():
            own = names if part is None else (names[part],)
            rule.collected_tensors[pattern] = [read(name) for name in own]
        made = rule.convert(self.name, model=self.model, config=self.model.config)
        return {name: t[0] if isinstance(t, list) else t for name, t in made.items()}


def names_in(
    model: nn.Module, names: Iterable[str], *, converts: bool = False
) -> tuple[dict[str, str], list[Conversion]]:
    """(name in the files -> name of a parameter or persistent buffer of the model, of those that
    are one there; what transformers makes of others, if it `converts`).

    Raises UnsupportedError where transformers makes others of tensors, and that is not wanted.
    """
    names = list(names)
    wanted = set(model.state_dict())
    if wanted <= set(names):
        return {name: name for name in names if name in wanted}, []
    rename, rules, order = _renaming(model, wanted)
    found: dict[str, str] = {}
    members: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names, key=order):
        new, pattern = rename(name)
        if new not in wanted:
            continue
        if pattern is None:
            found[name] = new
        elif not converts:
            raise UnsupportedError(
                f"transformers makes {new} of several tensors, {name} among them"
            )
        else:
            members.setdefault(new, {}).setdefault(pattern, []).append(name)
    makes = []
    for new, own in members.items():
        rule = rules[next(iter(own))]
        held = {pattern: tuple(some) for pattern, some in own.items()}
        makes.append(Conversion(new, held, rule, model))
    return {name: found[name] for name in names if name in found}, makes


def found_in(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Name of a parameter or persistent buffer of the model -> name in the files of a tensor that
    it is made of, of those for which there is one."""
    wanted = set(model.state_dict())
    rename, _, _ = _renaming(model, wanted)
    found = ((rename(name)[0], name) for name in names)
    return {new: name for new, name in found if new in wanted}


def names_out(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Name of a tensor of the model -> the one that save_pretrained gives it, which is that of its
    kind of file; the same where there is none, or where transformers makes other tensors of it."""
    every = list(names)
    same = dict(zip(every, every, strict=True))
    own: Any = model
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return same
    marks = {name: torch.tensor(k, device="cpu", dtype=torch.int64) for k, name in enumerate(every)}
    try:
        found = revert_weight_conversion(own, marks)
        numbers = {new: int(mark) for new, mark in found.items()}
    except Exception:  # of many kinds, by what it makes of single numbers
        return same
    if sorted(numbers.values()) != list(range(len(every))):
        return same
    return {every[k]: new for new, k in numbers.items()}


def _renaming(
    model: Any, wanted: set[str]
) -> tuple[Rename, dict[str, Any], Callable[[str], Any] | None]:
    """By the rules of the installed transformers, or of one that has others by those of the class:
    (a function, pattern -> the rule that makes others of tensors, the key by which it sorts)."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            dot_natural_key,
            rename_source_key,
        )
    except ImportError:
        rules = getattr(type(model), "_checkpoint_conversion_mapping", {})
        return lambda name: (_prefixed(_substituted(name, rules), prefix, wanted), None), {}, None
    known: list[Any] = get_model_conversion_mapping(model)
    makes = [one for one in known if isinstance(one, WeightConverter)]
    renames = [one for one in known if not isinstance(one, WeightConverter)]
    shapes: dict[str, Any] = dict.fromkeys(wanted, True)

    def rename(name: str) -> tuple[str, str | None]:
        new, pattern = rename_source_key(name, renames, makes, prefix, shapes)
        return (name, None) if new not in wanted and name in wanted else (new, pattern)

    by_pattern = {pattern: rule for rule in makes for pattern in rule.source_patterns}
    return rename, by_pattern, dot_natural_key


def _substituted(name: str, rules: dict[str, str]) -> str:
    for pattern, new in rules.items():
        name, changed = re.subn(pattern, new, name)
        if changed:
            break
    return name


def _prefixed(name: str, prefix: str, wanted: set[str]) -> str:
    """With the name of the body before it, or without, where the model has that one."""
    bare = name.removeprefix(f"{prefix}.")
    options = (name, bare, f"{prefix}.{name}")
    return next((one for one in options if one in wanted), name)
