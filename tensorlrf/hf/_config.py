"""The `quantization_config` of a model with factored layers, as transformers holds one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from tensorlrf.compression.checkpoint.pretrained.quantization import METHOD, Quantization, parsed

_WHERE = "config.json"


class TensorlrfConfig(QuantizationConfigMixin):
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

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.quant_method: Any = METHOD  # which transformers declares as one of its own
        self.values = dict(values)
        self.told()

    def told(self) -> Quantization:
        """The same, read."""
        return parsed(self.values, _WHERE)

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers makes one.

        Parameters
        ----------
        config_dict : Mapping
            The entry of config.json.
        return_unused_kwargs : bool
            Whether to return `kwargs` too.
        **kwargs
            Of transformers; none of them is for this.

        Returns
        -------
        TensorlrfConfig
            Or a tuple of it and `kwargs`.
        """
        made = cls(config_dict)
        return (made, kwargs) if return_unused_kwargs else made

    def to_dict(self) -> dict[str, Any]:
        """The entry of config.json."""
        return copy.deepcopy(self.values)

    def __iter__(self) -> Any:
        yield from self.to_dict().items()
