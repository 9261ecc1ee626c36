"""A run that has ended: the output says what it was made of, so that the same call sees that all is
done. What it says is the same for every run of one call, whenever and in how many parts it ran."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorlrf.compression.checkpoint._reading import reading
from tensorlrf.compression.checkpoint.companions import companions_of
from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.checkpoint.pretrained.quantization import QUANTIZATION
from tensorlrf.compression.checkpoint.source import CONFIG
from tensorlrf.compression.scale._call import Call
from tensorlrf.compression.scale._entries import LAYER, STAYS
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import TensorlrfError
from tensorlrf.files.safetensors import opened
from tensorlrf.files.sealed import canonical, made_by, seal, unseal
from tensorlrf.files.strict import JsonNode

RUN = "tensorlrf.run"
"""In the metadata, beside the header of the model."""

VERSION = 1

_OWN = "source"
"""Of the head of a journal: goes by the times of files, which copies of them do not have."""

_KEPT = {LAYER: ("kind", "format", "rank", "params", "weight_error"), STAYS: ("kind", "reason")}
_MAYBE = {LAYER: ("output_error",), STAYS: ()}


@dataclass(frozen=True)
class Finished:
    """entries  layer -> what a report tells of it
    tensors    how many the output has
    n_bytes    of these
    """

    entries: dict[str, dict[str, Any]]
    tensors: int
    n_bytes: int


def run_text(
    head: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]], sources: Mapping[str, str]
) -> str:
    """For the metadata: what the run was asked for, what became of layers, and the checksums of the
    tensors of the source."""
    kinds = {name: (entry["kind"], entry) for name, entry in done.items()}
    return seal(
        {
            "version": VERSION,
            "tensorlrf": made_by(),
            "tensors": dict(sources),
            "head": {key: value for key, value in head.items() if key != _OWN},
            "layers": {
                name: {key: entry[key] for key in (*_KEPT[kind], *_MAYBE[kind]) if key in entry}
                for name, (kind, entry) in sorted(kinds.items())
            },
        }
    )


def finished(call: Call, head: Mapping[str, Any]) -> Finished | None:
    """What there is where the output of the call is to be, if it is all that a run with this head
    would write; else None. A head without threads fits any.

    Reads every tensor of output and source, for its checksum.
    """
    target, stored = call.target, call.stored
    path = target / TENSORS if target.is_dir() else target
    try:
        with opened(path) as file:
            if RUN not in file.metadata:
                return None
            root = unseal(file, RUN, VERSION)
        checksums = root["tensors"].each(JsonNode.text)
        told = root["head"].mapping()
        wanted = json.loads(canonical({k: v for k, v in head.items() if k != _OWN}))
        if wanted["threads"] is None:
            wanted["threads"] = told.get("threads")
        if told != wanted or _members(stored, checksums) != _members(
            stored, call.known.sources.values()
        ):
            return None
        entries = {name: _entry(root["layers"][name]) for name in root["layers"].mapping()}
        if target.is_dir() and stored.path.is_dir() and not _same_companions(stored.path, target):
            return None
        if set(entries) != {row.name for row in call.rows}:
            return None
        with reading(path) as whole:
            for name in whole.header.tensors:
                whole.tensor(name)
            there = whole.header.tensors.values()
            size = sum(one.n_bytes for one in there)
        if any(stored.checksum(name) != own for name, own in checksums.items()):
            return None
        return Finished(entries, len(there), size)
    except (TensorlrfError, OSError):  # whatever it is, it is not what this run would write
        return None


def _members(stored: StoredTensors, names: Iterable[str]) -> set[str]:
    """The tensors of the files that these are made of."""
    return {member for name in names for member in stored.members(name)}


def _entry(at: JsonNode) -> dict[str, Any]:
    """Raises FileFormatError."""
    kind = at["kind"].text()
    at.keys_are(_KEPT.get(kind, ("kind", "of a layer")), _MAYBE.get(kind, ()))
    if kind == STAYS:
        return {"kind": kind, "reason": at["reason"].text()}
    rank = at["rank"].wholes() if isinstance(at.mapping()["rank"], list) else at["rank"].whole()
    return {
        "kind": kind,
        "format": at["format"].text(),
        "rank": rank,
        "params": at["params"].whole(),
        "weight_error": at["weight_error"].number(),
        "seconds": 0.0,  # which another run would have others of
        "output_error": at["output_error"].number() if "output_error" in at.mapping() else None,
    }


def _same_companions(source: Path, target: Path) -> bool:
    """Whether the small files of the source are in the target as they are there."""
    return all(
        (target / name).is_file() and _same(source / name, target / name)
        for name in companions_of(source)
    )


def _same(source: Path, target: Path) -> bool:
    """Whether the two are equal, but for what a configuration tells of factored layers."""
    if source.name != CONFIG:
        return filecmp.cmp(source, target, shallow=False)
    try:
        old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (source, target))
    except (ValueError, RecursionError):
        return filecmp.cmp(source, target, shallow=False)
    if isinstance(new, dict) and isinstance(old, dict) and QUANTIZATION not in old:
        new.pop(QUANTIZATION, None)
    return bool(old == new)
