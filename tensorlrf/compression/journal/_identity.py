"""What a journal is of: checksums of a model and its inputs, and what a call was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.files.arguments import PathLike
from tensorlrf.files.safetensors import bytes_of, plain
from tensorlrf.files.sealed import checksum_of, made_by
from tensorlrf.nn.tensors import is_known, values_of

LONG = 200
"""Characters: of a longer value its checksum is told."""


def checksum_of_model(model: nn.Module) -> str:
    """Of its parameters and buffers."""
    return _checksum([*model.parameters(), *model.buffers()])


def checksum_of_batches(batches: Sequence[Batch], labels: Any = None) -> str:
    """Of the tensors in them."""
    leaves = pytree.tree_leaves([(batch.args, dict(batch.kwargs)) for batch in batches])
    leaves += pytree.tree_leaves(labels)
    return _checksum(t for t in leaves if isinstance(t, Tensor))


def _checksum(tensors: Iterable[Tensor]) -> str:
    return checksum_of("".join(_of_tensor(t) for t in tensors).encode())


def _of_tensor(t: Tensor) -> str:
    """Of its numbers, where it has some that can be read."""
    if nn.parameter.is_lazy(t) or t.is_meta or not is_known(t):
        return ""
    return checksum_of(bytes_of(plain(values_of(t))))


def identity(
    model: nn.Module,
    data: Calibration | None,
    example: Any,
    asked: Mapping[str, Any],
    moments: Moments | PathLike | None = None,
) -> dict[str, Any]:
    """What decides on all that a call measures of a model, as JSON values: numbers and words of
    what is `asked`, of functions their names, of other values their types."""
    batches = () if data is None else data.batches
    own = {
        "batches": checksum_of_batches(batches),
        "calls": checksum_of(repr([_calls(batch) for batch in batches]).encode()),
        "groups": None if data is None or data.groups is None else list(data.groups),
    }
    shared = [own] if data is None else data.group.gathered(own)
    return {
        "made_by": made_by(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "devices": sorted({str(p.device) for p in model.parameters()}),
        "architecture": fingerprint(model),
        "weights": checksum_of_model(model),
        "calibration": None if data is None else shared,
        "example": None if example is None else checksum_of_batches([Batch.of(example)]),
        "moments": None if moments is None else _loaded(moments).checksum(),
        **{key: told(value) for key, value in asked.items()},
    }


def _loaded(moments: Moments | PathLike) -> Moments:
    return moments if isinstance(moments, Moments) else Moments.load(moments)


def _calls(batch: Batch) -> list[Any]:
    """How the model is called with a batch: names and shapes, and what is no tensor."""
    leaves, form = pytree.tree_flatten((batch.args, dict(batch.kwargs)))
    return [
        str(form),
        *((str(v.dtype), tuple(v.shape)) if isinstance(v, Tensor) else told(v) for v in leaves),
    ]


def told(value: Any) -> Any:
    """Numbers and words as they are, of functions the names, of other values the types."""
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [told(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): told(one) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        text = repr(value)
        return text if len(text) <= LONG else checksum_of(text.encode())
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return type(value).__name__
