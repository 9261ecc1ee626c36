"""LoRA of peft on factored layers: imported where peft is, by `tensorlrf.hf`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.model import LoraModel
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_adapters_to_merge,
)
from peft.utils import PeftType, TaskType
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND, SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn
from transformers import PreTrainedModel

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.nn import FactoredHFConv1D, FactoredLayer, FactoredLinear
from tensorlrf.nn.ranks.grown import GROWING, Grown, grow, shrink, why_not

OLDEST = (0, 21)
"""The versions of peft that this was tried with begin here."""

_INITS = ("gaussian", "orthogonal")
"""Words of `init_lora_weights` that leave the base as it is and need nothing of it."""


def register() -> None:
    """Have peft put LoRA on factored layers; where it does, nothing is done."""
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = FactoredLoraModel


class FactoredLoraLinear(Linear):  # type: ignore[misc]  # peft has no types that are read here
    """LoRA beside a factored linear layer, merged into it as terms behind its own.

    Parameters
    ----------
    base_layer : FactoredLinear
    adapter_name : str
    config : LoraConfig
    **kwargs
        Of peft.
    """

    def __init__(self, base_layer: Any, adapter_name: str, config: Any, **kwargs: Any) -> None:
        turned = isinstance(base_layer, FactoredHFConv1D)
        config.fan_in_fan_out = turned  # as peft itself corrects it, by the layer
        super().__init__(
            base_layer, adapter_name, config=config, is_target_conv_1d_layer=turned, **kwargs
        )
        self._grown: list[Grown] = []  # what the base had before each merged adapter

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Have the base layer run on its factors with those of adapters behind them.

        Parameters
        ----------
        safe_merge : bool
            Whether to look for NaN and Inf first.
        adapter_names : list of str, optional
            The active ones by default.

        Raises
        ------
        UnsupportedError
            Of a format that takes no such terms.
        ArgumentError
            For numbers that are none.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.lora_A:
                continue
            change = self._change(name)
            finite = (bool(one.isfinite().all()) for one in change if one is not None)
            if safe_merge and not all(finite):
                raise ArgumentError(
                    f"adapter {name!r} has NaN or Inf; load or train it anew before it is merged"
                )
            self._grown.append(grow(self.get_base_layer(), *change))
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take merged adapters away again: the factors are what they were, bit for bit."""
        while self.merged_adapters:
            self.merged_adapters.pop()
            shrink(self.get_base_layer(), self._grown.pop())

    @torch.no_grad()
    def _change(self, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the adapter adds: left (out, k) and right (k, in) of the weight, and of the bias."""
        base = self.get_base_layer().weight
        A, B = self.lora_A[name].weight, self.lora_B[name]
        bias = B.bias * self.scaling[name] if self.lora_bias[name] else None
        left = B.weight * self.scaling[name]
        home = {"device": base.device, "dtype": base.dtype}
        return left.to(**home), A.to(**home), None if bias is None else bias.to(**home)


class FactoredLoraModel(LoraModel):  # type: ignore[misc]  # as above
    """peft's model of LoRA, which knows factored layers; for all others it is peft's.

    Parameters
    ----------
    model : Module
    peft_config : LoraConfig
    adapter_name : str
    **kwargs
        Of peft.
    """

    # ---- putting adapters on -----------------------------------------------------------------

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        factored = dict(_factored(model))
        if factored:
            _include_all_linear(peft_config, model, factored)
            wanted = {n: m for n, m in factored.items() if self._wants(peft_config, n)}
            _check_layers(wanted, model)
            if wanted:
                _check_config(peft_config, wanted)
            _check_parameters(peft_config, factored)
        super()._prepare_model(peft_config, model)

    def _wants(self, config: Any, name: str) -> bool:
        return bool(self._check_target_module_exists(config, name))

    @staticmethod
    def _create_new_module(
        lora_config: Any, adapter_name: str, target: Any, **kwargs: Any
    ) -> nn.Module:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, FactoredLayer):
            made: nn.Module = LoraModel._create_new_module(
                lora_config, adapter_name, target, **kwargs
            )
            return made
        name = kwargs.get("target_name", "")
        _check_layers({name: base}, None)
        _check_config(lora_config, {name: base})
        return FactoredLoraLinear(target, adapter_name, config=lora_config, **kwargs)

    # ---- merging -----------------------------------------------------------------------------

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        for name, module in self.model.named_modules():
            if not isinstance(module, FactoredLoraLinear):
                continue
            bias = any(module.lora_bias.values())
            if unfit := why_not(module.get_base_layer(), bias):
                raise UnsupportedError(
                    f"merging adapters: {name!r} {unfit}; keep the adapter beside the model "
                    "(PeftModel.save_pretrained), where it runs as it is, or leave this layer out "
                    "of target_modules"
                )

    # ---- loading -----------------------------------------------------------------------------

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        if any(isinstance(module, FactoredLoraLinear) for module in model.modules()):
            try:
                _check_base(model, tensors, config, adapter_name)
            except ArgumentError:
                _take_off(model, adapter_name)
                raise
        return tensors


def _factored(model: nn.Module) -> Iterator[tuple[str, FactoredLayer]]:
    """Those that are under no adapter or are the base of one, by the name that peft looks at."""
    below: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if below and name.startswith(below):
            continue
        if isinstance(module, BaseTunerLayer):
            below = (*below, f"{name}.")
            module = module.get_base_layer()
        if isinstance(module, FactoredLayer):
            yield name, module


def _include_all_linear(config: Any, model: nn.Module, factored: Mapping[str, Any]) -> None:
    """Have "all-linear" mean factored linear layers too, but for heads, as peft leaves out those
    that are dense."""
    wanted = config.target_modules
    if not isinstance(wanted, str) or wanted.lower() != INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return
    _maybe_include_all_linear_layers(config, model)
    heads: list[Any] = []
    if isinstance(model, PreTrainedModel):
        found: Any = model
        heads.append(found.get_output_embeddings())
        if heads[0] is None and config.task_type == TaskType.SEQ_CLS:
            heads = [getattr(model, name, None) for name in SEQ_CLS_HEAD_NAMES]
    head = next((one for one in heads if one is not None), None)
    inside = set() if head is None else {id(module) for module in head.modules()}
    config.target_modules |= {
        name
        for name, layer in factored.items()
        if isinstance(layer, FactoredLinear) and id(layer) not in inside
    }


def _check_layers(wanted: Mapping[str, FactoredLayer], model: nn.Module | None) -> None:
    """Raise UnsupportedError for a layer that no adapter can be put on."""
    if tuple(int(part) for part in peft.__version__.split(".")[:2]) < OLDEST and wanted:
        raise UnsupportedError(
            f"peft is {peft.__version__}; adapters on factored layers need "
            f"{'.'.join(map(str, OLDEST))} or newer"
        )
    for name, layer in wanted.items():
        if type(layer) not in GROWING:
            raise UnsupportedError(
                f"target_modules matches {name!r}, a {type(layer).__name__}; adapters are for "
                "factored linear layers: leave it out, or leave it dense when compressing (skip=)"
            )
        parent = model.get_submodule(name.rpartition(".")[0]) if model is not None else None
        if type(parent).__module__.startswith("tensorlrf."):
            raise UnsupportedError(
                f"target_modules matches {name!r}, whose factors its {type(parent).__name__} reads "
                "itself, past an adapter; leave it out (exclude_modules=)"
            )


def _check_config(config: Any, wanted: Iterable[str]) -> None:
    """Raise UnsupportedError for what LoRA on factored layers does not have."""
    asked = [
        f"{one.name}={getattr(config, one.name)!r}"
        for one in fields(config)
        if one.metadata.get("is_lora_variant") and getattr(config, one.name)
    ]
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower() not in _INITS:
        asked.append(f"init_lora_weights={init!r}")
    if getattr(config, "layer_replication", None):
        asked.append(f"layer_replication={config.layer_replication!r}")
    if asked:
        raise UnsupportedError(
            f"LoraConfig({', '.join(asked)}) is not served on factored layers such as "
            f"{next(iter(wanted))!r}; leave it out, or those layers"
        )


def _check_parameters(config: Any, factored: Iterable[str]) -> None:
    """Raise UnsupportedError where parameters of factored layers are asked for."""
    for asked in getattr(config, "target_parameters", None) or ():
        place = asked.rpartition(".")[0]
        found = [n for n in factored if place and (n == place or n.endswith(f".{place}"))]
        if found:
            raise UnsupportedError(
                f"target_parameters names {asked!r}, a tensor of the factored layer {found[0]!r}; "
                "put the layer into target_modules"
            )


def _check_base(model: nn.Module, tensors: Mapping[str, Tensor], config: Any, adapter: str) -> None:
    """Raise ShapeError where an adapter has tensors of other sizes than the model's layers take,
    or for layers that the model does not have."""
    base = config.base_model_name_or_path
    remedy = (
        f"it was trained on {base!r}: load it there, or train one on this model"
        if base
        else "load it on the model that it was trained on"
    )
    own = model.state_dict()
    for name, tensor in tensors.items():
        if f".{LoraModel.prefix}" not in name:
            continue
        if name not in own:
            raise ShapeError(
                f"adapter {adapter!r} is for another base: it has {name!r}, and the model has no "
                f"such layer among its targets; {remedy}"
            )
        if own[name].shape != tensor.shape:
            raise ShapeError(
                f"adapter {adapter!r} is for another base: its {name!r} is {tuple(tensor.shape)}, "
                f"where this model takes {tuple(own[name].shape)}; {remedy}"
            )


def _take_off(model: Any, adapter: str) -> None:
    """Have a model be without an adapter that does not fit, and without all of peft if it was its
    only one."""
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, LoraModel):
        return
    if len(tuner.peft_config) > 1:
        tuner.delete_adapter(adapter)
    else:
        tuner.unload()
