"""Which torch layers a factored one can stand in for, and why not the others."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from tensorlrf.errors import ArgumentError, UnsupportedError

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def check_layer(layer: Any, kind: type[nn.Module], argument: str) -> None:
    """`layer` is exactly a `kind` (torch.nn.Linear or torch.nn.Conv2d) and nothing hangs on it.

    Raises ArgumentError where it is no module and UnsupportedError where it is another one.
    """
    if not isinstance(layer, nn.Module):
        raise ArgumentError(
            f"{argument} is a {type(layer).__name__}; pass a torch.nn.{kind.__name__}"
        )
    if type(layer) is not kind:
        raise UnsupportedError(f"{argument} is a {type(layer).__name__}; {_reason(layer, kind)}")
    hooks = [name for name in _HOOKS if getattr(layer, name)]
    if hooks:
        raise UnsupportedError(
            f"{argument} is a {kind.__name__} with hooks ({', '.join(n[1:] for n in hooks)}), "
            "which a new layer would lose; remove them first (weight_norm, spectral_norm and prune "
            "of torch.nn.utils have a function for it) and register them on the new layer"
        )
    if "forward" in vars(layer):
        raise UnsupportedError(
            f"{argument} is a {kind.__name__} whose forward was replaced on the instance, which a "
            "new layer would lose; restore it first (del layer.forward)"
        )
    groups = getattr(layer, "groups", 1)
    if groups != 1:
        raise UnsupportedError(
            f"{argument} is a Conv2d with groups={groups}; this version factors convolutions of "
            "one group only, so leave the layer dense"
        )


def _reason(layer: nn.Module, kind: type[nn.Module]) -> str:
    """Why a layer of another type cannot be taken, and the remedy."""
    if parametrize.is_parametrized(layer):
        return (
            "its weight is parametrized: make it plain first with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return "it has no weight yet: run it once on an input, then it is a plain layer"
    if getattr(layer, "transposed", False):
        return (
            f"a transposed convolution is no torch.nn.{kind.__name__}: this version leaves it dense"
        )
    if isinstance(layer, kind):
        return (
            f"a subclass of torch.nn.{kind.__name__} may compute something else: exactly that type "
            "is replaced, so leave the layer dense or make it a plain one"
        )
    if hasattr(layer, "factors") and hasattr(layer, "path_table"):
        return "it runs on factors already: decompose its .weight and give the dense layer"
    return f"pass a torch.nn.{kind.__name__}"
