"""The lines of a journal, which a stranger may have written: each is what it has to be."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from tensorlrf import io
from tensorlrf.compression._findings import Findings
from tensorlrf.errors import FileFormatError, shown
from tensorlrf.factors import FORMATS, Factors
from tensorlrf.files.safetensors import TORCH_DTYPES
from tensorlrf.files.shards import PLAIN
from tensorlrf.files.strict import JsonNode

LAYER, STAYS, SHARD = "layer", "stays", "shard"
"""Kinds of entries of the journal: factors that are made, a layer that has none, a file."""

BLOCK, LIMIT = "block", "limit"
"""And of runs from block to block: one of which all layers are done, and the memory of a layer."""

_PART = re.compile(r"\d{6,}\.safetensors")
_CHECKSUM = re.compile(r"[0-9a-f]{32}")


def part_name(number: int) -> str:
    """Of the file with the factors of a layer."""
    return f"{number:06}.safetensors"


def said_of(entry: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Part -> (dtype, shape) of the factors of a layer."""
    return {part: (entry["dtypes"][part], tuple(shape)) for part, shape in entry["shapes"].items()}


def blank_factors_of(entry: Mapping[str, Any], where: str) -> Factors:
    """The factors of a layer on the meta device. Raises FileFormatError where they are none, which
    begins with `where`."""
    where = f"{where}: the layer {entry['name']!r}"
    try:
        blank = {
            part: torch.empty(shape, dtype=TORCH_DTYPES[dtype], device="meta")
            for part, (dtype, shape) in said_of(entry).items()
        }
    except (RuntimeError, OverflowError) as error:  # too large for torch
        raise FileFormatError(f"{where} has parts {shown(entry['shapes'])}: {error}") from None
    return io.assembled(entry["format"], blank, entry["meta"], where)


def check_entry(at: JsonNode) -> None:
    """Raise FileFormatError where a line is not as a run writes it: nothing that it names lies
    outside of the folder of the run."""
    kind = at["kind"].text()
    if kind not in _CHECKS:
        at["kind"].wrong(f"one of {', '.join(_CHECKS)}")
    _CHECKS[kind](at)


def _layer(at: JsonNode) -> None:
    at.keys_are(
        [
            *("kind", "name", "file", "tensors", "shapes", "dtypes", "format", "meta", "recipe"),
            *("rank", "params", "weight_error", "seconds", "source"),
        ],
        ["output_error"],
    )
    at["name"].text()
    if not _PART.fullmatch(at["file"].text()):
        at["file"].wrong("the name of a part")
    names = set(_checksums(at["tensors"]))
    if not names or names != set(at["shapes"].each(JsonNode.wholes)):
        at["shapes"].wrong("the shapes of the tensors")
    dtypes = at["dtypes"].each(JsonNode.text)
    if names != set(dtypes) or not set(dtypes.values()) <= set(TORCH_DTYPES):
        at["dtypes"].wrong("the dtypes of the tensors")
    if at["format"].text() not in FORMATS:
        at["format"].wrong(f"one of {', '.join(sorted(FORMATS))}")
    at["meta"].mapping()
    at["recipe"].mapping()
    if isinstance(at.mapping()["rank"], list):
        at["rank"].wholes()
    else:
        at["rank"].whole()
    at["params"].whole()
    if not math.isfinite(at["weight_error"].number()):
        at["weight_error"].wrong("a finite number")
    at["seconds"].number()
    if not _CHECKSUM.fullmatch(at["source"].text()):
        at["source"].wrong("the checksum of the weight")
    if "output_error" in at.mapping():
        at["output_error"].number()


def _stays(at: JsonNode) -> None:
    at.keys_are(["kind", "name", "reason"])
    at["name"].text()
    at["reason"].text()


def _shard(at: JsonNode) -> None:
    at.keys_are(["kind", "file", "tensors", "layers"])
    if not PLAIN.fullmatch(at["file"].text()):
        at["file"].wrong("the name of a file of safetensors")
    _checksums(at["tensors"])
    for layer in at["layers"].entries():
        layer.text()


def _checksums(at: JsonNode) -> dict[str, str]:
    found = at.each(JsonNode.text)
    if not all(_CHECKSUM.fullmatch(one) for one in found.values()):
        at.wrong("a checksum for each tensor")
    return found


def _block(at: JsonNode) -> None:
    at.keys_are(["kind", "number", "layers", "findings"])
    at["number"].whole()
    at["findings"].keys_are([own.name for own in fields(Findings)])
    for told in (at["layers"], *at["findings"].each(lambda one: one).values()):
        for one in told.entries():
            one.text()


def _limit(at: JsonNode) -> None:
    at.keys_are(["kind", "bytes"])
    at["bytes"].whole()


_CHECKS = {LAYER: _layer, STAYS: _stays, SHARD: _shard, BLOCK: _block, LIMIT: _limit}
