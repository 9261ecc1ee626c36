"""What the tensors of a model file do not say: JSON in the header of the safetensors file.

Whatever is read is checked for its type, piece by piece, before anything is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from tensorlrf.compression.checkpoint._architecture import digest
from tensorlrf.compression.checkpoint.named_tensors import BUFFER, PARAMETER, ROLES, joined
from tensorlrf.compression.plan._versions import recipe_of
from tensorlrf.errors import FileFormatError, TensorlrfError
from tensorlrf.factors.kinds import indices_of
from tensorlrf.files.safetensors import TORCH_DTYPES, SafeFile
from tensorlrf.files.sealed import Stored, canonical, checksum_of, seal, unseal
from tensorlrf.files.strict import JsonNode
from tensorlrf.nn.latent.attention import Latents
from tensorlrf.nn.latent.turns import TURNS
from tensorlrf.ops import PathTable

FORMAT_VERSION = 1
KEY = "tensorlrf.model"

LONGEST_NAME = 4096
"""Characters of the name of a tensor, which is taken apart at its dots."""

_SCALE = "scale"

_KEYS = (
    *("checksum", "version", "tensorlrf", "fingerprint", "architecture", "tensors", "slots"),
    *("layers", "plan", "plan_checksum", "extra_state"),
)


@dataclass(frozen=True)
class View:
    """A part of a tensor in one dimension: what tensors that overlap in memory are stored as."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Slot:
    """One tensor object of the model, and all its places.

    tensor  the name of a tensor of the file
    at      qualified name -> role; None where the role is not known
    view    the part of the tensor that it is; None for all of it
    """

    tensor: str
    at: Mapping[str, str | None]
    view: View | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        view = {} if self.view is None else {"view": vars(self.view)}
        return {"tensor": self.tensor, "at": self.at, **view}


@dataclass(frozen=True)
class LayerEntry:
    """A factored layer.

    places      all its qualified names
    type        its class
    stands_for  the type of the layer that it replaced; None where that is not known
    format, meta, parts, shape  of its factors; parts is name -> shape of their tensors
    bias        whether it has one; None where that is not known
    measured    key of a device -> path table that was measured there
    scale       by which an embedding multiplies what it looks up; None where it is one, or unknown
    """

    places: tuple[str, ...]
    type: str | None
    stands_for: str | None
    format: str
    meta: Mapping[str, Any]
    parts: Mapping[str, tuple[int, ...]]
    shape: tuple[int, ...]
    bias: bool | None
    measured: Mapping[str, PathTable] = field(default_factory=dict)
    scale: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        told = {**vars(self), "measured": {k: t.to_json() for k, t in self.measured.items()}}
        return {k: v for k, v in told.items() if k != _SCALE or v is not None}


@dataclass(frozen=True)
class SizeEntry:
    """A module of the architecture that is smaller than this gives it: a `nn.resized.Resized`.

    places  all its qualified names
    """

    places: tuple[str, ...]
    sizes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    was: Mapping[str, tuple[int, ...]]
    table: tuple[int, ...]
    whole: int
    parts: tuple[str, ...]
    rows: tuple[int, ...]

    @property
    def left_out(self) -> int:
        """How many numbers it has less."""
        return sum(math.prod(self.was[name]) - math.prod(own) for name, own in self.shapes.items())


@dataclass(frozen=True)
class LatentEntry:
    """An attention whose cache is latent.

    place   its qualified name
    made    how it makes what it caches
    tables  qualified name of the module that makes its rotary tables; "" for none
    """

    place: str
    made: Latents
    tables: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"place": self.place, "tables": self.tables, "made": vars(self.made)}


@dataclass(frozen=True)
class Header:
    """All that a model file says beside its tensors.

    made_by       the version of tensorlrf
    architecture  what `describe` says of the model; None for a checkpoint without its model
    plan          name of a layer -> how its factors were made
    extra_state   name of a module -> what its get_extra_state returned
    resized       modules that are smaller than in the architecture
    latents       attentions whose cache is latent
    shards        tensor -> the file beside this one that it is in; empty where all are in this one
    """

    made_by: str
    architecture: Mapping[str, str] | None
    tensors: Mapping[str, Stored]
    slots: tuple[Slot, ...]
    layers: tuple[LayerEntry, ...]
    plan: Mapping[str, Any]
    extra_state: Mapping[str, Any]
    resized: tuple[SizeEntry, ...] = ()
    latents: tuple[LatentEntry, ...] = ()
    shards: Mapping[str, str] = field(default_factory=dict)

    def to_text(self) -> str:
        """JSON, with the format version and the checksums of the plan and of the whole."""
        return seal(
            {
                "version": FORMAT_VERSION,
                "tensorlrf": self.made_by,
                "fingerprint": None if self.architecture is None else digest(self.architecture),
                "architecture": None if self.architecture is None else dict(self.architecture),
                "tensors": {name: stored.to_json() for name, stored in self.tensors.items()},
                "slots": [slot.to_json() for slot in self.slots],
                "layers": [entry.to_json() for entry in self.layers],
                "plan": dict(self.plan),
                "plan_checksum": checksum_of(canonical(dict(self.plan))),
                "extra_state": dict(self.extra_state),
                **({"resized": [vars(entry) for entry in self.resized]} if self.resized else {}),
                **({"latents": [one.to_json() for one in self.latents]} if self.latents else {}),
                **({"shards": dict(self.shards)} if self.shards else {}),
            }
        )


def parse(file: SafeFile) -> Header:
    """The header of a model file. Raises FileFormatError that says what of it is wrong."""
    root = unseal(file, KEY, FORMAT_VERSION)
    root.keys_are(_KEYS, ("resized", "latents", "shards"))
    plan = root["plan"].mapping()
    if root["plan_checksum"].text() != checksum_of(canonical(plan)):
        raise FileFormatError(f"path={file.path!r}: the checksum of the plan does not fit")
    tensors = root["tensors"].each(Stored.read)
    header = Header(
        made_by=root["tensorlrf"].text(),
        architecture=root["architecture"].maybe(lambda at: at.each(JsonNode.text)),
        tensors=tensors,
        slots=tuple(_slot(at, tensors) for at in root["slots"].entries()),
        layers=tuple(layer_of(at) for at in root["layers"].entries()),
        plan={name: recipe_of(recipe) for name, recipe in plan.items()},
        extra_state=root["extra_state"].mapping(),
        resized=tuple(size_of(at) for at in _maybe(root, "resized")),
        latents=tuple(latent_of(at) for at in _maybe(root, "latents")),
        shards=root["shards"].each(JsonNode.text) if "shards" in root.mapping() else {},
    )
    if header.shards and header.shards.keys() != tensors.keys():
        root["shards"].wrong("a file for each tensor")
    fingerprint = root["fingerprint"].maybe(JsonNode.text)
    if fingerprint != (None if header.architecture is None else digest(header.architecture)):
        root["fingerprint"].wrong("the hash of the architecture")
    _check_names(header, root)
    _check_parts(header, root)
    return header


def _slot(at: JsonNode, tensors: Mapping[str, Stored]) -> Slot:
    at.keys_are(["tensor", "at"], ["view"])
    name = at["tensor"].text()
    if name not in tensors:
        at["tensor"].wrong("a tensor of the file")
    roles = at["at"].each(lambda role: role.maybe(JsonNode.text))
    if not roles or any(role is not None and role not in ROLES for role in roles.values()):
        at["at"].wrong(f"names with one of the roles {', '.join(ROLES)}")
    view = _view(at["view"], tensors[name]) if "view" in at.mapping() else None
    return Slot(name, roles, view)


def _view(at: JsonNode, stored: Stored) -> View:
    at.keys_are(["shape", "stride", "offset"])
    view = View(at["shape"].wholes(), at["stride"].wholes(), at["offset"].whole())
    size = math.prod(stored.shape)
    fits = len(stored.shape) == 1 and len(view.shape) == len(view.stride)
    if (
        not fits
        or not 0 < math.prod(view.shape) <= size
        or view.offset + 1 + sum((n - 1) * s for n, s in zip(view.shape, view.stride, strict=True))
        > size
    ):
        at.wrong(f"a part of a tensor of shape {stored.shape}")
    return view


def layer_of(at: JsonNode) -> LayerEntry:
    """The entry of a factored layer."""
    at.keys_are([one.name for one in fields(LayerEntry) if one.name != _SCALE], [_SCALE])
    places = tuple(place.text() for place in at["places"].entries())
    if not places:
        at["places"].wrong("a list of names")
    return LayerEntry(
        places=places,
        type=at["type"].maybe(JsonNode.text),
        stands_for=at["stands_for"].maybe(JsonNode.text),
        format=at["format"].text(),
        meta=at["meta"].mapping(),
        parts=at["parts"].each(JsonNode.wholes),
        shape=at["shape"].wholes(),
        bias=at["bias"].maybe(JsonNode.flag),
        measured=at["measured"].each(_table),
        scale=at[_SCALE].number() if _SCALE in at.mapping() else None,
    )


def size_of(at: JsonNode) -> SizeEntry:
    """The entry of a module that is smaller."""
    at.keys_are([one.name for one in fields(SizeEntry)])
    entry = SizeEntry(
        places=tuple(place.text() for place in at["places"].entries()),
        sizes=at["sizes"].each(lambda size: size.whole(1)),
        shapes=at["shapes"].each(JsonNode.wholes),
        was=at["was"].each(JsonNode.wholes),
        table=tuple(one.whole() for one in at["table"].entries()),
        whole=at["whole"].whole(),
        parts=tuple(part.text() for part in at["parts"].entries()),
        rows=tuple(one.whole() for one in at["rows"].entries()),
    )
    if not entry.places:
        at["places"].wrong("a list of names")
    for key in ("table", "rows"):
        own = getattr(entry, key)
        if len(set(own)) < len(own) or max(own, default=-1) >= max(1, entry.whole):
            at[key].wrong(f"different entries below {entry.whole}")
    if len(entry.rows) != len(entry.table) or len(entry.parts) not in (0, 4):
        at["parts"].wrong("the four layers of an attention with as many rows as entries")
    if entry.shapes.keys() != entry.was.keys() or not all(
        len(shape) == len(entry.was[name])
        and all(0 < n <= most for n, most in zip(shape, entry.was[name], strict=True))
        for name, shape in entry.shapes.items()
    ):
        at["shapes"].wrong(f"shapes no larger than {dict(entry.was)}")
    return entry


def latent_of(at: JsonNode) -> LatentEntry:
    """The entry of an attention with a latent cache."""
    at.keys_are([one.name for one in fields(LatentEntry)])
    made = at["made"]
    made.keys_are([one.name for one in fields(Latents)])
    words = {key: made[key].text() for key in made.mapping() if key not in ("heads", "by_head")}
    entry = LatentEntry(
        at["place"].text(),
        Latents(**words, heads=made["heads"].whole(1), by_head=made["by_head"].flag()),
        at["tables"].text(),
    )
    own = entry.made
    if own.turn not in ("", *TURNS):
        made["turn"].wrong(f"one of {', '.join(TURNS)}")
    if bool(own.turn) != bool(own.positions and entry.tables):
        made["positions"].wrong("with rotary tables where keys turn, and there alone")
    return entry


def _maybe(root: JsonNode, key: str) -> list[JsonNode]:
    """The entries of a list that may be missing."""
    return root[key].entries() if key in root.mapping() else []


def _table(at: JsonNode) -> PathTable:
    entries = []
    for row in at.entries():
        limit, path = row.entries() if len(row.entries()) == 2 else row.wrong("[rows, path]")
        entries.append((limit.maybe(JsonNode.whole), path.text()))
    try:
        return PathTable(tuple(entries))
    except TensorlrfError:
        at.wrong("a path table")


def _check_names(header: Header, root: JsonNode) -> None:
    """No name twice or longer than it may be, and no tensor without a place."""
    for slot in header.slots:
        for name in slot.at:
            if len(name) > LONGEST_NAME:
                root["slots"].wrong(f"with names of at most {LONGEST_NAME:,} characters")
    _unique((name for slot in header.slots for name in slot.at), root["slots"])
    _unique((place for entry in header.layers for place in entry.places), root["layers"])
    unused = set(header.tensors) - {slot.tensor for slot in header.slots}
    if unused:
        root["slots"].wrong(f"without a place for {min(unused)!r}; each tensor has one")


def _check_parts(header: Header, root: JsonNode) -> None:
    """All tensors of a layer are there, in floating point, as parameters; indices as buffers."""
    slots = {name: slot for slot in header.slots for name in slot.at}
    for entry, at in zip(header.layers, root["layers"].entries(), strict=True):
        place, indices = entry.places[0], indices_of(entry.format, entry.meta)
        if not entry.parts:
            at["parts"].wrong(f"the factors of {place!r}")
        for key in (*entry.parts, "bias"):
            name = joined(place, key.replace(".", "_"))
            slot = slots.get(name)
            if slot is None:
                if key != "bias" or entry.bias:
                    at.wrong(f"a layer with the tensor {name!r}, which is missing")
                continue
            if key == "bias" and entry.bias is False:
                at.wrong(f"a layer with the tensor {name!r}, which is there")
            stored = header.tensors[slot.tensor]
            dtype = TORCH_DTYPES.get(stored.dtype, torch.bool)
            if key in indices:
                if slot.at[name] not in (BUFFER, None) or dtype != indices[key]:
                    at.wrong(f"a layer with indices {name!r}, a {slot.at[name]} of dtype {dtype}")
                continue
            # Without elements it is a buffer; versions before had a parameter.
            fits = slot.at[name] in (PARAMETER, None) or (
                slot.at[name] == BUFFER and 0 in stored.shape
            )
            if not fits or not dtype.is_floating_point:
                at.wrong(f"a layer with the tensor {name!r}, a {slot.at[name]} of dtype {dtype}")


def _unique(names: Iterable[str], at: JsonNode) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            at.wrong(f"twice about {name!r}; each name stands once")
        seen.add(name)
