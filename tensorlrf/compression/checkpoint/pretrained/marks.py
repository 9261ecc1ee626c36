"""A model of transformers or diffusers with factored layers is not saved as if these knew them.

Both ask the attribute `hf_quantizer` of a model whether it can be saved. Where that is a `Mark`
they refuse, in words that say what to do. `tensorlrf.hf` and `tensorlrf.diffusers` put their
quantizers there.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from tensorlrf.nn import FactoredLayer

_QUANTIZER = "hf_quantizer"
_OWN = ("is_quantized", "quantization_method", "_tied_weights_keys")


TRANSFORMERS, DIFFUSERS = "transformers", "diffusers"

MODULES = {TRANSFORMERS: "tensorlrf.hf", DIFFUSERS: "tensorlrf.diffusers"}
"""A library -> our module that tells it of factored layers."""


class Mark:
    """What a library finds on such a model before our module for it is imported."""

    is_trainable = is_qat_trainable = is_compileable = True

    def __init__(self, library: str) -> None:
        self.quantization_config = SimpleNamespace(
            quant_method=f"factors of tensorlrf (`import {MODULES[library]}`, and save_pretrained "
            "writes them)"
        )


def library_of(model: nn.Module) -> str:
    """Of which of the two the class is, or its base; empty for all others."""
    names = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    return next((library for library in MODULES if library in names), "")


def is_of_transformers(model: nn.Module) -> bool:
    """Whether its class is one of transformers, or of a subclass."""
    return library_of(model) == TRANSFORMERS


def mark(model: nn.Module) -> None:
    """Mark a model of either that has factored layers, in place."""
    library = library_of(model)
    if not library or getattr(model, _QUANTIZER, None) is not None:
        return
    if any(isinstance(module, FactoredLayer) for module in model.modules()):
        vars(model)[_QUANTIZER] = Mark(library)


def is_marked(model: nn.Module) -> bool:
    return isinstance(getattr(model, _QUANTIZER, None), Mark)


def unmark(model: Any) -> None:
    """Have a model without factored layers be for its library as any other, in place."""
    known = vars(model).get(_QUANTIZER)
    if library_of(model) == DIFFUSERS:
        if isinstance(known, Mark):
            del vars(model)[_QUANTIZER]
        return
    told = getattr(getattr(model, "config", None), "quantization_config", None)
    method = (
        told.get("quant_method") if isinstance(told, dict) else getattr(told, "quant_method", 0)
    )
    if not isinstance(known, Mark) and method != "tensorlrf":
        return
    vars(model).pop(_QUANTIZER, None)
    if method == "tensorlrf":
        del model.config.quantization_config
    for module in model.modules():
        for name in _OWN:
            vars(module).pop(name, None)
    if "all_tied_weights_keys" in vars(model):
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
