"""Modules that do something beside what their type does: subclasses that are made when needed."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


class Derived(nn.Module):
    """What a module has beside its type, of which it is made a subclass: to be subclassed."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Its class is made when it is needed, and found by the type that it is a subclass of."""
        mixin, kind = type(self).__bases__
        return _blank, (mixin, kind), vars(self)


def derive(module: Any, mixin: Any) -> None:
    """Have a module be of its type and of `mixin`, a `Derived`, in place; one that is stays so."""
    kind: Any = type(module)
    if not issubclass(kind, mixin):
        module.__class__ = _derived(mixin, kind)


def underive(module: Any) -> None:
    """Have it be of its type alone again, in place."""
    module.__class__ = type_of(module)


def type_of(module: nn.Module) -> type[nn.Module]:
    """Of which it was made a subclass."""
    kind: type[nn.Module]
    _, kind = type(module).__bases__
    return kind


@cache
def _derived(mixin: Any, kind: Any) -> type[nn.Module]:
    """The subclass of a type, under the same name."""
    made: type[nn.Module] = type(
        kind.__name__,
        (mixin, kind),
        {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__},
    )
    return made


def _blank(mixin: Any, kind: Any) -> nn.Module:
    made: nn.Module = object.__new__(_derived(mixin, kind))
    return made
