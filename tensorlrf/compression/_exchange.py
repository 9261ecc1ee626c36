"""A model with some of its modules exchanged, on the memory of the given one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

New = Callable[[nn.Module], nn.Module | None]
"""What takes the place of a module; None where it stays."""


def exchanged(model: nn.Module, new: New) -> nn.Module:
    """The model with `new(module)` in the place of modules; where there is none, the model itself.

    What comes is looked through in its turn. The result shares parameters, buffers and all modules
    but those that hold one that was exchanged; the given model stays as it is.
    """
    return _exchanged(model, new, {})


def _exchanged(module: nn.Module, new: New, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in done:
        return done[module]
    comes = new(module)
    if comes is not None:
        done[module] = made = _exchanged(comes, new, done)
        return made
    done[module] = module  # a tree that holds itself ends here
    children = {
        name: None if child is None else _exchanged(child, new, done)
        for name, child in module._modules.items()
    }
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    twin: Any = object.__new__(type(module))
    vars(twin).update(vars(module))
    twin._modules = children
    done[module] = twin
    return twin  # type: ignore[no-any-return]
