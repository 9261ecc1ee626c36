"""What the forward of a subclass takes beside that of its base."""

from __future__ import annotations

import inspect

from torch import nn

_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def more_arguments(layer: nn.Module, base: type[nn.Module]) -> list[str]:
    """Of its forward, what that of its base has not: whoever calls it may give these."""
    try:
        own = list(inspect.signature(type(layer).forward).parameters.values())
    except (TypeError, ValueError):  # of a forward that is not written in Python
        return ["unknown"]
    known = len(inspect.signature(base.forward).parameters)
    return [p.name for p in own[known:]] + [p.name for p in own[:known] if p.kind in _ANY]
