"""diffusers is told of factored layers, once."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.checkpoint.pretrained.card import write_card
from tensorlrf.compression.checkpoint.pretrained.marks import is_marked, unmark
from tensorlrf.compression.checkpoint.pretrained.quantization import (
    METHOD,
    QUANTIZATION,
    Quantization,
)
from tensorlrf.diffusers._quantizer import TensorlrfConfig, TensorlrfQuantizer
from tensorlrf.errors import UnsupportedError
from tensorlrf.nn import FactoredLayer

_OURS = "_of_tensorlrf"


def register() -> None:
    """Have diffusers know the method; where it does, nothing is done."""
    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, TensorlrfConfig)
    AUTO_QUANTIZER_MAPPING.setdefault(METHOD, TensorlrfQuantizer)
    if not hasattr(ModelMixin.save_pretrained, _OURS):
        cls: Any = ModelMixin
        cls.save_pretrained = _saving(cls.save_pretrained)


def _saving(save: Any) -> Any:
    """`save_pretrained` that knows factored layers, however they came into the model; a pipeline
    calls that of each of its models."""

    @functools.wraps(save)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        factored = any(isinstance(module, FactoredLayer) for module in self.modules())
        if factored:
            _attach(self, kwargs)
        else:
            _detach(self)
        (Path(save_directory) / TENSORS).unlink(missing_ok=True)  # which tells of what was there
        saved = save(self, save_directory, *args, **kwargs)
        if factored:
            write_card(Path(save_directory), self)
        return saved

    setattr(save_pretrained, _OURS, True)
    return save_pretrained


def _attach(model: Any, asked: dict[str, Any]) -> None:
    """Have `save_pretrained` of a model with factored layers ask a quantizer, in place.

    Raises UnsupportedError for one that is quantised by another one, and for a pickle.
    """
    known = getattr(model, "hf_quantizer", None)
    if known is not None and not isinstance(known, TensorlrfQuantizer) and not is_marked(model):
        method = getattr(known.quantization_config, "quant_method", type(known).__name__)
        raise UnsupportedError(
            f"the model has factored layers and is quantised by {getattr(method, 'value', method)},"
            " which makes no one folder; compress it before it is quantised"
        )
    if asked.get("safe_serialization") is False:
        raise UnsupportedError(
            "safe_serialization=False asks for a pickle, of which no factored layer is read; leave "
            "it out"
        )
    config = TensorlrfConfig(Quantization.of_model(model).to_json())
    model.hf_quantizer = TensorlrfQuantizer(config, pre_quantized=True)
    model.register_to_config(**{QUANTIZATION: config})


def _detach(model: Any) -> None:
    """Have a model without factored layers be as any other, in place."""
    unmark(model)
    if isinstance(getattr(model, "hf_quantizer", None), TensorlrfQuantizer):
        del model.hf_quantizer
    told = model.config.get(QUANTIZATION)
    if isinstance(told, TensorlrfConfig):
        kept = {key: value for key, value in model.config.items() if key != QUANTIZATION}
        model._internal_dict = type(model.config)(kept)
