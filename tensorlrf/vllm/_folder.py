"""A folder on this machine, before vLLM reads it: by the headers of its files alone.

vLLM reads what files there are, and where a tensor is in none of them leaves what it has drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.checkpoint.pretrained.held import missing, of_no_layer, of_other_size
from tensorlrf.compression.checkpoint.source import weights_of
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
        Where a shard or a tensor is missing, is of another shape, or stands for factors that
        config.json does not tell of.
    """
    where = str(folder)
    shapes = {name: shape for path in weights_of(folder) for name, shape in _shapes(path).items()}
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
    return frozenset(_shapes(ours)) if ours.is_file() else frozenset()


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with opened(path) as file:
        return {name: info.shape for name, info in file.tensors.items()}
