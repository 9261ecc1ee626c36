"""What the output holds: its tensors, from where their bytes come, and the header that tells.

Of a model that is known it is what `save` would write of the compressed one; of layers that were
told by names and shapes, a checkpoint with factors in the place of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from tensorlrf.compression._unpacked import packed_again
from tensorlrf.compression._working_copy import put
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.checkpoint._store import header_of
from tensorlrf.compression.checkpoint.header import KEY, Header, LayerEntry, Slot
from tensorlrf.compression.checkpoint.named_tensors import (
    LASTING,
    NamedTensor,
    joined,
    named_tensors,
)
from tensorlrf.compression.checkpoint.pretrained.quantization import Quantization
from tensorlrf.compression.scale import _parts
from tensorlrf.compression.scale._entries import LAYER, blank_factors_of
from tensorlrf.compression.scale._finished import RUN, run_text
from tensorlrf.compression.scale._run import Run, place_of, weight_of
from tensorlrf.compression.scale._shards import Piece
from tensorlrf.errors import ArgumentError
from tensorlrf.files.safetensors import DTYPES, bytes_of, plain
from tensorlrf.files.sealed import Stored, made_by, storable_key

Done = Mapping[str, Mapping[str, Any]]
"""Layer -> its entry of the journal."""

MakeHeader = Callable[[Mapping[str, Stored], Mapping[str, str]], Header]
"""From what is stored, and in which shard each tensor lies."""


@dataclass(frozen=True)
class Contents:
    """pieces  the tensors, those of the files in their order there
    header     of a file with them
    head       of the journal of the run
    done       what became of each layer
    sources    tensor of the source that has factors -> its checksum
    """

    pieces: list[Piece]
    header: MakeHeader
    head: Mapping[str, Any]
    done: Done
    sources: Mapping[str, str]

    def sealed(
        self, checksums: Mapping[str, str], shards: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, str]:
        """The metadata of a file with the header of all."""
        stored = {piece.name: piece.stored(checksums[piece.name]) for piece in self.pieces}
        copied = {one.source: checksums[one.name] for one in self.pieces if one.source}
        told = run_text(self.head, self.done, {**self.sources, **copied})
        return {KEY: self.header(stored, shards).to_text(), RUN: told}

    @property
    def told(self) -> Quantization:
        """What a configuration is to say of the layers."""
        return Quantization.of(self.header({}, {}))

    def of_layers(self) -> dict[str, set[str]]:
        """Layer -> the names of the pieces that its factors are."""
        found: dict[str, set[str]] = {}
        for piece in self.pieces:
            if piece.layer:
                found.setdefault(piece.layer, set()).add(piece.name)
        return found


def contents(run: Run, done: Done) -> Contents:
    """Of the output of a run. Raises ArgumentError where two tensors would have one name."""
    done = {row.name: done[row.name] for row in run.rows}  # whichever was made first
    layers = {name: entry for name, entry in done.items() if entry["kind"] == LAYER}
    pieces, header = (_of_model if run.known.exact else _by_name)(run, layers)
    sources = {run.known.sources[weight_of(n)]: entry["source"] for n, entry in layers.items()}
    return Contents(pieces, header, run.journal.head, done, sources)


# ---- of layers by names and shapes --------------------------------------------------------------


def _by_name(run: Run, layers: Done) -> tuple[list[Piece], MakeHeader]:
    factored = {weight_of(name): name for name in layers}
    pieces: dict[str, Piece] = {}
    for name in run.stored.places:
        layer = factored.get(name)
        if layer is None:
            own = [_of_source(run, name, name)]
        else:
            entry, place = layers[layer], place_of(layer)
            own = [
                _of_factor(run, layer, entry, part, joined(place, part.replace(".", "_")))
                for part in entry["shapes"]
            ]
        for piece in own:
            if piece.name in pieces:
                raise ArgumentError(
                    f"{run.stored.path} has a tensor {piece.name!r}, which factors need the name "
                    "of; leave that layer out with skip="
                )
            pieces[piece.name] = piece

    def header(stored: Mapping[str, Stored], shards: Mapping[str, str]) -> Header:
        slots = tuple(Slot(key, {_name_of(key): None}) for key in stored)
        entries = tuple(_layer_entry(name, entry) for name, entry in layers.items())
        plan = {place_of(name): entry["recipe"] for name, entry in layers.items()}
        return Header(made_by(), None, stored, slots, entries, plan, {}, shards=shards)

    return list(pieces.values()), header


def _name_of(key: str) -> str:
    """Inverse of `storable_key`."""
    return key[:-1] if key == storable_key(key[:-1]) else key


def _layer_entry(name: str, entry: Mapping[str, Any]) -> LayerEntry:
    return LayerEntry(
        places=(place_of(name),),
        type=None,
        stands_for=None,
        format=entry["format"],
        meta=entry["meta"],
        parts={part: tuple(shape) for part, shape in entry["shapes"].items()},
        shape=tuple(blank_factors_of(entry, "journal").shape),
        bias=None,
    )


# ---- of the model -------------------------------------------------------------------------------


def _of_model(run: Run, layers: Done) -> tuple[list[Piece], MakeHeader]:
    small, parts = _factored(run, layers)
    order = {name: k for k, name in enumerate(run.stored.places)}
    order |= {name: order[one.members[0]] for name, one in run.stored.derived.items()}
    found: list[tuple[int, Piece, Slot]] = []
    for held in _objects(small):
        first = held[0]
        if first.name in parts:
            layer, part = parts[first.name]
            at = order[run.known.sources[weight_of(layer)]]
            shape = tuple(first.tensor.shape)  # in which the layer keeps what the factors have
            piece = _of_factor(run, layer, layers[layer], part, first.name, shape)
        elif first.role in LASTING:
            source = run.known.sources[first.name]
            at, piece = order[source], _of_source(run, source, first.name)
        elif first.tensor.is_meta:
            continue  # the notes of the report tell of these
        else:
            at, piece = len(order), _of_value(first)
        found.append((at, piece, Slot(piece.name, {one.name: one.role for one in held})))
    found.sort(key=lambda one: one[0])
    slots = [slot for _, _, slot in found]

    def header(stored: Mapping[str, Stored], shards: Mapping[str, str]) -> Header:
        return header_of(small, stored, slots, shards)

    return [piece for _, piece, _ in found], header


def _factored(run: Run, layers: Done) -> tuple[nn.Module, dict[str, tuple[str, str]]]:
    """(the model with its factored layers, on meta; the name of each of their tensors, by all
    places -> layer and part of the factors)."""
    model = run.known.model
    parts: dict[str, tuple[str, str]] = {}
    for one in run.known.survey():
        entry = layers.get(one.name)
        if entry is None:
            continue
        new = DenseLayer.of(one.module).on(blank_factors_of(entry, "journal"))
        new.recipe = entry["recipe"]
        model = put(model, one.places, new)
        for place in one.places:
            at = place_of(place)
            parts |= {joined(at, own): (one.name, part) for part, own in new._names.items()}
    return packed_again(model) if run.known.apart else model, parts


def _objects(model: nn.Module) -> list[list[NamedTensor]]:
    """Every tensor object with all its places."""
    held: dict[int, list[NamedTensor]] = {}
    for one in named_tensors(model):
        held.setdefault(id(one.tensor), []).append(one)
    return list(held.values())


# ---- pieces -------------------------------------------------------------------------------------


def _of_factor(
    run: Run,
    layer: str,
    entry: Mapping[str, Any],
    part: str,
    name: str,
    shape: tuple[int, ...] | None = None,
) -> Piece:
    chunks = partial(_parts.chunks, run.part(entry["file"]), part)
    own = tuple(entry["shapes"][part]) if shape is None else shape
    return Piece(storable_key(name), entry["dtypes"][part], own, chunks, layer)


def _of_source(run: Run, source: str, name: str) -> Piece:
    info = run.stored.info(source)
    chunks = partial(_chunks_of, run, source)
    return Piece(storable_key(name), info.dtype, info.shape, chunks, source=source)


def _chunks_of(run: Run, source: str) -> Iterator[memoryview]:
    return run.stored.chunks(source, _parts.CHUNK)


def _of_value(one: NamedTensor) -> Piece:
    value = plain(one.tensor)
    name = storable_key(one.name)
    return Piece(
        name, DTYPES[value.dtype], tuple(value.shape), partial(_bytes, value), lasting=False
    )


def _bytes(value: Tensor) -> Iterator[memoryview]:
    yield bytes_of(value)
