"""The torch layer that a `Plain` stands for, and whether a layer computes what it is said to."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.nn.copies import replica
from tensorlrf.nn.plain import BASES, HF_CONV1D, Plain, is_hf_conv1d

_ZERO_PADS = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}


def torch_layer(plain: Plain, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    """The torch layer that `plain` stands for, on these very parameters.

    weight  in the layout of the layer; bias (out,) or None

    Where the padding differs from side to side, an nn.Sequential of ZeroPad and convolution. The
    Conv1D of transformers needs transformers.
    """
    # On meta nothing is initialised: no time is spent and no random number drawn.
    with torch.device("meta"):
        layer: nn.Module
        if plain.kind == HF_CONV1D:
            layer = importlib.import_module("transformers.pytorch_utils").Conv1D(
                *weight.shape[::-1]
            )
            bias = nn.Parameter(weight.new_zeros(weight.shape[1])) if bias is None else bias
        elif plain.kind == "Linear":
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        else:
            make: Any = BASES[plain.kind]
            outputs, inputs, *kernel = plain.shape_of(weight)
            layer = make(
                inputs * plain.groups,
                outputs,
                tuple(kernel),
                stride=plain.stride,
                padding=0 if plain.is_uneven else plain.padding,
                dilation=plain.dilation,
                groups=plain.groups,
                bias=False,
                padding_mode=plain.padding_mode,
                **({"output_padding": plain.output_padding} if plain.is_transposed else {}),
            )
    layer.weight = weight
    layer.bias = bias  # type: ignore[assignment]
    if not plain.is_uneven:
        return layer
    # F.pad counts from the last axis.
    sides = [n for pads in reversed(plain.padding) for n in _pair(pads)]
    zeros: Any = _ZERO_PADS[plain.axes]
    return in_turn([zeros(tuple(sides)), layer])


def in_turn(layers: list[nn.Module], *, whole: bool = False) -> nn.Module:
    """The layers one after the other; one alone is itself, unless the `whole` is to hold it.

    The nn.Sequential has an empty `weight` that is in no state dict: models ask a layer for
    `.weight.dtype` or `.weight.device` (CLIP and T5 of transformers do), and it follows .to().
    """
    if len(layers) == 1 and not whole:
        return layers[0]
    made = nn.Sequential(*layers)
    last = next(layers[-1].parameters())
    made.register_buffer("weight", last.detach().new_empty(0), persistent=False)
    return made


def _pair(pads: Any) -> tuple[int, int]:
    return pads if isinstance(pads, tuple) else (pads, pads)


def mismatch(layer: Any, plain: Plain) -> str:
    """Why the forward of `layer` is not what `plain` says; empty where it is.

    Both run in eval mode without grad on one small random input, the layer as a copy on the same
    parameters. A layer on the meta device is believed, and one of exactly a torch type is.
    """
    weight, bias = layer.weight, layer.bias
    if weight.is_meta or type(layer) in BASES.values() or is_hf_conv1d(layer):
        return ""
    draws = torch.Generator().manual_seed(0)
    shape = _probe_shape(layer, plain)
    x = torch.randn(shape, generator=draws, dtype=torch.float32, device="cpu")
    x = x.to(weight.device, weight.dtype)
    device = weight.device.type
    try:
        twin = replica(layer)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            want = torch_layer(plain, weight, bias).eval()(x)
            got = twin(x)
    except Exception as error:
        return f"its forward fails on a small input ({type(error).__name__}: {error})"
    differs = "its forward differs from what this version knows"
    if not isinstance(got, Tensor) or got.shape != want.shape or got.dtype != want.dtype:
        return differs
    # The terms of an output are at most |x| |w| together (Cauchy-Schwarz), and rounding errors of a
    # sum of n terms grow like sqrt(n) of it. Half types sum in float32, a GPU may multiply in TF32.
    own = plain.outputs_first(weight.detach())
    n = own[0].numel()
    eps = torch.finfo(weight.dtype).eps
    sums = max(min(eps, torch.finfo(torch.float32).eps), 2.0**-10 if device == "cuda" else 0.0)
    size = own.flatten(1).float().norm(dim=1) * x.float().norm()
    if bias is not None:
        size = size + bias.detach().float().abs()
    bound = 8 * (eps + math.sqrt(n) * sums) * size
    bound = bound.reshape(-1, *[1] * plain.axes)  # along the channels, or the last dimension
    # A weight that is not finite tells nothing: around it, zeros make NaN or are left out.
    same = ((got - want).abs() <= bound) | ~bound.isfinite()
    return "" if bool(same.all()) else differs


def _probe_shape(layer: Any, plain: Plain) -> tuple[int, ...]:
    """A batch of two; along each axis the kernel fits a few times, in each another number."""
    if not plain.axes:
        return (2, layer.weight.shape[1])
    _, inputs, *kernel = plain.shape_of(layer.weight)
    reach = (
        d * (k - 1) + 1 + (3 + axis) * s
        for axis, (k, s, d) in enumerate(zip(kernel, plain.stride, plain.dilation, strict=True))
    )
    return (2, inputs * plain.groups, *reach)
