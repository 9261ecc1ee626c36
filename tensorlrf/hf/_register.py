"""transformers is told of factored layers, once."""

from __future__ import annotations

import functools
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)

from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.checkpoint.pretrained.card import write_card
from tensorlrf.compression.checkpoint.pretrained.marks import unmark
from tensorlrf.compression.checkpoint.pretrained.quantization import METHOD
from tensorlrf.errors import TensorlrfWarning
from tensorlrf.hf._config import TensorlrfConfig
from tensorlrf.hf._quantizer import TensorlrfQuantizer, attach
from tensorlrf.nn import FactoredLayer

_OURS = "_of_tensorlrf"


def register() -> None:
    """Have transformers know the method, and peft our layers; where they do, nothing is done."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(TensorlrfConfig)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(TensorlrfQuantizer)
    if not hasattr(PreTrainedModel.save_pretrained, _OURS):
        cls: Any = PreTrainedModel
        cls.save_pretrained = _saving(cls.save_pretrained)
    if find_spec("peft") is not None:
        _register_adapters()


def _register_adapters() -> None:
    try:
        from tensorlrf.hf import _adapters
    except ImportError as error:  # of a peft that is older, or lacks what it needs
        warnings.warn(
            f"adapters on factored layers need peft 0.21 or newer, and all that it needs: {error}",
            TensorlrfWarning,
            stacklevel=4,
        )
    else:
        _adapters.register()


def _saving(save: Any) -> Any:
    """`save_pretrained` that knows factored layers, however they came into the model.

    Without, transformers would write their tensors and not what they are, and who loads them would
    get numbers drawn at random.
    """

    @functools.wraps(save)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        factored = any(isinstance(module, FactoredLayer) for module in self.modules())
        adapters = getattr(self, "_hf_peft_config_loaded", False)  # which alone are written then
        if not factored:
            unmark(self)
        elif not adapters:
            attach(self)
        if not adapters:  # what tells of the tensors that were there
            (Path(save_directory) / TENSORS).unlink(missing_ok=True)
        saved = save(self, save_directory, *args, **kwargs)
        if factored and not adapters:
            write_card(Path(save_directory), self)
        return saved

    setattr(save_pretrained, _OURS, True)
    return save_pretrained
