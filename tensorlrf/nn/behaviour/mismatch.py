"""The torch layer that a `Plain` stands for, and whether a layer computes what it is said to."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tensorlrf.nn.behaviour.seen import probe_input
from tensorlrf.nn.copies import replica
from tensorlrf.nn.plain import BASES, HF_CONV1D, Plain, base_of, is_hf_conv1d, is_told

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


class Probe(NamedTuple):
    """One input on which a layer runs beside the plain one.

    training  in this mode
    scale     how large it is
    batched   with a batch dimension; a linear layer has more of them where it is not
    more      how much longer it is along every axis
    where     the words for it
    """

    training: bool = False
    scale: float = 1.0
    batched: bool = True
    more: int = 0
    where: str = "on a small input"


PROBES = (
    Probe(),
    Probe(training=True, where="in training mode"),
    Probe(scale=64.0, where="on large inputs"),
    Probe(batched=False, where="on inputs of other dimensions"),
)
"""The first one for what is told of a subclass, all for what nothing is known of."""

MOST_STRIDE = 8
"""Zeros may be put around by what a stride leaves over: inputs are longer by up to so much."""

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def mismatch(
    layer: Any, plain: Plain, weight: Tensor | None = None, bias: Tensor | None = None
) -> str:
    """Why the forward of `layer` is not what `plain` says; empty where it is.

    weight, bias  what it computes with; by default its own

    Both run without grad on small random inputs, the layer as a copy on the same parameters: one
    that a subclass is told of on one input in eval mode, one of which nothing is known in both
    modes, on inputs of several sizes and scales, and on none of another dtype, which the plain one
    refuses. A layer on the meta device is believed, and one of exactly a torch type is.
    """
    if layer.weight.is_meta or type(layer) in BASES.values() or is_hf_conv1d(layer):
        return ""
    if weight is None:
        weight, bias = layer.weight, layer.bias
    told, device = is_told(layer), weight.device
    # Whoever draws numbers in forward draws none of the user's.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        try:
            twin = replica(layer)
            plain_one = torch_layer(plain, _parameter(weight), _parameter(bias)).eval()
            pair = _Pair(twin, plain_one, plain, plain.outputs_first(weight.detach()), bias)
            longest = min(MOST_STRIDE, max(plain.stride, default=0))
            sizes = [Probe(more=n, where="on other sizes") for n in range(1, 1 + longest)]
            where = pair.apart(PROBES[:1] if told else (*PROBES, *sizes))
            if not where and not told and pair.casts():
                where = "on inputs of other dtypes"
        except Exception as error:
            return f"its forward fails on a small input ({type(error).__name__}: {error})"
    if not where:
        return ""
    if told:
        return "its forward differs from what this version knows"
    base = base_of(layer)
    return f"subclass of {base} whose forward is not that of a {base} ({where})"


def _parameter(t: Any) -> Any:
    return t if t is None or isinstance(t, nn.Parameter) else nn.Parameter(t, requires_grad=False)


class _Pair(NamedTuple):
    """A layer and the plain one, with the weight, outputs first, and the bias of this."""

    twin: Any
    plain_one: nn.Module
    plain: Plain
    weight: Tensor
    bias: Tensor | None

    def apart(self, probes: Sequence[Probe]) -> str:
        """Where they give other outputs; empty where they do not."""
        return next((probe.where for probe in probes if not self._alike(probe)), "")

    def _alike(self, probe: Probe) -> bool:
        """Whether both give the same on one input, up to rounding."""
        for module in self.twin.modules():
            module.training = probe.training
        x = probe_input(self.twin, self.plain, batched=probe.batched, more=probe.more)
        x = x * probe.scale
        want, got = self.plain_one(x), self.twin(x)
        if not isinstance(got, Tensor) or got.shape != want.shape or got.dtype != want.dtype:
            return False
        # The terms of an output are at most |x| |w| together (Cauchy-Schwarz), and rounding errors
        # of a sum of n terms grow like sqrt(n) of it. Half types sum in float32, a GPU may multiply
        # in TF32.
        own, bias = self.weight, self.bias
        n, eps = own[0].numel(), torch.finfo(own.dtype).eps
        on_gpu = own.device.type == "cuda"
        sums = max(min(eps, torch.finfo(torch.float32).eps), 2.0**-10 if on_gpu else 0.0)
        size = own.flatten(1).float().norm(dim=1) * x.float().norm()
        if bias is not None:
            size = size + bias.detach().float().abs()
        bound = 8 * (eps + math.sqrt(n) * sums) * size
        bound = bound.reshape(-1, *[1] * self.plain.axes)  # along the channels, or the last ones
        # A weight that is not finite tells nothing: around it, zeros make NaN or are left out.
        same = ((got - want).abs() <= bound) | ~bound.isfinite()
        return bool(same.all())

    def casts(self) -> bool:
        """Whether it takes an input of a dtype that the plain one refuses."""
        x = probe_input(self.twin, self.plain, batched=True)
        others = [x.to(dtype) for dtype in _DTYPES if dtype != x.dtype]
        return any(_takes(self.twin, y) and not _takes(self.plain_one, y) for y in others)


def _takes(layer: nn.Module, x: Tensor) -> bool:
    try:
        layer(x)
    except Exception:
        return False
    return True
