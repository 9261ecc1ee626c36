"""What a model is when its values are left aside: by this a file finds the model it belongs to.

A factored layer counts as the layer it stands for, and one that was made smaller as what it was, so
a model and its compressed form are the same architecture, on any device, in any dtype, for training
or not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from tensorlrf.compression.checkpoint.named_tensors import ancestors_of, joined
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.convolutions.sliding import FactoredSlidingNd
from tensorlrf.nn.packed.unpacked import Unpacked
from tensorlrf.nn.plain import BASES
from tensorlrf.nn.resized.layers import groups_before, resized_of

_CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")
_TRANSPOSED = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
_LAYERS: tuple[type[nn.Module], ...] = (*BASES.values(), FactoredLayer)
_OPTIONS = ("stride", "dilation", "groups", "padding_mode")


def fingerprint(model: nn.Module) -> str:
    """SHA-256, in hex, of `describe(model)`. Equal for a model and its compressed form."""
    return digest(describe(model))


def digest(description: Mapping[str, str]) -> str:
    """SHA-256, in hex, of what `describe` returned."""
    text = json.dumps(list(description.items()), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def describe(model: nn.Module) -> dict[str, str]:
    """Qualified name -> one line for each module, in order; "" is the model itself.

    A line holds the name of the type (without the file it comes from), the shapes of the module's
    own parameters and persistent buffers, and the options of a convolution. A parameter called
    "bias" is left out: fitting a layer may give it one. Modules that occur in several places are
    listed in each. A lazy parameter has no shape yet.
    """
    lines: dict[str, str] = {}
    layers: set[str] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        # What a layer is made of, such as the padding of a subclass, goes when it is factored.
        if name and any(above in layers for above in ancestors_of(name)):
            continue
        if isinstance(module, Unpacked):  # counts as what it was
            packed = describe(module.pack(values=False))
            lines.update({joined(name, own) if own else name: line for own, line in packed.items()})
            layers.add(name)
            continue
        lines[name] = _line(module)
        if isinstance(module, _LAYERS):
            layers.add(name)
    return lines


def _dense_shape(layer: FactoredLayer) -> tuple[int, ...]:
    """The shape of `layer.weight`, which is not computed."""
    probe: FactoredLayer = object.__new__(type(layer))
    vars(probe).update(vars(layer))
    for of in ("_parameters", "_buffers"):
        on_meta = {k: None if t is None else t.to("meta") for k, t in vars(layer)[of].items()}
        vars(probe)[of] = on_meta
    return tuple(probe.weight.shape)


def differences(found: Mapping[str, str], wanted: Mapping[str, str], most: int = 3) -> list[str]:
    """The first modules in which a model and the one a file was made from differ, a line each."""
    lines = []
    for name in [*wanted, *(n for n in found if n not in wanted)]:
        a, b = found.get(name), wanted.get(name)
        if a != b:
            shown = repr(name) if name else "the model itself"
            lines.append(f"{shown} is {a or 'missing'} in the model, {b or 'missing'} in the file")
    rest = len(lines) - most
    return [*lines[:most], *([f"and {rest} more"] if rest > 0 else [])]


def _line(module: nn.Module) -> str:
    factored = isinstance(module, FactoredLayer)
    kind = module.stands_for if factored else type(module).__name__
    parts = [f"{key}={value}" for key, value in _shapes(module).items()]
    # A subclass may pad in its own forward, and its factored form then holds what that comes to:
    # for those, the padding is in the name of the type.
    options: tuple[str, ...] = ()
    if kind in _CONVOLUTIONS:
        options = (*_OPTIONS, "padding")
    elif kind in _TRANSPOSED:
        options = (*_OPTIONS, "padding", "output_padding")
    elif isinstance(module, (nn.modules.conv._ConvNd, FactoredSlidingNd)):
        options = _OPTIONS
    values = {key: _plain(getattr(module, key)) for key in options}
    if options and not factored:
        values["groups"] = groups_before(module)
    parts += [f"{key}={value!r}" for key, value in values.items()]
    return f"{kind}({', '.join(parts)})"


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Own parameters and persistent buffers, in alphabetical order."""
    if isinstance(module, FactoredLayer):
        return dict(sorted({**module.also_held, "weight": _dense_shape(module)}.items()))
    tensors = {
        **module._parameters,
        **{k: b for k, b in module._buffers.items() if k not in module._non_persistent_buffers_set},
    }
    smaller = resized_of(module)
    was = {} if smaller is None else smaller.was
    shapes = {}
    for key, tensor in sorted(tensors.items()):
        if tensor is None or key == "bias":
            continue
        own = () if is_lazy(tensor) else tuple(tensor.shape)  # lazy: it has none yet
        shapes[key] = was.get(key, own)
    return shapes


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
