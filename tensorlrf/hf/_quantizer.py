"""What transformers asks while it loads, saves and trains a model with factored layers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.quantizers.base import HfQuantizer

from tensorlrf.compression.checkpoint.pretrained.held import (
    Held,
    of_no_layer,
    of_other_size,
    tensors_of,
)
from tensorlrf.compression.checkpoint.pretrained.held import missing as lacking
from tensorlrf.compression.checkpoint.pretrained.marks import is_marked
from tensorlrf.compression.checkpoint.pretrained.quantization import Quantization, guard
from tensorlrf.compression.checkpoint.pretrained.structure import (
    factored_tensors,
    give_structure,
    seen_from,
    settle,
)
from tensorlrf.compression.checkpoint.renamed import found_in
from tensorlrf.errors import FileFormatError, UnsupportedError
from tensorlrf.hf._config import TensorlrfConfig
from tensorlrf.hf._ties import declare

_MODEL = "the folder"


class TensorlrfQuantizer(HfQuantizer):
    """Factored layers in a model of transformers.

    Nothing is quantised: the layers are of floats and train, and transformers has no other hook by
    which layers of another kind come into a model before its weights.

    Parameters
    ----------
    quantization_config : TensorlrfConfig
    **kwargs
        Of transformers.
    """

    requires_calibration = True  # it makes no factors of dense weights

    def __init__(self, quantization_config: TensorlrfConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._told = quantization_config.told()

    # ---- loading ----------------------------------------------------------------------------

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> Any:
        files = [os.fspath(one) for one in checkpoint_files or ()]
        where = os.path.dirname(files[0]) if files else _MODEL
        there = tensors_of(files)
        self._told = seen_from(model, self._told, str(model.base_model_prefix or ""))
        give_structure(model, self._told, set(there), where)
        declare(model, self._told)
        _leave_ours(model, {*self._told.guards, *(n for n, f in there.items() if f.of_ours)})
        if files:
            _check(model, self._told, there, where)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        settle(model, self._told, str(model.config.name_or_path or _MODEL))
        # Its numbers are floats: .half() and training are for it as for any model.
        model.is_quantized = False
        for module in model.modules():
            config = getattr(module, "config", None)
            if config is not None and hasattr(config, "_is_quantized"):
                del config._is_quantized
        return model

    # ---- saving -----------------------------------------------------------------------------

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """True: `save_pretrained` writes what `from_pretrained` reads."""
        return True

    def get_state_dict_and_metadata(
        self, model: Any, *_: Any
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What `save_pretrained` writes; the model's configuration is to tell of its layers.

        Parameters
        ----------
        model : PreTrainedModel

        Returns
        -------
        tuple
            The tensors, and no metadata.
        """
        state = {k: t for k, t in model.state_dict().items() if isinstance(t, Tensor)}
        if getattr(model, "_hf_peft_config_loaded", False):
            return state, {}  # of which transformers takes the adapter, and leaves the rest
        told = Quantization.of_model(model)
        declare(model, told)
        self._told = told
        self.quantization_config = TensorlrfConfig(told.to_json())
        model.config.quantization_config = self.quantization_config
        return state | {name: guard() for name in told.guards}, {}

    # ---- training ---------------------------------------------------------------------------

    @property
    def is_trainable(self) -> bool:
        """True: factors have gradients."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True: so does the whole model."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: a forward is straight code."""
        return True


def attach(model: Any) -> None:
    """Have `save_pretrained` of a model with factored layers ask a quantizer, in place.

    Raises UnsupportedError for one that is quantised by another one.
    """
    known = getattr(model, "hf_quantizer", None)
    if isinstance(known, TensorlrfQuantizer):
        return
    if known is not None and not is_marked(model):
        method = getattr(known.quantization_config, "quant_method", type(known).__name__)
        raise UnsupportedError(
            f"the model has factored layers and is quantised by {getattr(method, 'value', method)},"
            " which makes no one folder; compress it before it is quantised"
        )
    told = Quantization.of_model(model)
    model.hf_quantizer = TensorlrfQuantizer(TensorlrfConfig(told.to_json()), pre_quantized=True)


def _leave_ours(model: Any, names: Iterable[str]) -> None:
    """Have transformers pass over the tensors that stand where dense weights did, and those that
    `tensorlrf.load` alone reads."""
    ends = {".".join(name.split(".")[-2:]) for name in names}
    patterns = {rf"(^|\.){re.escape(one)}$" for one in ends}
    known = model._keys_to_ignore_on_load_unexpected or ()
    model._keys_to_ignore_on_load_unexpected = {*known, *patterns}


def _check(model: Any, told: Quantization, there: Mapping[str, Held], where: str) -> None:
    """Raise FileFormatError where tensors are missing for which transformers would draw numbers, or
    where those of a factored layer are of other sizes than its ranks say."""
    by_name = found_in(model, there)
    shapes = {name: t.shape for name, t in model.state_dict().items()}
    for name, tensor in factored_tensors(model):
        known = by_name.get(told.tied.get(name, name), by_name.get(name))
        if known is None:
            raise lacking(where, name)
        shape = there[known].shape
        if shape != tuple(tensor.shape):
            raise of_other_size(where, name, shape, tuple(tensor.shape))
    for name, known in by_name.items():
        if there[known].shape == (0,) and tuple(shapes[name]) != (0,):
            raise of_no_layer(where, name)
    if type(model).__name__ not in (getattr(model.config, "architectures", None) or ()):
        return  # a head that the files do not have is new, and transformers says so
    ties = model.all_tied_weights_keys
    known_by = {*by_name, *(ties[name] for name in by_name if name in ties)}
    known_by |= {name for name, other in ties.items() if other in known_by}
    ignored = model._keys_to_ignore_on_load_missing or ()
    missing = [
        name
        for name in shapes
        if name not in known_by and not any(re.search(one, name) for one in ignored)
    ]
    if missing:
        raise FileFormatError(
            f"path={where!r}: {len(missing)} tensors are missing, {missing[0]!r} the first; get "
            "the folder anew"
        )
