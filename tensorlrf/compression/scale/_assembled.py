"""The files of the output, once all factors are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.scale._contents import Done, contents
from tensorlrf.compression.scale._entries import SHARD
from tensorlrf.compression.scale._run import Run
from tensorlrf.compression.scale._shards import Piece, in_shards, write_pieces
from tensorlrf.errors import FileError
from tensorlrf.files.events import SHARD as SHARD_WRITTEN
from tensorlrf.files.events import tell
from tensorlrf.files.job import NEW


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
    held = contents(run, done)
    pieces = held.pieces
    shards = [pieces] if file is not None else in_shards(pieces, shard_bytes)
    there: Done = run.shards()
    where: dict[str, str] = {}
    checksums: dict[str, str] = {}
    for k, own in enumerate(shards):
        name = file or f"tensorlrf-{k + 1:05}-of-{len(shards):05}.safetensors"
        entry = there.get(name)
        if entry is None or set(entry["tensors"]) != {piece.name for piece in own}:
            seal = _nothing if file is None else held.sealed
            entry = _written(run, name, own, seal, done, held.of_layers())
        checksums |= entry["tensors"]
        where |= dict.fromkeys(entry["tensors"], name)
    if file is None:
        sealed = partial(held.sealed, shards=where)
        _write(run, TENSORS, [], lambda _: sealed(checksums))
    return Output(len(pieces), sum(piece.n_bytes for piece in pieces))


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
