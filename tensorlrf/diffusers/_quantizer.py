"""What diffusers asks while it loads and saves a model with factored layers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor

from tensorlrf.compression.checkpoint.pretrained.entry import Entry
from tensorlrf.compression.checkpoint.pretrained.held import (
    Held,
    missing,
    of_no_layer,
    of_other_size,
    tensors_of,
)
from tensorlrf.compression.checkpoint.pretrained.quantization import (
    METHOD,
    guard,
)
from tensorlrf.compression.checkpoint.pretrained.structure import (
    factored_tensors,
    give_structure,
    settle,
)
from tensorlrf.errors import FileFormatError

_WHERE = "config.json"
_ALIGNED = 64  # bytes, as torch has new tensors on a CPU


class _Method(str):
    """The word, as diffusers has the words of its own: it asks for the value."""

    @property
    def value(self) -> str:
        return str(self)


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

    method = _Method(METHOD)

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: none of it is a default."""
        return self.to_dict()


class TensorlrfQuantizer(DiffusersQuantizer):
    """Factored layers in a model of diffusers.

    Nothing is quantised: the layers are of floats and train, and diffusers has no other hook by
    which layers of another kind come into a model before its weights.

    Parameters
    ----------
    quantization_config : TensorlrfConfig
    **kwargs
        Of diffusers.
    """

    requires_calibration = True  # it makes no factors of dense weights

    def __init__(self, quantization_config: TensorlrfConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._told = quantization_config.told()
        self._there: dict[str, Held] = {}
        self._where = "the folder"

    # ---- loading ----------------------------------------------------------------------------

    def maybe_update_loaded_keys(
        self, loaded_keys: Sequence[str], checkpoint_files: Sequence[str] | None
    ) -> list[str]:
        """The names of tensors that the model is to have: those in the files but for the empty ones
        that stand where dense weights did.

        Parameters
        ----------
        loaded_keys : sequence of str
        checkpoint_files : sequence of str

        Returns
        -------
        list of str

        Raises
        ------
        FileFormatError
            Where a file is missing.
        """
        files = [os.fspath(one) for one in checkpoint_files or ()]
        self._where = os.path.dirname(files[0]) if files else self._where
        self._there = tensors_of(files)
        guards = set(self._told.guards)
        return [name for name in loaded_keys if name not in guards]

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        give_structure(model, self._told, set(self._there), self._where)
        shapes = {name: t.shape for name, t in model.state_dict().items()}
        for name, tensor in factored_tensors(model):
            known = self._there.get(self._told.tied.get(name, name), self._there.get(name))
            if known is None:
                raise missing(self._where, name)
            if known.shape != tuple(tensor.shape):
                raise of_other_size(self._where, name, known.shape, tuple(tensor.shape))
        for name, one in self._there.items():
            if one.shape == (0,) and tuple(shapes.get(name, (0,))) != (0,):
                raise of_no_layer(self._where, name)
        return model

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """None: what is missing is an error, no random numbers.

        Parameters
        ----------
        model : ModelMixin
        missing_keys : list of str
        prefix : str

        Returns
        -------
        list of str
            Empty.

        Raises
        ------
        FileFormatError
            Where there are any.
        """
        lacking = [name for name in missing_keys if name not in self._told.tied]
        if lacking:
            raise FileFormatError(
                f"path={self._where!r}: {len(lacking)} tensors are missing, {sorted(lacking)[0]!r} "
                "the first; get the folder anew"
            )
        return []

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        settle(model, self._told, self._where)
        _align(model)
        model.is_quantized = False  # its numbers are floats: .half() and training are for it
        return model

    # ---- saving -----------------------------------------------------------------------------

    @property
    def is_serializable(self) -> bool:
        """True: `save_pretrained` writes what `from_pretrained` reads."""
        return True

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `save_pretrained` writes.

        Parameters
        ----------
        state_dict : dict
            Of the model.
        safe_serialization : bool
            Whether it is to be safetensors.

        Returns
        -------
        tuple
            The tensors, and no metadata.
        """
        state = {name: one for name, one in state_dict.items() if isinstance(one, Tensor)}
        return state | {name: guard() for name in self._told.guards}, {}

    # ---- training ---------------------------------------------------------------------------

    @property
    def is_trainable(self) -> bool:
        """True: factors have gradients."""
        return True


def _align(model: Any) -> None:
    """Have each tensor begin where a new one would.

    diffusers leaves them mapped where they lie in the file, at any multiple of four bytes. Library
    products of few rows take other instructions there, and round in another way: outputs would not
    be those of the model that was saved. One tensor is copied at a time.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNED:
            tensor.data = tensor.data.clone()
