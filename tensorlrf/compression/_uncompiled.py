"""A model as it was before torch.compile."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from tensorlrf.compression._exchange import exchanged
from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.compression.group._unsharded import unsharded
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

    def inner(module: nn.Module) -> nn.Module | None:
        held: Any = module
        return held._orig_mod if isinstance(module, wrapper) else None

    return exchanged(model, inner)


def own_model(model: Any, group: Alone = ALONE) -> nn.Module:
    """The same of what a user gives, and without wrappers of torch.distributed, for the ranks of a
    group. Raises ArgumentError for what is no model."""
    model = uncompiled(model)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    return unsharded(model, group)
