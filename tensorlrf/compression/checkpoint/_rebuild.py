"""A model out of a file: the architecture copied with every tensor of the file in its place.

The copy is one deepcopy in which the old tensors and layers are exchanged on the way. So whatever
holds one of them holds the new one afterwards, what is tied stays tied, and the model that was
given is only read.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tensorlrf.compression._unpacked import unpacked_for
from tensorlrf.compression.checkpoint._architecture import describe, differences, digest
from tensorlrf.compression.checkpoint._latents import give_latents
from tensorlrf.compression.checkpoint._layers import blank_factors, blank_layer
from tensorlrf.compression.checkpoint._sizes import with_sizes
from tensorlrf.compression.checkpoint.header import Header, LayerEntry, Slot
from tensorlrf.compression.checkpoint.named_tensors import (
    ATTRIBUTE,
    LASTING,
    PARAMETER,
    NamedTensor,
    joined,
    named_tensors,
)
from tensorlrf.compression.checkpoint.pretrained.marks import mark
from tensorlrf.compression.folding._within import with_folds
from tensorlrf.compression.ranks._table import give_table
from tensorlrf.errors import ArgumentError, FileFormatError, TensorlrfError, UnsupportedError
from tensorlrf.files.safetensors import TORCH_DTYPES
from tensorlrf.files.sealed import Stored
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.convolutions.baked import baked
from tensorlrf.nn.copies import copy_of

MOST_FROZEN = 1000
"""Numbers of a frozen layer's dense weight, for each of its factors: far more than where dense is
the faster path."""

Read = Callable[[str], Tensor]
"""From the name of a tensor in the file to its values, on the CPU and row by row; checked."""


def unpack(
    header: Header, read: Read, model: nn.Module, device: torch.device | None, path: str
) -> nn.Module:
    """A new model with the architecture of `model` and the values of the file.

    Raises FileFormatError that names the module or tensor where the two do not belong together.
    """
    names = {name for slot in header.slots for name in slot.at}
    # Layers that have taken in a normalisation have a bias, which may be smaller too.
    model = with_sizes(with_folds(model, header.architecture, names), header.resized, path)
    model = unpacked_for(model, names)
    made = _Rebuild(header, read, model, device, path).result()
    mark(made)
    return made


class _Rebuild:
    def __init__(
        self, header: Header, read: Read, model: nn.Module, device: torch.device | None, path: str
    ) -> None:
        self.header, self.read, self.model = header, read, model
        self.device, self.path = device, path
        self.slots = {name: slot for slot in header.slots for name in slot.at}
        # Tensors of the file in whose memory a parameter or a persistent buffer is.
        self.lasting = {
            slot.tensor
            for slot in header.slots
            if any(role in LASTING for role in slot.at.values())
        }
        self.memo: dict[int, Any] = {}  # id of an old tensor or layer -> what takes its place
        self.filled: dict[int, Slot] = {}  # id of an old tensor -> the slot that fills it
        self.layers: dict[str, FactoredLayer] = {}  # every place of a factored layer
        self.loaded: dict[str, Tensor] = {}  # tensors of the file on their device
        self.used: set[str] = set()  # those of which a slot has been made
        self.made: dict[int, Tensor] = {}  # id of a slot -> its tensor

    def result(self) -> nn.Module:
        self._check_architecture()
        for entry in self.header.layers:
            self._layer(entry)
        remaining = [p for p in named_tensors(self.model) if not self._inside(p.name)]
        targets: dict[str, NamedTensor] = {place.name: place for place in remaining}
        for slot in self.header.slots:
            self._fill(slot, targets)
        self._keep_own(targets)
        for name in self.header.tensors.keys() - self.loaded.keys():
            self.read(name)  # not needed here; a file that is damaged is one all the same
        model = self._copy()
        self._check_result(model)
        self._settle(model)
        give_table(model, self.header.plan)
        return model

    # ---- what belongs together --------------------------------------------------------------

    def _check_architecture(self) -> None:
        wanted = self.header.architecture
        for name, parameter in self.model.named_parameters():
            if is_lazy(parameter):
                raise UnsupportedError(
                    f"model: {name} is lazy; run the model once on an input, then load into it"
                )
        if wanted is None:
            return
        found = describe(self.model)
        if digest(found) != digest(wanted):
            told = differences(found, wanted) or ["the modules come in another order"]
            raise FileFormatError(
                f"path={self.path!r} is of another architecture than model: {'; '.join(told)}"
            )

    def _inside(self, name: str) -> bool:
        """The name is of something in a factored layer, or of one."""
        while name not in self.layers:
            if not name:
                return False
            name = name.rpartition(".")[0]
        return True

    # ---- layers -----------------------------------------------------------------------------

    def _layer(self, entry: LayerEntry) -> None:
        like = self._module(entry.places[0])
        named = {
            key: self.slots.get(joined(entry.places[0], key.replace(".", "_")))
            for key in (*entry.parts, "bias")
        }
        first = joined(entry.places[0], next(iter(entry.parts)).replace(".", "_"))
        dtype = TORCH_DTYPES[self.header.tensors[self.slots[first].tensor].dtype]
        factors = blank_factors(entry, self.path, dtype)
        stand_in = baked(like) or like
        layer = blank_layer(entry, factors, named["bias"] is not None, stand_in, self.path)
        layer.recipe = copy.deepcopy(self.header.plan.get(entry.places[0], {}))
        self._values(layer, like, entry.places[0], named)
        at = entry.places
        if self.header.architecture is None:  # a checkpoint knows one place only
            at = tuple(n for n, m in self.model.named_modules(remove_duplicate=False) if m is like)
        for place in at:
            if self.memo.setdefault(id(self._module(place)), layer) is not layer:
                raise self._wrong(place, "is a layer of its own, but is shared in the model")
            self.layers[place] = layer

    def _values(
        self, layer: FactoredLayer, like: nn.Module, place: str, named: Mapping[str, Slot | None]
    ) -> None:
        """Give the layer its parameters."""
        device = self._device_of(next(like.parameters(), None))
        attributes = {**layer._names, "bias": "bias"}
        values = {k: self._tensor(slot, device) for k, slot in named.items() if slot is not None}
        for key, value in values.items():
            wanted = layer._tensor(attributes[key])
            name = joined(place, attributes[key])
            if self.header.architecture is None and value.numel() == wanted.numel():
                # A checkpoint holds the factors themselves; layers keep some in another shape.
                value = value.reshape(wanted.shape)
            if value.shape != wanted.shape or value.dtype != wanted.dtype:
                raise self._wrong(
                    name, f"is {_shown(value)}, not {_shown(wanted)} as its layer needs"
                )
            slot = named[key]
            assert slot is not None
            if attributes[key] in layer._buffers:
                layer._buffers[attributes[key]] = self.made[id(slot)] = value
                continue
            parameter = self._as_parameter(slot, value, wanted.requires_grad)
            layer._parameters[attributes[key]] = parameter
        layer._follow_device()
        if layer._format.index_dtypes(layer._meta):  # of which the values have to fit, too
            try:
                layer._assembled().check()
            except ArgumentError as error:
                raise self._wrong(place, f"has indices that do not fit: {error}") from None

    def _module(self, place: str) -> nn.Module:
        try:
            return self.model.get_submodule(place)
        except AttributeError:
            raise self._wrong(place, "is a layer that the model does not have") from None

    # ---- tensors ----------------------------------------------------------------------------

    def _fill(self, slot: Slot, targets: Mapping[str, NamedTensor]) -> None:
        """Put the tensor of a slot into all its places."""
        lasting = slot.tensor in self.lasting
        for name, role in slot.at.items():
            if self._inside(name):
                self._check_used(name)
                continue
            place = targets.get(name)
            if place is None:
                if role in LASTING or role is None:
                    raise self._wrong(name, self._unknown(name))
                continue  # the architecture makes such tensors itself, or does without
            if role is not None and (role in LASTING) != (place.role in LASTING):
                raise self._wrong(name, f"is a {role}, in the model a {place.role}")
            if lasting or role is None or self._is_empty(place):
                self._exchange(name, slot, place)

    def _unknown(self, name: str) -> str:
        owner = dict(self.model.named_modules()).get(name.rpartition(".")[0])
        if isinstance(owner, FactoredLayer):
            return "is of a layer that is factored in the model but not here; give the dense model"
        return "is a tensor that the model does not have"

    def _exchange(self, name: str, slot: Slot, place: NamedTensor) -> None:
        old = place.tensor
        before = self.filled.setdefault(id(old), slot)
        if before is not slot:
            if self._is_same(before, slot):
                return
            raise self._wrong(name, f"and {next(iter(before.at))!r} differ, tied in the model")
        stored = self.header.tensors[slot.tensor]
        shape = stored.shape if slot.view is None else slot.view.shape
        dtype = TORCH_DTYPES[stored.dtype]
        same_kind = dtype == old.dtype or (dtype.is_floating_point and old.is_floating_point())
        if shape != tuple(old.shape) or not same_kind:
            raise self._wrong(
                name, f"is {tuple(shape)} of dtype {dtype}, in the model it is {_shown(old)}"
            )
        value = self._tensor(slot, self._device_of(old))
        if place.role == PARAMETER:
            value = self._as_parameter(slot, value, old.requires_grad)
        self.memo[id(old)] = value

    def _keep_own(self, targets: Mapping[str, NamedTensor]) -> None:
        """Tensors that the architecture makes itself stay, as copies; no other may be left."""
        for place in targets.values():
            old = place.tensor
            if id(old) in self.memo:
                continue
            if place.role in LASTING:
                raise self._wrong(place.name, "is missing")
            if old.is_meta:
                raise self._wrong(
                    place.name,
                    f"is missing, a {place.role} that the model has no values of either; build the "
                    "model on a device instead of on meta",
                )
            slot = self.slots.get(place.name)
            dtype = (
                old.dtype if slot is None else TORCH_DTYPES[self.header.tensors[slot.tensor].dtype]
            )
            floats = old.is_floating_point() and dtype.is_floating_point
            own = old.detach().to(self.device or old.device, dtype if floats else old.dtype)
            self.memo[id(old)] = own.clone().requires_grad_(old.is_leaf and old.requires_grad)

    def _tensor(self, slot: Slot, device: torch.device) -> Tensor:
        """The tensor of a slot on its device; the same object at every call."""
        if id(slot) in self.made:
            return self.made[id(slot)]
        key, stored = slot.tensor, self.header.tensors[slot.tensor]
        if key not in self.loaded:
            value = self.read(key)
            if stored.order is not None:
                back = [stored.order.index(k) for k in range(len(stored.order))]
                value = value.permute(stored.order).contiguous().permute(back)
            self.loaded[key] = value.to(device)
        value = self.loaded[key]
        if slot.view is not None:
            value = torch.as_strided(value, slot.view.shape, slot.view.stride, slot.view.offset)
        elif key in self.used:
            value = value.view_as(value)  # two objects on one memory stay two
        self.made[id(slot)] = value
        self.used.add(key)
        return value

    def _as_parameter(self, slot: Slot, value: Tensor, requires_grad: bool) -> nn.Parameter:
        known = self.made[id(slot)]
        if not isinstance(known, nn.Parameter):
            known = nn.Parameter(value, requires_grad=requires_grad)
            self.made[id(slot)] = known
        return known

    def _is_empty(self, place: NamedTensor) -> bool:
        """No values, or ones that were computed from other tensors of the model given."""
        return place.tensor.is_meta or (
            place.role == ATTRIBUTE and place.tensor.grad_fn is not None
        )

    def _is_same(self, a: Slot, b: Slot) -> bool:
        """Equal values and layout, apart in the file but tied in the model."""
        stored: list[Stored] = [self.header.tensors[slot.tensor] for slot in (a, b)]
        return stored[0] == stored[1] and a.view is None and b.view is None

    def _check_used(self, name: str) -> None:
        prefix, _, key = name.rpartition(".")
        layer = self.layers.get(prefix)
        if layer is None or {**layer._parameters, **layer._buffers}.get(key) is None:
            raise self._wrong(name, "is no tensor of the factored layer there")

    def _device_of(self, old: Tensor | None) -> torch.device:
        if self.device is not None:
            return self.device
        return torch.device("cpu") if old is None or old.is_meta else old.device

    # ---- the copy ---------------------------------------------------------------------------

    def _copy(self) -> nn.Module:
        if id(self.model) in self.memo:
            whole: nn.Module = self.memo[id(self.model)]
            return whole
        return copy_of(self.model, self.memo)

    def _check_result(self, model: nn.Module) -> None:
        """Every tensor of the file is where it belongs, and nothing is without values."""
        made = {id(t) for t in [*self.memo.values(), *self.made.values()]}
        for place in named_tensors(model):
            if place.role in LASTING and id(place.tensor) not in made:
                raise ArgumentError(
                    f"model: {place.name} cannot be filled: its module copies it in a way of its "
                    "own; load into a model without such modules"
                )
        for name, module in model.named_modules():
            for key, value in vars(module).items():
                if key not in _OWN_DICTS and _holds_meta(value):
                    raise ArgumentError(
                        f"model: {joined(name, key)} holds tensors on the meta device, which no "
                        "file has; build the model on a device instead of on meta"
                    )

    def _settle(self, model: nn.Module) -> None:
        give_latents(model, self.header.latents, self.path)
        for name, state in self.header.extra_state.items():
            try:
                model.get_submodule(name).set_extra_state(state)
            except (AttributeError, RuntimeError) as error:
                raise self._wrong(name, f"has extra state that does not fit: {error}") from None
        for module in model.modules():
            if isinstance(module, FactoredLayer) and may_freeze(module):
                module._freeze_as_measured()
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()

    def _wrong(self, name: str, what: str) -> TensorlrfError:
        return FileFormatError(f"path={self.path!r} does not fit model: {name!r} {what}")


_OWN_DICTS = ("_parameters", "_buffers", "_modules")


def may_freeze(layer: FactoredLayer) -> bool:
    """Whether its dense weight takes memory in some proportion to the file, which asks for it."""
    return math.prod(layer.factors.shape) <= MOST_FROZEN * layer.factors.n_params


def _shown(t: Tensor) -> str:
    return f"{tuple(t.shape)} of dtype {t.dtype}"


def _holds_meta(value: Any) -> bool:
    held = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list | tuple):
        return False
    return any(isinstance(one, Tensor) and one.is_meta for one in held)
