"""A folder on this machine, before vLLM reads it: by the headers of its files alone.

vLLM reads what files there are, and where a tensor is in none of them leaves what it has drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tensorlrf.compression.checkpoint.folder import INDEX, TENSORS, WEIGHTS
from tensorlrf.compression.checkpoint.header import KEY, parse
from tensorlrf.compression.checkpoint.pretrained.held import missing, of_no_layer, of_other_size
from tensorlrf.compression.checkpoint.source import weights_of
from tensorlrf.errors import FileFormatError
from tensorlrf.files.safetensors import opened
from tensorlrf.vllm._told import Factored


def check_folder(folder: Path, layers: Mapping[str, Factored]) -> frozenset[str]:
    """Look whether the tensors of all layers on factors are there, in the shapes that are told.

    Returns
    -------
    frozenset of str
        Names in the file that `tensorlrf.load` alone reads: vLLM opens it too, and its models have
        no place for these.

    Raises
    ------
    FileFormatError
        Where a shard or a tensor is missing that config.json, the index of shards or our header
        tell of, a factor is of another shape, or a tensor stands for factors that config.json does
        not tell of.
    """
    where = str(folder)
    files = weights_of(folder)
    shapes = {name: shape for path in files for name, shape in _shapes(path).items()}
    for one in layers.values():
        for name, shape in one.shapes.items():
            if name not in shapes:
                raise missing(where, name)
            if shapes[name] != shape:
                raise of_other_size(where, name, shapes[name], shape)
    for name, held in shapes.items():
        if held == (0,) and name.removesuffix(".weight") not in layers:
            raise of_no_layer(where, name)
    ours = folder / TENSORS
    listed = _in_index(folder) if files[0].name != WEIGHTS else set()
    listed |= _in_header(ours) if ours.is_file() else set()
    lost = sorted(listed - set(shapes))
    if lost:
        others = f" and {len(lost) - 1} more are" if lost[1:] else " is"
        raise FileFormatError(
            f"path={where!r}: the tensor {lost[0]!r}{others} missing; get the folder anew"
        )
    return frozenset(_shapes(ours)) if ours.is_file() else frozenset()


def _in_index(folder: Path) -> set[str]:
    """Names of tensors that the index of shards, which has been read, says to be there."""
    return set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])


def _in_header(path: Path) -> set[str]:
    """Names of tensors that our header says to be in other files."""
    with opened(path) as file:
        shards = parse(file).shards if KEY in file.metadata else {}
    return {name for name, there in shards.items() if there != path.name}


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with opened(path) as file:
        return {name: info.shape for name, info in file.tensors.items()}
