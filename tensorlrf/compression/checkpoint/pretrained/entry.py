"""The entry `quantization_config` of config.json, as the configurations of others hold it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from tensorlrf.compression.checkpoint.pretrained.quantization import Quantization, parsed

_WHERE = "config.json"


class Entry:
    """What config.json says of factored layers, beside a base class of whoever asks for it.

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

    method: Any
    """The word, as that class has its own."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.quant_method: Any = self.method
        self.values = dict(values)
        self.told()

    def told(self) -> Quantization:
        """The same, read."""
        return parsed(self.values, _WHERE)

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers and diffusers make one.

        Parameters
        ----------
        config_dict : Mapping
            The entry of config.json.
        return_unused_kwargs : bool
            Whether to return `kwargs` too.
        **kwargs
            Of the caller; none of them is for this.

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
