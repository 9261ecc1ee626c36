"""Names that the tensors of a checkpoint have in the model of transformers that is made of it.

Older files, and those of a body without its head, have other names than the model of today.
transformers renames them while it loads; here its rules are asked, and nothing is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from tensorlrf.errors import UnsupportedError

Rename = Callable[[str], str]


def names_in(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Name in the files -> name of a parameter or persistent buffer of the model, of those that are
    one there.

    Raises UnsupportedError where transformers does not rename tensors, but makes others of them.
    """
    names = list(names)
    wanted = set(model.state_dict())
    if wanted <= set(names):
        return {name: name for name in names if name in wanted}
    rename = _renaming(model, wanted)
    found = {name: rename(name) for name in names}
    return {name: new for name, new in found.items() if new in wanted}


def _renaming(model: Any, wanted: set[str]) -> Rename:
    """By the rules of the installed transformers; of one that has others by those of the class."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key
    except ImportError:
        rules = getattr(type(model), "_checkpoint_conversion_mapping", {})
        return lambda name: _prefixed(_substituted(name, rules), prefix, wanted)
    known: list[Any] = get_model_conversion_mapping(model)
    makes = [one for one in known if isinstance(one, WeightConverter)]
    renames = [one for one in known if not isinstance(one, WeightConverter)]
    shapes: dict[str, Any] = dict.fromkeys(wanted, True)

    def rename(name: str) -> str:
        new, made_by = rename_source_key(name, renames, makes, prefix, shapes)
        if new not in wanted and name in wanted:
            return name
        if made_by is not None and new in wanted:
            raise UnsupportedError(
                f"transformers makes {new} of several tensors, {name} among them"
            )
        return new

    return rename


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
