"""The `quantization_config` of a model with factored layers, as transformers holds one."""

from __future__ import annotations

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from tensorlrf.compression.checkpoint.pretrained.entry import Entry
from tensorlrf.compression.checkpoint.pretrained.quantization import METHOD


class TensorlrfConfig(Entry, QuantizationConfigMixin):
    """What config.json says of factored layers.

    Parameters
    ----------
    values : Mapping
        The entry `quantization_config`, as JSON values.

    Attributes
    ----------
    quant_method : str
        "tensorlrf".
    values : dict
        As given.

    Raises
    ------
    FileFormatError
        Where the entry is damaged, of an older or a newer version, or has ranks that are not those
        of its parts.
    """

    method = METHOD  # which transformers declares as one of its own

    def __iter__(self) -> Any:
        yield from self.to_dict().items()
