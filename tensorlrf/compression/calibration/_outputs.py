"""How far the outputs of two models are apart, whatever they return."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.nn.copies import replica


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a model returns: tensors, sequences, mappings, dataclasses
    (transformers' outputs among them), nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_of(value)
    elif isinstance(output, Sequence) and not isinstance(output, (str, bytes)):
        for value in output:
            yield from tensors_of(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from tensors_of(getattr(output, field.name))


def model_error(model: nn.Module, small: nn.Module, batches: Sequence[Batch]) -> float | None:
    """Relative error of all outputs together, root mean square over the batches, of `small` against
    `model`, each batch through replicas of them. Rows of padding do not count. None where nothing
    can be compared.
    """
    lost = whole = 0.0
    for batch in batches:
        wanted = list(tensors_of(call(replica(model), batch)))
        got = list(tensors_of(call(replica(small), batch)))
        if len(wanted) != len(got) or [t.shape for t in wanted] != [t.shape for t in got]:
            return None
        for w, g in zip(wanted, got, strict=True):
            w, g = _tokens(batch, w), _tokens(batch, g)
            lost += float(torch.linalg.vector_norm((w - g).double()) ** 2)
            whole += float(torch.linalg.vector_norm(w.double()) ** 2)
    return math.sqrt(lost / whole) if whole > 0 and math.isfinite(whole) else None


def _tokens(batch: Batch, t: Tensor) -> Tensor:
    mask = batch.mask
    if mask is None or mask.device != t.device or t.shape[: mask.ndim] != mask.shape:
        return t
    return t[mask]
