"""The files of the output, once all factors are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.checkpoint.header import KEY, Header, LayerEntry, Slot
from tensorlrf.compression.checkpoint.named_tensors import joined
from tensorlrf.compression.scale import _parts
from tensorlrf.compression.scale._entries import LAYER, SHARD, blank_factors_of
from tensorlrf.compression.scale._run import Run
from tensorlrf.compression.scale._shards import Piece, in_shards, write_pieces
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import ArgumentError, FileError
from tensorlrf.files.job import NEW
from tensorlrf.files.sealed import Stored, made_by, storable_key

Done = Mapping[str, Mapping[str, Any]]
"""Layer -> its entry of the journal."""


@dataclass(frozen=True)
class Output:
    """tensors  how many were written
    n_bytes  of all of them
    """

    tensors: int
    n_bytes: int


def assembled(run: Run, done: Done, shard_bytes: int, file: str | None) -> Output:
    """Write the files into the folder `new` of the run: `file` alone, or shards and the file that
    names them. Those that an earlier run has written stay."""
    pieces = _pieces(run, done)
    entries = {row.name: done[row.name] for row in run.rows}  # whichever was made first
    by_layer = {name: entry for name, entry in entries.items() if entry["kind"] == LAYER}
    whole = _Whole(pieces, by_layer)
    shards = [pieces] if file is not None else in_shards(pieces, shard_bytes)
    there: Done = run.shards()
    where: dict[str, str] = {}
    checksums: dict[str, str] = {}
    for k, own in enumerate(shards):
        name = file or f"tensorlrf-{k + 1:05}-of-{len(shards):05}.safetensors"
        entry = there.get(name)
        if entry is None or set(entry["tensors"]) != {piece.name for piece in own}:
            seal = _nothing if file is None else whole.sealed
            entry = _written(run, name, own, seal, by_layer)
        checksums |= entry["tensors"]
        where |= dict.fromkeys(entry["tensors"], name)
    if file is None:
        sealed = partial(whole.sealed, shards=where)
        _write(run, TENSORS, [], lambda _: sealed(checksums))
    return Output(len(pieces), sum(piece.n_bytes for piece in pieces))


def _nothing(_: Mapping[str, str]) -> Mapping[str, str]:
    return {}


def _written(
    run: Run,
    name: str,
    pieces: list[Piece],
    seal: Callable[[Mapping[str, str]], Mapping[str, str]],
    layers: Done,
) -> Mapping[str, Any]:
    """Write a shard and then the journal; the parts that it was made of go. Its entry."""
    checksums = _write(run, name, pieces, seal)
    held = {piece.name for piece in pieces}
    own = [layer for layer, entry in layers.items() if held.issuperset(_names(layer, entry))]
    run.journal.add({"kind": SHARD, "file": name, "tensors": checksums, "layers": own})
    for layer in own:
        run.part(layers[layer]["file"]).unlink(missing_ok=True)
    return run.journal.entries[-1]


def _write(
    run: Run,
    name: str,
    pieces: list[Piece],
    seal: Callable[[Mapping[str, str]], Mapping[str, str]],
) -> dict[str, str]:
    path = run.folder / NEW / name
    try:
        return write_pieces(path, pieces, seal)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{path} cannot be written: {error}; what was done is kept, the same call goes on"
        ) from error


# ---- what there is to write --------------------------------------------------------------------


def _names(layer: str, entry: Mapping[str, Any]) -> list[str]:
    return [_key(layer, part) for part in entry["shapes"]]


def _key(layer: str, part: str) -> str:
    return storable_key(joined(layer, part.replace(".", "_")))


def _pieces(run: Run, done: Done) -> list[Piece]:
    """The tensors of the output in the order of the source, factors in the place of weights."""
    factored = {joined(n, "weight"): n for n, entry in done.items() if entry["kind"] == LAYER}
    pieces: dict[str, Piece] = {}
    for name, place in run.stored.places.items():
        own: list[Piece] = []
        if name not in factored:
            chunks = partial(_chunks_of, run.stored, name)
            own = [Piece(storable_key(name), place.info.dtype, place.info.shape, chunks)]
        else:
            layer = factored[name]
            entry = done[layer]
            for part, shape in entry["shapes"].items():
                chunks = partial(_parts.chunks, run.part(entry["file"]), part)
                dtype = entry["dtypes"][part]
                own.append(Piece(_key(layer, part), dtype, tuple(shape), chunks))
        for piece in own:
            if piece.name in pieces:
                raise ArgumentError(
                    f"{run.stored.path} has a tensor {piece.name!r}, which factors need the name "
                    "of; leave that layer out with skip="
                )
            pieces[piece.name] = piece
    return list(pieces.values())


def _chunks_of(stored: StoredTensors, name: str) -> Any:
    return stored.chunks(name, _parts.CHUNK)


@dataclass(frozen=True)
class _Whole:
    """All tensors, of which one header tells."""

    pieces: list[Piece]
    layers: Done

    def sealed(
        self, checksums: Mapping[str, str], shards: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """The metadata of a file with that header."""
        stored = {piece.name: piece.stored(checksums[piece.name]) for piece in self.pieces}
        return {KEY: self._header(stored, shards or {}).to_text()}

    def _header(self, stored: Mapping[str, Stored], shards: Mapping[str, str]) -> Header:
        slots = tuple(Slot(key, {_name_of(key): None}) for key in stored)
        layers = tuple(_layer_entry(name, entry) for name, entry in self.layers.items())
        plan = {name: entry["recipe"] for name, entry in self.layers.items()}
        return Header(made_by(), None, stored, slots, layers, plan, {}, shards=shards)


def _name_of(key: str) -> str:
    """Inverse of `storable_key`."""
    return key[:-1] if key == storable_key(key[:-1]) else key


def _layer_entry(name: str, entry: Mapping[str, Any]) -> LayerEntry:
    return LayerEntry(
        places=(name,),
        type=None,
        stands_for=None,
        format=entry["format"],
        meta=entry["meta"],
        parts={part: tuple(shape) for part, shape in entry["shapes"].items()},
        shape=tuple(blank_factors_of(entry, "journal").shape),
        bias=None,
    )
