"""The files of the output, once all factors are made."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorlrf.compression.checkpoint.folder import INDEX, TENSORS
from tensorlrf.compression.checkpoint.pretrained.card import CARD, card
from tensorlrf.compression.checkpoint.pretrained.marks import is_of_transformers as of_transformers
from tensorlrf.compression.checkpoint.pretrained.quantization import QUANTIZATION
from tensorlrf.compression.checkpoint.source import CONFIG, config_of
from tensorlrf.compression.scale._contents import Contents, Done, contents
from tensorlrf.compression.scale._entries import SHARD
from tensorlrf.compression.scale._run import Run
from tensorlrf.compression.scale._shards import Piece, in_shards, write_pieces
from tensorlrf.errors import FileError
from tensorlrf.files.events import SHARD as SHARD_WRITTEN
from tensorlrf.files.events import tell
from tensorlrf.files.job import NEW
from tensorlrf.files.replace import remove


@dataclass(frozen=True)
class Output:
    """tensors  how many were written
    n_bytes  of all of them
    """

    tensors: int
    n_bytes: int


def is_of_transformers(run: Run, as_folder: bool) -> bool:
    """Whether the output is a folder that transformers reads, once it knows of factored layers."""
    has_config = (run.stored.path / CONFIG).is_file()
    return as_folder and has_config and run.known.exact and of_transformers(run.known.model)


def assembled(run: Run, done: Done, shard_bytes: int, file: str | None) -> Output:
    """Write the files into the folder `new` of the run: `file` alone, or shards and the file that
    names them. Those that an earlier run has written stay."""
    held = contents(run, done)
    pieces = held.pieces
    known = is_of_transformers(run, file is None)
    lasting = [piece for piece in pieces if piece.lasting or not known]
    shards = [pieces] if file is not None else in_shards(lasting, shard_bytes)
    stem = "model" if known else "tensorlrf"
    there: Done = run.shards()
    where: dict[str, str] = {}
    checksums: dict[str, str] = {}
    for k, own in enumerate(shards):
        name = file or f"{stem}-{k + 1:05}-of-{len(shards):05}.safetensors"
        entry = there.get(name)
        if entry is None or set(entry["tensors"]) != {piece.name for piece in own}:
            seal = _nothing if file is None else held.sealed
            entry = _written(run, name, own, seal, done, held.of_layers())
        checksums |= entry["tensors"]
        where |= dict.fromkeys(entry["tensors"], name)
    if file is None:
        own = [piece for piece in pieces if piece not in lasting]
        guards = [_guard(name) for name in held.told.guards] if known else []
        every = {**where, **{piece.name: TENSORS for piece in own}}

        def seal_all(more: Mapping[str, str]) -> Mapping[str, str]:
            return held.sealed({**checksums, **more}, every)

        _write(run, TENSORS, [*own, *guards], seal_all)
        if known:
            where |= {piece.name: TENSORS for piece in guards}
            _write_words(run, held, where, sum(piece.n_bytes for piece in lasting))
    return Output(len(pieces), sum(piece.n_bytes for piece in pieces))


def _guard(name: str) -> Piece:
    """What stands where the dense weight of a factored layer did, and has no elements."""
    return Piece(name, "F32", (0,), lambda: iter(()))


def _write_words(run: Run, held: Contents, where: Mapping[str, str], size: int) -> None:
    """The index of the shards, the configuration, and the card where the source has none."""
    folder = run.folder / NEW
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    config = config_of(run.stored.path)
    config[QUANTIZATION] = held.told.to_json()
    for name, values in ((INDEX, index), (CONFIG, config)):
        _put(folder / name, json.dumps(values, indent=2, sort_keys=True) + "\n")
    if not (run.stored.path / CARD).exists():
        lasting = [piece for piece in held.pieces if piece.lasting]
        numbers = sum(math.prod(piece.shape) for piece in lasting)
        _put(folder / CARD, card(held.told, (numbers, size), type(run.known.model).__name__))


def _put(path: Path, text: str) -> None:
    remove(path)  # a link would be followed
    path.write_text(text, encoding="utf-8")


def _nothing(_: Mapping[str, str]) -> Mapping[str, str]:
    return {}


def _written(
    run: Run,
    name: str,
    pieces: list[Piece],
    seal: Callable[[Mapping[str, str]], Mapping[str, str]],
    done: Done,
    layers: Mapping[str, set[str]],
) -> Mapping[str, Any]:
    """Write a shard and then the journal; the parts that it was made of go. Its entry."""
    checksums = _write(run, name, pieces, seal)
    held = {piece.name for piece in pieces}
    own = [layer for layer, names in layers.items() if held >= names]
    run.journal.add({"kind": SHARD, "file": name, "tensors": checksums, "layers": own})
    tell(SHARD_WRITTEN, task="compress", file=name, bytes=sum(piece.n_bytes for piece in pieces))
    for layer in own:
        run.part(done[layer]["file"]).unlink(missing_ok=True)
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
