"""Batch normalisations folded into the layers that they follow.

In eval mode y -> gamma (y - mean) / sqrt(var + eps) + beta is an affine map of every channel, and
so one with the layer that makes y: rows of its weight are scaled and its bias is shifted (Jacob et
al. 2018, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tensorlrf.compression._survey import bonds_of
from tensorlrf.compression._uncompiled import uncompiled
from tensorlrf.compression._working_copy import put
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._outputs import tensors_of
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.folding._behind import behind, why_no_more
from tensorlrf.compression.folding._flow import Flow, Passed, flow
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.behaviour.seen import plain_of
from tensorlrf.nn.convolutions.baked import is_baked
from tensorlrf.nn.copies import copy_of, replica
from tensorlrf.nn.obstacles import hooks_of, why_not_rewritten
from tensorlrf.nn.plain import Plain, base_of


def fold_batch_norms(model: nn.Module, example: Any) -> tuple[nn.Module, dict[str, str]]:
    """A copy of the model with batch normalisations folded into the layers before them.

    One is folded where it is in eval mode and reads the very output of a linear layer, a
    convolution or a transposed one that nobody else reads, as a pass on the example shows. It
    becomes an nn.Identity, and one of a subclass that runs modules it holds behind the
    normalisation, as timm's BatchNormAct2d an activation, an nn.Sequential of these; the outputs on
    the example stay what they were, to rounding.

    Parameters
    ----------
    model : Module
        It stays as it is.
    example : Tensor, tuple or dict
        A batch; positional arguments as a tuple, keyword arguments as a dict.

    Returns
    -------
    model : Module
        The copy.
    left : dict
        Name of a batch normalisation that stays -> why.

    Raises
    ------
    ArgumentError
        Where the model cannot be copied or cannot take the example.

    References
    ----------
    Jacob et al. 2018, section 3.2.

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> x = torch.rand(2, 3, 9, 9)
    >>> folded, left = tensorlrf.fold_batch_norms(model, x)
    >>> folded[1], left
    (Identity(), {})
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(folded(x), model(x), atol=1e-5)
    True
    """
    model = uncompiled(model)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    folded, _, left = folded_into(model, Batch.of(example))
    return folded, left


def folded_into(model: nn.Module, batch: Batch) -> tuple[nn.Module, dict[str, str], dict[str, str]]:
    """(a copy, name of a normalisation -> name of the layer that it is folded into, name of one ->
    why it stays)."""
    with torch.inference_mode(False), without_autocast():
        found, left = _pairs(model, batch)
        folded = _folded(model, found)
        if found and not _agree(model, folded, batch):
            # Somebody reads an output whom no torch function shows: each is tried by itself.
            wrong = [n for n in found if not _agree(model, _folded(model, {n: found[n]}), batch)]
            left |= dict.fromkeys(wrong, "without it the outputs of the model are others")
            found = {n: layer for n, layer in found.items() if n not in wrong}
            folded = _folded(model, found)
    return folded, found, left


def folded_by(model: nn.Module, pairs: Mapping[str, str], batch: Batch | None) -> nn.Module:
    """A copy with each normalisation folded into the layer that `pairs` has for it. Raises
    ArgumentError where there is no such pair, and where outputs on the batch would change."""
    modules = dict(model.named_modules())
    bound = bonds_of(model)
    for name, before in pairs.items():
        norm: Any = modules.get(name)
        layer = modules.get(before)
        if not isinstance(norm, _BatchNorm):
            why = f"there is no batch normalisation {name} in the model"
        elif layer is None or base_of(layer) is None:
            why = f"there is no linear layer or convolution {before} in the model"
        else:
            why = _why_not(norm) or _why_not_into(norm, layer, bound) or _other_width(norm, layer)
        if why:
            raise ArgumentError(
                f"plan: {name} is to be folded into {before}, but {why}; give apply the model that "
                "the plan was made for, or make a new plan"
            )
    with torch.inference_mode(False), without_autocast():
        folded = _folded(model, pairs)
        if pairs and batch is not None and not _agree(model, folded, batch):
            raise ArgumentError(
                f"plan: with {', '.join(pairs)} folded as it says the outputs of the model on the "
                "first batch are others; it is a plan for another model"
            )
    return folded


def _pairs(model: nn.Module, batch: Batch) -> tuple[dict[str, str], dict[str, str]]:
    """(name of a norm -> name of the layer that it goes into, name of a norm -> why it stays)."""
    modules = dict(model.named_modules())
    norms = {name: m for name, m in modules.items() if isinstance(m, _BatchNorm)}
    left = {name: why for name, m in norms.items() if (why := _why_not(m))}
    norms = {name: m for name, m in norms.items() if name not in left}
    found: dict[str, str] = {}
    if not norms:
        return found, left
    layers = {name: m for name, m in modules.items() if name and base_of(m) is not None}
    seen = flow(model, layers, norms, batch)
    bound = bonds_of(model)
    for name, norm in norms.items():
        layer, why = _before(name, seen)
        if layer is not None and not why:
            module = modules[layer]
            why = _why_not_into(norm, module, bound)
            why = (
                f"{layer}, which it follows: {why}" if why else _unlike(seen.layers[layer], module)
            )
        if layer is None or why:
            left[name] = why
        else:
            found[name] = layer
    return found, left


def _why_not(norm: Any) -> str:
    """Why it stays, whatever it follows."""
    if norm.training:
        return "in training mode it normalises by the batch; call model.eval() first"
    if norm.running_mean is None or norm.running_var is None:
        return "it keeps no statistics and normalises by the batch"
    hooks = hooks_of(norm)
    return f"has hooks ({', '.join(hooks)})" if hooks else why_no_more(norm)


def _why_not_into(norm: nn.Module, layer: nn.Module, bound: Mapping[nn.Module, str]) -> str:
    """Why a normalisation cannot go into a layer, whose channels are its own."""
    why = "its weight is made in its forward" if is_baked(layer) else ""
    return why or bound.get(norm, "") or why_not_rewritten(layer) or bound.get(layer, "")


def _other_width(norm: Any, layer: nn.Module) -> str:
    out = DenseLayer.of(layer).shape[0]
    return "" if norm.num_features == out else f"it has {norm.num_features} channels, not {out}"


def _before(norm: str, seen: Flow) -> tuple[str | None, str]:
    """(the layer whose output it reads, why it cannot go into that)."""
    calls, layer = seen.calls[norm], seen.inputs.get(norm)
    if calls != 1:
        return None, f"called {calls} times on the example" if calls else "the example misses it"
    if layer is None:
        return None, "it reads no output of a layer as it stands"
    passed = seen.layers[layer]
    if passed.calls != 1:
        return layer, f"{layer}, which it follows, is called {passed.calls} times on the example"
    others = sorted(passed.readers - {norm})
    if others:
        return layer, f"the output of {layer} is also read by {others[0] or 'the model'}"
    return layer, ""


def _unlike(passed: Passed, layer: nn.Module) -> str:
    """Why channels of the norm are not those of the layer."""
    plain = plain_of(layer)
    assert isinstance(plain, Plain)
    if passed.ndim != plain.axes + 2:
        return f"what it reads has {passed.ndim} dimensions, of which others are its channels"
    return ""


@torch.no_grad()
def _folded(model: nn.Module, found: Mapping[str, str]) -> nn.Module:
    small = copy_of(model)
    places: dict[nn.Module, list[str]] = {}
    for place, module in small.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(place)
    for name, before in found.items():
        norm: Any = small.get_submodule(name)
        layer = DenseLayer.of(small.get_submodule(before))
        scale, shift = affine_of(norm)
        own = layer.module
        bias = torch.zeros_like(shift) if own.bias is None else own.bias.double()
        flag = own.weight.requires_grad if own.bias is None else own.bias.requires_grad
        layer.write(layer.weight.double() * scale.reshape(-1, *[1] * (len(layer.shape) - 1)))
        shifted = (bias * scale + shift).to(own.weight.dtype)
        own.bias = nn.Parameter(shifted, requires_grad=flag)
        put(small, places[norm], behind(norm))
    return small


def affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """(scale, shift) of every channel, in float64."""
    mean, scale = norm.running_mean.double(), (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _agree(model: nn.Module, folded: nn.Module, batch: Batch) -> bool:
    """Whether outputs on the batch are the same but for rounding, of which many layers make more
    than one."""
    pairs = zip(
        tensors_of(call(replica(model), batch, argument="example")),
        tensors_of(call(replica(folded), batch, argument="example")),
        strict=True,
    )
    for want, got in pairs:
        if want.is_floating_point():
            tolerance = torch.finfo(want.dtype).eps ** 0.5
            want, got = want.double(), got.double()
            if not bool((got - want).norm() <= tolerance * want.norm()):
                return False
    return True
