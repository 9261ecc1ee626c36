"""What the forward of a subclass hands to torch: of which call of a linear layer or convolution it
consists, on which weight.

Nothing that is seen here is believed: it is what a layer is supposed to compute, and `mismatch` of
`mismatch.py` confirms it on inputs of other sizes and values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tensorlrf.errors import ArgumentError
from tensorlrf.nn.behaviour.arguments import more_arguments
from tensorlrf.nn.behaviour.lookups import scale_of
from tensorlrf.nn.copies import copy_of, replica
from tensorlrf.nn.plain import BASES, Pads, Plain, base_of, told_of

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "output_padding",
    "groups",
    "dilation",
)
_CALLS: dict[Callable[..., Tensor], tuple[str, tuple[str, ...]]] = {
    F.linear: ("Linear", ("input", "weight", "bias")),
    F.conv1d: ("Conv1d", _CONV),
    F.conv2d: ("Conv2d", _CONV),
    F.conv3d: ("Conv3d", _CONV),
    F.conv_transpose1d: ("ConvTranspose1d", _TRANSPOSED),
    F.conv_transpose2d: ("ConvTranspose2d", _TRANSPOSED),
    F.conv_transpose3d: ("ConvTranspose3d", _TRANSPOSED),
}


class Handed(NamedTuple):
    """The one call of a forward.

    plain   what it computes, zeros that were put around the input before it included
    weight  the weight that it computes with; of a layer on meta one of its shape
    bias    likewise
    own     whether that is the very parameter of the layer
    """

    plain: Plain
    weight: Tensor
    bias: Tensor | None
    own: bool


def plain_of(layer: nn.Module) -> Plain | str:
    """What the layer computes, or the reason why no plain layer does.

    Of a subclass of which nothing is known it is what one look at its forward shows, or what its
    base computes: a supposition, which `mismatch` confirms or not. Raises
    ArgumentError where a registered function gives neither.
    """
    if isinstance(layer, nn.Embedding):
        scale = scale_of(layer)
        return scale if isinstance(scale, str) else Plain("Embedding")
    told = told_of(layer)
    if told is not None:
        return told
    base = base_of(layer)
    assert base is not None
    more = more_arguments(layer, BASES[base])
    if more:
        return f"subclass of {base} whose forward takes more than an input ({', '.join(more)})"
    found = _supposed(layer)
    if found is not None:
        return found
    try:
        return Plain.of(layer)
    except (ArgumentError, AttributeError, TypeError):
        return f"subclass of {base} whose options are not those of a {base}"


_SEEN: WeakKeyDictionary[nn.Module, Plain | None] = WeakKeyDictionary()


def _supposed(layer: nn.Module) -> Plain | None:
    """By the call that its forward makes; None where it makes none of its kind, or several."""
    if layer not in _SEEN:
        found = handed(layer)
        _SEEN[layer] = None if found is None else found.plain
    return _SEEN[layer]


def handed(layer: Any) -> Handed | None:
    """The call that one forward in eval mode makes; None where there is none, or several."""
    base = base_of(layer)
    if base is None:
        return None
    try:
        twin = _twin(layer)
        x = probe_input(twin, Plain.of(twin), batched=True)
        watch = _Calls()
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), watch:
            twin(x)
    except Exception:
        return None
    if len(watch.found) != 1:
        return None
    kind, given = watch.found[0]
    weight, bias = given["weight"], given.get("bias")
    if kind != base or weight.shape != twin.weight.shape:
        return None
    try:
        plain = _told(kind, given, x)
    except (ArgumentError, TypeError):
        return None
    own = weight is twin.weight and bias is twin.bias
    return None if plain is None else Handed(plain, weight.detach(), bias, own)


def probe_input(layer: Any, plain: Plain, *, batched: bool, more: int = 0) -> Tensor:
    """Random numbers that such a layer can take, a batch of two; along each axis the kernel fits a
    few times and `more`, in each another number. A linear layer has more dimensions where it is not
    batched.
    """
    weight: Tensor = layer.weight
    if not plain.axes:
        shape: tuple[int, ...] = (2, weight.shape[1]) if batched else (2, 1, 3, weight.shape[1])
    else:
        _, inputs, *kernel = plain.shape_of(weight)
        reach = (
            d * (k - 1) + 1 + (3 + axis) * s + more
            for axis, (k, s, d) in enumerate(zip(kernel, plain.stride, plain.dilation, strict=True))
        )
        shape = (*((2,) if batched else ()), inputs * plain.groups, *reach)
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draws, dtype=torch.float32, device="cpu")
    return x.to(weight.device, weight.dtype)


def _twin(layer: Any) -> Any:
    """A copy in eval mode; of one on meta with some values, which do not count."""
    if not layer.weight.is_meta:
        return replica(layer)
    twin = copy_of(layer).to_empty(device="cpu").eval()
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in twin.parameters():
            p.copy_(torch.randn(p.shape, generator=draws, dtype=torch.float32, device="cpu"))
    return twin


class _Calls(TorchFunctionMode):
    """Notes every call of a linear layer or a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        known = _CALLS.get(func) if isinstance(func, Callable) else None  # type: ignore[arg-type]
        if known is not None:
            kind, names = known
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            self.found.append((kind, given))
        return func(*args, **(kwargs or {}))


def _told(kind: str, given: dict[str, Any], x: Tensor) -> Plain | None:
    """The layer of this call, which x came to."""
    if kind == "Linear":
        return Plain(kind) if given["input"].shape == x.shape else None
    axes = x.ndim - 2
    ahead = _zeros_ahead(given["input"], x)
    if ahead is None:
        return None
    padding: str | Pads = given.get("padding", 0)
    if not isinstance(padding, str):
        own = _each(padding, axes)
        sides = tuple((a + p, b + p) for (a, b), p in zip(ahead, own, strict=True))
        padding = sides if any(a != b for a, b in sides) else tuple(a for a, _ in sides)
    elif any(n for side in ahead for n in side):
        return None
    return Plain(
        kind,
        _each(given.get("stride", 1), axes),
        padding,
        _each(given.get("dilation", 1), axes),
        given.get("groups", 1),
        output_padding=_each(given.get("output_padding", 0), axes)
        if kind.startswith("ConvTranspose")
        else (),
    )


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _zeros_ahead(got: Tensor, x: Tensor) -> tuple[tuple[int, int], ...] | None:
    """How many zeros were put before and behind every axis of x, of which no number is one."""
    if got.shape[:2] != x.shape[:2] or got.ndim != x.ndim:
        return None
    sides = []
    for axis in range(2, x.ndim):
        others = tuple(k for k in range(x.ndim) if k != axis)
        filled = (got != 0).any(dim=others).nonzero().flatten()
        if not len(filled):
            return None
        before, behind = int(filled[0]), got.shape[axis] - 1 - int(filled[-1])
        if before + behind + x.shape[axis] != got.shape[axis]:
            return None
        sides.append((before, behind))
    return tuple(sides)


def forget(layer: nn.Module) -> None:
    """What was seen of a layer whose sizes are others now."""
    _SEEN.pop(layer, None)
