"""A model as it was before torch.compile."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from tensorlrf.errors import ArgumentError


def uncompiled(model: nn.Module) -> nn.Module:
    """The model without the wrappers of torch.compile, at the root and inside.

    A wrapper holds the compiled module under a name of its own, which would be part of every name
    in a plan and a file, and code of before its layers were replaced. The result shares parameters,
    buffers and all modules but those that hold a wrapper; the given model stays as it is. Without
    wrappers it is the model itself.
    """
    # Whoever has compiled a module has imported this, and nobody else need.
    frame: Any = sys.modules.get("torch._dynamo.eval_frame")
    wrapper = getattr(frame, "OptimizedModule", None)
    if wrapper is None or not isinstance(model, nn.Module):
        return model
    return _without(wrapper, model, {})


def own_model(model: Any) -> nn.Module:
    """The same of what a user gives. Raises ArgumentError for what is no model."""
    model = uncompiled(model)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    return model


def _without(wrapper: type, module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if isinstance(module, wrapper):
        inner: Any = module
        return _without(wrapper, inner._orig_mod, done)
    if module in done:
        return done[module]
    done[module] = module  # a tree that holds itself ends here
    children = {
        name: None if child is None else _without(wrapper, child, done)
        for name, child in module._modules.items()
    }
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    twin: Any = object.__new__(type(module))
    vars(twin).update(vars(module))
    twin._modules = children
    done[module] = twin
    return twin  # type: ignore[no-any-return]
