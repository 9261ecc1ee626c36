"""What metrics read: batches, and what counts of the outputs of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from tensorlrf.compression.calibration._outputs import tensors_of
from tensorlrf.compression.calibration.batches import Batch, list_batches
from tensorlrf.compression.losses._output_loss import Readout
from tensorlrf.errors import ArgumentError


def batches_of(data: Any) -> tuple[Batch, ...]:
    """Those of an iterable. Raises ArgumentError for anything else, a function among it."""
    if callable(data) and not isinstance(data, Iterable):
        raise ArgumentError(
            "data is a function, and it takes batches to tell which labels are whose; pass a list "
            "of them, or a DataLoader"
        )
    return tuple(list_batches(data, nn.Identity(), "data"))


def check_readout(readout: Any) -> None:
    """Raise ArgumentError for what is no function."""
    if readout is not None and not callable(readout):
        raise ArgumentError(
            f"readout is a {type(readout).__name__}; pass a function of what the model returns"
        )


def counting(output: Any, readout: Readout | None) -> Tensor:
    """The one tensor that counts: what `readout` says, else logits, else the only one there is.

    Raises ArgumentError where none or several could be meant.
    """
    if readout is not None:
        told: Any = readout(output)
        if not isinstance(told, Tensor) or not told.is_floating_point():
            raise ArgumentError(
                f"readout returns a {type(told).__name__}; it must return a floating-point tensor"
            )
        return told
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    found = list(tensors_of(output))
    if len(found) != 1:
        raise ArgumentError(
            f"the model returns {len(found)} floating-point tensors, and none that is called "
            "logits; say which one counts by readout="
        )
    return found[0]


def check_numbers(tensors: Iterable[Tensor], batch: Batch) -> None:
    """Raise ArgumentError for NaN, by which nothing can be judged."""
    if any(bool(t.isnan().any()) for t in tensors):
        raise ArgumentError(
            f"the outputs on batch {batch.index} of data hold NaN; where the dtype is too narrow "
            "for the model, give it in float32 or bfloat16"
        )
