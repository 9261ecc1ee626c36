"""Tensors of a checkpoint whose model is not at hand: which of them are layers is told by names and
shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration.draws import OwnDraws
from tensorlrf.compression.checkpoint.header import LONGEST_NAME
from tensorlrf.compression.checkpoint.named_tensors import ancestors_of, joined
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.errors import FileFormatError

EMBEDDINGS = (
    *("embed*", "*embedding*", "*embd", "emb", "*_emb", "wte", "wpe", "*position*", "shared"),
    "relative_attention_bias",
)
"""Names that the field gives to embeddings, whose weights look like those of linear layers."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TAKEN = frozenset(dir(nn.Module()))
"""Names that every module has a meaning for."""

DEEPEST = 64
"""Modules in one another."""

CONVS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class Tensors(nn.Module):
    """Tensors of a checkpoint under one name that make up no layer which can be factored."""


@dataclass(frozen=True)
class NamedLayers:
    """model    a model to plan with: a Linear or convolution for each weight that may be of one
    reasons  name of a module -> why it is taken for no such layer
    """

    model: nn.Module
    reasons: Mapping[str, str]

    def explained(self, plan: Plan) -> Plan:
        """The plan with the reasons of here."""
        rows = (replace(r, reason=self.reasons.get(r.name, r.reason)) for r in plan.layers)
        return replace(plan, layers=tuple(rows))


def layers_by_name(tensors: Mapping[str, Tensor]) -> NamedLayers:
    """The layers that these tensors, perhaps on meta, seem to be of."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, own = name.rpartition(".")
        groups.setdefault(layer, {})[own] = tensor
    names = sorted(groups, key=_natural)
    holders = frozenset(above for name in names for above in ancestors_of(name))
    reasons = {name: _why_not(name, groups, holders) for name in names}
    with OwnDraws():
        root: nn.Module = Tensors()
        for name in names:
            if name == "":
                root = _module(groups[name], reasons[name])
            else:
                _put(root, name, _module(groups[name], reasons[name]))
    told = {name or "(model)": why for name, why in reasons.items() if why}
    return NamedLayers(root, told)


def check_name(path: Path, name: str) -> None:
    if len(name) > LONGEST_NAME or name.count(".") > DEEPEST:
        raise FileFormatError(
            f"{path} has a tensor {name!r}; names of more than {LONGEST_NAME:,} characters, or "
            f"with more than {DEEPEST} dots, make no modules: rename it"
        )


def _why_not(name: str, groups: Mapping[str, Mapping[str, Tensor]], holders: frozenset[str]) -> str:
    """Why the tensors of that name are taken for no Linear or convolution; empty if they are.

    `holders` are the names of modules that hold others.
    """
    own = groups[name]
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or not 2 <= weight.ndim <= 5:
        return "no weight of two to five dimensions"
    if weight.dtype not in FLOATS:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, which has no factors"
    if weight.numel() == 0:
        return "its weight is empty"
    more = sorted(set(own) - {"weight", "bias"})
    if more:
        return f"it holds more than weight and bias ({', '.join(more)})"
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype not in FLOATS):
        return f"its bias {tuple(bias.shape)} is not that of a weight {tuple(weight.shape)}"
    if name in holders:
        return "it holds other modules"
    reader = _reader(name, groups)
    if reader:
        return f"its weight is read by {reader}, which does not call it"
    last = name.rpartition(".")[2].lower()
    if weight.ndim == 2 and any(fnmatchcase(last, glob) for glob in EMBEDDINGS):
        return "an embedding, by its name"
    if weight.ndim > 2 and weight.shape[1] == 1:
        return "one input channel: depthwise, it seems, where there is nothing to factor"
    if name and any(part in TAKEN or not part for part in name.split(".")):
        return "torch gives modules no such name"
    return ""


def _reader(name: str, groups: Mapping[str, Mapping[str, Tensor]]) -> str:
    """The module of torch that computes with the weight itself; empty where none is known to."""
    above, _, last = name.rpartition(".")
    if last == "out_proj" and {"in_proj_weight", "q_proj_weight"} & set(groups.get(above, {})):
        return "MultiheadAttention"
    attends = "in_proj_weight" in groups.get(joined(above, "self_attn"), {})
    decodes = joined(above, "multihead_attn") in groups
    if last in ("linear1", "linear2") and attends and not decodes:
        return "the fast path of TransformerEncoderLayer"
    return ""


def _module(own: Mapping[str, Tensor], why_not: str) -> nn.Module:
    """The tensors as a layer, or as they are."""
    module: nn.Module = Tensors()
    if not why_not:
        weight, bias = own["weight"], "bias" in own
        O, I, *kernel = weight.shape
        if kernel:
            module = CONVS[weight.ndim](I, O, tuple(kernel), bias=bias, device="meta")
        else:
            module = nn.Linear(I, O, bias=bias, device="meta")
    for key, tensor in own.items():
        # Not by register_parameter, which refuses names that a checkpoint may have.
        module._parameters[key] = nn.Parameter(tensor, requires_grad=False)
    return module


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put the module into the tree. One that holds others comes first, for it sorts first."""
    *above, last = name.split(".")
    for part in above:
        inside = root._modules.get(part)
        if inside is None:
            inside = root._modules[part] = Tensors()
        root = inside
    root._modules[last] = module


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A key by which layers.2 comes before layers.10."""
    parts = [part for part in re.split(r"[.]|(\d+)", name) if part]
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
