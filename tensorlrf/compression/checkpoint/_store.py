"""A model as tensors to write and a header: what `save` puts into a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.checkpoint._architecture import describe
from tensorlrf.compression.checkpoint._latents import latents_in
from tensorlrf.compression.checkpoint._sizes import sizes_of
from tensorlrf.compression.checkpoint.header import LONGEST_NAME, Header, LayerEntry, Slot, View
from tensorlrf.compression.checkpoint.named_tensors import (
    LASTING,
    NamedTensor,
    joined,
    named_tensors,
    own_tensors,
)
from tensorlrf.compression.ranks._table import entry_of
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.files.safetensors import check_storable, plain
from tensorlrf.files.sealed import Stored, canonical, made_by, storable_key
from tensorlrf.nn import FactoredEmbedding, FactoredLayer


def pack(model: nn.Module) -> tuple[dict[str, Tensor], Header]:
    """(what to write, all that is to be known about it), for `unpack`.

    Raises ArgumentError or UnsupportedError, with the name of what is at fault, where a tensor is
    lazy, on the meta device or of a kind that files do not have, where state beside the tensors is
    not JSON, and where a module keeps state elsewhere.
    """
    found = list(named_tensors(model))
    for place in found:
        _check_place(place.name, place.tensor)
    _check_state(model)
    tensors, stored, slots = _gather(found)
    return tensors, header_of(model, stored, slots)


def header_of(
    model: nn.Module,
    stored: Mapping[str, Stored],
    slots: Sequence[Slot],
    shards: Mapping[str, str] = MappingProxyType({}),
) -> Header:
    """What is to be known of a model, perhaps on meta, beside what lies `stored` for it, where that
    belongs, and in which of the `shards`. Raises as `pack` for state that is not JSON."""
    layers = _layers(model)
    return Header(
        made_by=made_by(),
        architecture=describe(model),
        tensors=stored,
        slots=tuple(slots),
        layers=tuple(entry for entry, _ in layers),
        plan={
            **{
                entry.places[0]: _json(f"recipe of {entry.places[0]!r}", layer.recipe)
                for entry, layer in layers
                if layer.recipe
            },
            **entry_of(model),
        },
        extra_state=_extra_state(model),
        resized=sizes_of(model),
        latents=latents_in(model),
        shards=shards,
    )


def pack_checkpoint(
    tensors: Mapping[str, Tensor],
    factors: Mapping[str, Any],
    plan: Mapping[str, Any],
) -> tuple[dict[str, Tensor], Header]:
    """`pack` for named tensors without their model, and factors of some weights."""
    written: dict[str, Tensor] = {}
    slots, layers = [], []
    for name, tensor in tensors.items():
        written[name] = tensor
        slots.append(Slot(storable_key(name), {name: None}))
    for weight, f in factors.items():
        place = weight.removesuffix("weight").removesuffix(".")
        if joined(place, "weight") != weight or weight in tensors:
            raise ArgumentError(
                f"factors has the key {weight!r}; it must be the name of a weight, such as "
                "'blocks.0.weight', that is not among the tensors"
            )
        for part, tensor in f.tensors().items():
            name = joined(place, part.replace(".", "_"))
            if name in written:
                raise ArgumentError(f"tensors has {name!r}, which the factors of {weight!r} need")
            written[name] = tensor
            slots.append(Slot(storable_key(name), {name: None}))
        layers.append(_entry((place,), f, None, None, None))
    stored = {}
    for name, tensor in written.items():
        _check_place(name, tensor)
        written[name] = plain(tensor)
        stored[storable_key(name)] = Stored.of(written[name])
    plan = {name: _json(f"plan of {name!r}", recipe) for name, recipe in plan.items()}
    header = Header(made_by(), None, stored, tuple(slots), tuple(layers), plan, {})
    return {storable_key(name): tensor for name, tensor in written.items()}, header


def _check_place(name: str, tensor: Tensor) -> None:
    if len(name) > LONGEST_NAME:
        raise UnsupportedError(
            f"the name {name!r} has {len(name):,} characters; files hold names of at most "
            f"{LONGEST_NAME:,}"
        )
    check_storable(name, tensor)


# ---- tensors, each once ------------------------------------------------------------------------


def _gather(
    found: Iterable[NamedTensor],
) -> tuple[dict[str, Tensor], dict[str, Stored], list[Slot]]:
    """(key -> tensor to write, what it is, the objects that it makes up)."""
    objects: dict[int, list[NamedTensor]] = {}
    for place in found:
        objects.setdefault(id(place.tensor), []).append(place)
    tensors: dict[str, Tensor] = {}
    stored: dict[str, Stored] = {}
    slots: list[Slot] = []
    for group in _overlapping([held[0].tensor for held in objects.values()]):
        members = [objects[id(tensor)] for tensor in group]
        key = storable_key(members[0][0].name)
        base, views = _base(group, [held[0].name for held in members])
        order = _order(base) if views is None else None
        tensors[key] = plain(base)
        stored[key] = Stored.of(tensors[key], order)
        for k, held in enumerate(members):
            at = {place.name: place.role for place in held}
            slots.append(Slot(key, at, None if views is None else views[k]))
    return tensors, stored, slots


def _overlapping(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Groups of tensors that overlap in memory, in the order of their first members."""
    spans: dict[tuple[Any, int], list[tuple[int, int, int]]] = {}
    for k, t in enumerate(tensors):
        # Empty tensors overlap with nothing, whatever their address.
        key = (t.device, t.untyped_storage().data_ptr() if t.numel() else -1 - k)
        spans.setdefault(key, []).append((*_span(t), k))
    groups: list[list[int]] = []
    for group in spans.values():
        end = -1
        for first, last, k in sorted(group):
            if first < end:
                groups[-1].append(k)
            else:
                groups.append([k])
            end = max(end, last)
    return [[tensors[k] for k in sorted(group)] for group in sorted(groups, key=min)]


def _base(group: list[Tensor], names: list[str]) -> tuple[Tensor, list[View] | None]:
    """(the tensor to write, the part of it that each member is; None where all are the whole)."""
    first = group[0]
    same = (first.dtype, first.shape, first.stride(), first.storage_offset())
    if all((t.dtype, t.shape, t.stride(), t.storage_offset()) == same for t in group):
        return first, None
    for t, name in zip(group, names, strict=True):
        if t.dtype != first.dtype or any(
            s == 0 and n > 1 for n, s in zip(t.shape, t.stride(), strict=True)
        ):
            raise UnsupportedError(
                f"{name} overlaps in memory with {names[0] if t is not first else names[1]} in a "
                "way that files do not hold (another dtype, or expanded); give it memory of its own"
            )
    size = first.element_size()
    start = min(_span(t)[0] for t in group) // size
    length = max(_span(t)[1] for t in group) // size - start
    views = [View(tuple(t.shape), t.stride(), int(t.storage_offset()) - start) for t in group]
    return torch.as_strided(first.detach(), (length,), (1,), start), views


def _span(t: Tensor) -> tuple[int, int]:
    """First and last + 1 byte of the storage that the tensor touches."""
    size, first = t.element_size(), int(t.storage_offset())
    last = first + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return first * size, (last + 1) * size


def _order(t: Tensor) -> tuple[int, ...] | None:
    """Its dimensions from the outermost to the innermost, where that is another than torch's own
    and the tensor lies in memory without gaps: kernels may add in another order for it."""
    if t.is_contiguous() or t.numel() == 0:
        return None
    order = tuple(sorted(range(t.ndim), key=lambda k: (-t.stride()[k], k)))
    return order if t.permute(order).is_contiguous() else None


# ---- factored layers, and what else a model knows ----------------------------------------------


def _layers(model: nn.Module) -> list[tuple[LayerEntry, FactoredLayer]]:
    held: dict[FactoredLayer, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FactoredLayer):
            held.setdefault(module, []).append(name)
    return [
        (
            _entry(
                tuple(names),
                layer._assembled(),
                type(layer).__name__,
                layer.stands_for,
                layer.bias is not None,
                layer.measured,
                layer.scale if isinstance(layer, FactoredEmbedding) else 1.0,
            ),
            layer,
        )
        for layer, names in held.items()
    ]


def _entry(
    at: tuple[str, ...],
    factors: Any,
    kind: str | None,
    stands_for: str | None,
    bias: bool | None,
    measured: Mapping[str, Any] | None = None,
    scale: float = 1.0,
) -> LayerEntry:
    return LayerEntry(
        places=at,
        type=kind,
        stands_for=stands_for,
        format=factors.format,
        meta=_json(f"meta of {at[0]!r}", factors.meta()),
        parts={part: tuple(t.shape) for part, t in factors.tensors().items()},
        shape=tuple(factors.shape),
        bias=bias,
        measured=dict(measured or {}),
        scale=None if scale == 1.0 else scale,
    )


def _extra_state(model: nn.Module) -> dict[str, Any]:
    return {
        name: _json(f"extra state of {name!r} (get_extra_state)", module.get_extra_state())
        for name, module in model.named_modules()
        if type(module).get_extra_state is not nn.Module.get_extra_state
    }


def _check_state(model: nn.Module) -> None:
    """No module has a state dict with more than its tensors, as quantised ones do."""
    for name, module in model.named_modules():
        if type(module)._save_to_state_dict is nn.Module._save_to_state_dict:
            continue
        state: dict[str, Any] = {}
        module._save_to_state_dict(state, "", True)
        known = {key for key, role, _ in own_tensors(module) if role in LASTING}
        others = sorted(set(state) - known - {"_extra_state"})
        if others:
            raise UnsupportedError(
                f"{joined(name, others[0])} is in the state dict but is no parameter or buffer of "
                f"the {type(module).__name__}: save the model before it is quantised or packed"
            )


def _json(what: str, value: Any) -> Any:
    """The value as JSON gives it back. Raises ArgumentError where that is another one."""
    try:
        again = json.loads(canonical(value))
        if _listed(value) != again:
            raise ValueError("it does not survive the way there and back")
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{what} is not plain JSON and cannot be saved: {error}") from None
    return again


def _listed(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    if isinstance(value, list | tuple):
        return [_listed(one) for one in value]
    if isinstance(value, dict):
        return {key: _listed(one) for key, one in value.items()}
    return value
