"""A model of transformers with factored layers is not saved as if transformers knew these.

transformers asks the attribute `hf_quantizer` of a model whether it can be saved. Where that is a
`Mark` it refuses, in words that say what to do. `tensorlrf.hf` puts its quantizer there.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from tensorlrf.nn import FactoredLayer

_QUANTIZER = "hf_quantizer"
_OWN = ("is_quantized", "quantization_method", "_tied_weights_keys")


class Mark:
    """What transformers finds on such a model before `tensorlrf.hf` is imported."""

    quantization_config = SimpleNamespace(
        quant_method="factors of tensorlrf (`import tensorlrf.hf`, and save_pretrained writes them)"
    )
    is_trainable = is_qat_trainable = is_compileable = True


def is_of_transformers(model: nn.Module) -> bool:
    """Whether its class is one of transformers, or of a subclass."""
    return any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__)


def mark(model: nn.Module) -> None:
    """Mark a model of transformers that has factored layers, in place."""
    if not is_of_transformers(model) or getattr(model, _QUANTIZER, None) is not None:
        return
    if any(isinstance(module, FactoredLayer) for module in model.modules()):
        vars(model)[_QUANTIZER] = Mark()


def is_marked(model: nn.Module) -> bool:
    return isinstance(getattr(model, _QUANTIZER, None), Mark)


def unmark(model: Any) -> None:
    """Have a model without factored layers be for transformers as any other, in place."""
    known = vars(model).get(_QUANTIZER)
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
