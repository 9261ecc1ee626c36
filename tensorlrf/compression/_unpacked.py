"""A model whose packed modules have a layer for each matrix, and the way back.

An LSTM, an nn.MultiheadAttention, the experts of a mixture keep their matrices in tensors for which
no layer stands. A model is unpacked where it is looked at, so that all that is known of linear
layers holds for these matrices; in what comes of it, a module of which nothing was factored is what
it was before.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from tensorlrf.compression._baked import with_baked
from tensorlrf.compression._exchange import exchanged
from tensorlrf.compression._uncompiled import own_model
from tensorlrf.compression.group._group import Alone, Group
from tensorlrf.compression.group._scattered import Scattered, scatter
from tensorlrf.compression.group._unsharded import in_whole, is_wrapped, with_buffers_of_first
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.packed.unpacked import Unpacked, unpacked_type, why_not_unpacked

_NESTED = "_used_nested_tensor"
"""Where an nn.TransformerEncoder keeps what its `use_nested_tensor` was."""


def unpacked_model(model: Any) -> nn.Module:
    """What a user gives, without wrappers of torch.compile, unpacked, and with plain layers for
    those that make their weight in every forward.

    Raises ArgumentError for what is no model.
    """
    return unpacked(with_baked(own_model(model)))


def shared_model(model: Any, group: Alone) -> nn.Module:
    """The same where all ranks of a group have one, with the buffers of the first rank where a
    DistributedDataParallel has let them part; matrices that are sharded stay so."""
    if isinstance(group, Group) and isinstance(model, nn.Module) and is_wrapped(model):
        model = with_buffers_of_first(own_model(model, group), group)
        model = exchanged(model, partial(_unpacked_in_parts, group))
    return unpacked_model(model)


def _unpacked_in_parts(group: Group, module: nn.Module) -> nn.Module | None:
    """A module unpacked whose packed matrices are scattered, and those of its layers again."""
    own = list(module.parameters())
    if unpacked_type(module) is None or not any(isinstance(p, Scattered) for p in own):
        return None
    made = _unpacked(in_whole(module))
    if made is not None:
        scatter(made, group, besides=own)
    return made


def unpacked(model: nn.Module) -> nn.Module:
    """The model, on the same memory, with every module unpacked that can be."""
    return settled(exchanged(model, _unpacked))


def unpacked_for(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """The model with those modules unpacked inside which there are such qualified names, and not
    as parameters or modules of the packed ones."""
    inside: dict[nn.Module, set[str]] = {}
    packed = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if unpacked_type(module) is not None
    }
    for name in names:
        for place, module in packed.items():
            if not place or name.startswith(f"{place}."):
                inside.setdefault(module, set()).add(name[len(place) + 1 if place else 0 :])
    wanted = {m for m, own in inside.items() if any(not _knows(m, one) for one in own)}
    if not wanted:
        return model

    def new(module: nn.Module) -> nn.Module | None:
        return _unpacked(module) if module in wanted else None

    return settled(exchanged(model, new))


def _knows(module: nn.Module, name: str) -> bool:
    """Whether it has a tensor or a module of that name."""
    try:
        module.get_submodule(name)
    except AttributeError:
        above, _, last = name.rpartition(".")
        try:
            owner = module.get_submodule(above)
        except AttributeError:
            return False
        return last in owner._parameters or last in owner._buffers or last in vars(owner)
    return True


def packed_again(model: nn.Module) -> nn.Module:
    """A model of one's own, in which modules are packed again of which nothing is factored."""
    needed = {
        child
        for layer in model.modules()
        if isinstance(layer, nn.TransformerEncoderLayer) and _is_factored(layer)
        for child in layer.modules()
    }  # whose fast path would take the weights of the others

    def new(module: nn.Module) -> nn.Module | None:
        if not isinstance(module, Unpacked) or module in needed or module.is_factored:
            return None
        return module.pack()

    return settled(exchanged(model, new))


def put_unpacked(model: nn.Module, small: nn.Module) -> None:
    """Have a model, in place, hold the unpacked modules of `small` where it holds packed ones."""
    for place, module in list(small.named_modules(remove_duplicate=False)):
        if isinstance(module, Unpacked):
            above, _, child = place.rpartition(".")
            setattr(model.get_submodule(above), child, module)
    settled(model)


def _is_factored(module: nn.Module) -> bool:
    return any(isinstance(one, FactoredLayer) for one in module.modules())


def _unpacked(module: nn.Module) -> nn.Module | None:
    kind = unpacked_type(module)
    return None if kind is None or why_not_unpacked(module) else kind.from_packed(module)


def settled(model: nn.Module) -> nn.Module:
    """With encoders told that layers without packed weights take no nested tensors."""
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoder):
            continue
        own: Any = module
        if any(isinstance(child, Unpacked) for child in module.modules()):
            if not hasattr(own, _NESTED):
                setattr(own, _NESTED, own.use_nested_tensor)
            own.use_nested_tensor = False
        elif hasattr(own, _NESTED):
            own.use_nested_tensor = getattr(own, _NESTED)
            delattr(own, _NESTED)
    return model
