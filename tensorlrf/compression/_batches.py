"""Calibration batches: what a user may give, and how the model is called with one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tensorlrf.errors import ArgumentError, TensorlrfError


def list_batches(calibration: Any) -> list[Any]:
    """All batches of an iterable or DataLoader, drawn once.

    A batch is a tensor, a tuple or list (positional arguments) or a mapping (keyword arguments).
    Raises ArgumentError where there is none, and for anything else.
    """
    remedy = (
        "pass an iterable of batches: tensors, tuples (positional arguments) or dicts (keyword "
        "arguments)"
    )
    if isinstance(calibration, (Tensor, Mapping, str, bytes)) or not isinstance(
        calibration, Iterable
    ):
        hint = "; for one batch write calibration=[batch]"
        raise ArgumentError(f"calibration is a {type(calibration).__name__}; {remedy}{hint}")
    batches = list(calibration)
    if not batches:
        raise ArgumentError(f"calibration yields nothing (was an iterator used up?); {remedy}")
    for k, batch in enumerate(batches):
        if not isinstance(batch, (Tensor, tuple, list, Mapping)):
            raise ArgumentError(f"calibration: batch {k} is a {type(batch).__name__}; {remedy}")
    return batches


def call(model: nn.Module, batch: Any, index: int) -> None:
    """One forward pass without grad; its output is dropped.

    Raises ArgumentError, with the model's own error in it, where the model cannot take the batch.
    """
    try:
        with torch.no_grad():
            if isinstance(batch, Tensor):
                model(batch)
            elif isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*batch)
    except TensorlrfError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"calibration: the model cannot take batch {index} ({_describe(batch)}): "
            f"{type(error).__name__}: {error}{_advice(model, batch)}"
        ) from error


def _describe(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)} on {batch.device}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{k}: {_describe(v)}" for k, v in batch.items()) + "}"
    if isinstance(batch, (tuple, list)):
        return "(" + ", ".join(_describe(v) for v in batch) + ")"
    return type(batch).__name__


def _advice(model: nn.Module, batch: Any) -> str:
    """What is probably wrong, as the end of a sentence."""
    homes = {p.device for p in model.parameters()}
    tensors = [t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]
    if len(homes) == 1 and any(t.device not in homes for t in tensors):
        return f". The model is on {homes.pop()}: move the batches there"
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return (
            ". A tuple holds the positional arguments of the model: leave out labels, as in "
            "[(x,) for x, label in loader]"
        )
    return ""
