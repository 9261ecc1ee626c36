"""A factored layer becomes quantised Linear layers, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tensorlrf.compression import export
from tensorlrf.errors import TensorlrfWarning, UnsupportedError, warn
from tensorlrf.factors.kinds import format_of
from tensorlrf.nn import FactoredLinear
from tensorlrf.nn.latent.attention import LatentAttention
from tensorlrf.nn.packed.unpacked import Unpacked

HOLDERS = (FactoredLinear, LatentAttention, Unpacked)
"""What torchao is to ask us about: linear layers, and modules that read the factors of theirs."""


def quantised(
    module: nn.Module, handler: Callable[[nn.Module], nn.Module], options: dict[str, Any]
) -> nn.Module:
    """The `module` itself, of which what `handler` has quantised is the forward from here on.

    It keeps its identity, since a layer may be in several places, or be the whole model, of which
    torchao keeps what it has been given.

    options  what torchao names beside the configuration: a parameter

    Raises UnsupportedError where a parameter is named, where the layer has hooks or is sharded. It
    is then as it was.
    """
    if not isinstance(module, FactoredLinear):
        _stays(f"a {_name(module)} reads its matrices by itself, and does not call their layers")
        return module
    if (parameter := options.get("parameter_name", "weight")) != "weight":
        raise UnsupportedError(
            f"the configuration names the parameter {parameter!r} of a factored layer, which is "
            "quantised as a whole; name the layer"
        )
    stock = export(module)
    linears = [(name, one) for name, one in stock.named_modules() if type(one) is nn.Linear]
    if not linears:
        word = format_of(module.factors)
        _stays(f"a {_name(module)} on the format {word!r} is not made of Linear layers")
        return module
    for name, linear in linears:
        made = handler(linear)
        if not name:
            stock = made
        elif made is not linear:
            stock.set_submodule(name, made)
    _become(module, stock)
    return module


def _become(module: nn.Module, other: nn.Module) -> None:
    """Have a module be the other one, wherever it is held."""
    vars(module).clear()
    vars(module).update(vars(other))
    object.__setattr__(module, "__class__", type(other))


def _name(module: nn.Module) -> str:
    return type(module).__name__


def _stays(why: str) -> None:
    warn(f"quantize_ leaves a layer as it is: {why}", TensorlrfWarning)
