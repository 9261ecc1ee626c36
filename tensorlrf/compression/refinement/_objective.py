"""What refinement brings down: how far the outputs are from those of the given model, a function of
the user's own, or both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tensorlrf.compression._paired import Floats
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.losses._output_loss import OutputLoss, Readout
from tensorlrf.errors import ArgumentError, TensorlrfError
from tensorlrf.nn.copies import replica

Function = Callable[..., Tensor]
"""Of what a model returns, and of the labels where there are any, to one number."""

Wanted = list[Tensor]
"""Rows of the outputs of the given model for a batch."""

Loss = str | Function | Sequence[str | Function]


@dataclass(frozen=True)
class Objective:
    """distance  how far outputs are from the given model's
    function     of the user's own
    labels       index of a batch -> what `function` takes beside the outputs
    """

    distance: OutputLoss | None
    function: Function | None = None
    labels: Mapping[int, Any] | None = None

    @classmethod
    def of(
        cls,
        loss: Loss,
        readout: Readout | None,
        labels: Iterable[Any] | None,
        batches: Sequence[Batch],
        output: Any,
        classifies: bool,
    ) -> Objective:
        """What `loss` says, for a model that returns such an `output`. Raises ArgumentError."""
        parts = [loss] if isinstance(loss, str) or callable(loss) else _listed("loss", loss)
        words = [part for part in parts if isinstance(part, str)]
        functions = [part for part in parts if not isinstance(part, str) and callable(part)]
        if not parts or len(words) > 1 or len(functions) > 1 or len(words + functions) < len(parts):
            raise ArgumentError(
                f"loss={loss!r} must be a word such as 'kl', a function of the outputs, or one of "
                "each in a tuple"
            )
        distance = OutputLoss.of(words[0], readout, output, classifies) if words else None
        if labels is None:
            return cls(distance, functions[0] if functions else None)
        if not functions:
            raise ArgumentError(
                "labels are for a function of one's own: give loss=, such as "
                "('kl', torch.nn.functional.cross_entropy)"
            )
        given = _listed("labels", labels)
        if len(given) != len(batches):
            raise ArgumentError(
                f"labels has {len(given)} entries and data {len(batches)} batches; give one each"
            )
        named = {batch.index: one for batch, one in zip(batches, given, strict=True)}
        return cls(distance, functions[0], named)

    @property
    def unit(self) -> str:
        """Of the loss, in words."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        parts = [] if self.distance is None else [self.distance.unit]
        return " + ".join(parts + ([] if self.function is None else [name]))

    def wanted(self, output: Any, batch: Batch) -> Wanted:
        """What counts of an output of the given model, and nothing else of it."""
        if self.distance is None:
            return []
        return [rows.detach() for rows in self.distance.rows(output, batch)]

    def loss(self, wanted: Wanted, got: Any, batch: Batch) -> Tensor:
        """The mean over one batch, to be differentiated in what the model has `got`."""
        total = None
        if self.distance is not None:
            lost, whole = self.distance.apart(wanted, got, batch)
            total = lost / max(whole, math.ulp(0.0))
        if self.function is not None:
            own = self.of_function(got, batch)
            total = own if total is None else total.to(own.device) + own
        assert total is not None
        return total

    def parts(self, model: nn.Module, wanted: Wanted, batch: Batch) -> Floats:
        """(4, n): of each sample of a batch the distance, what the sum of all distances is to be
        divided by, the value of the function, and how many values that is. A function says
        nothing of single samples: then n is 1.
        """
        got = call(replica(model), batch, argument="data")
        found = np.zeros((4, 1))
        if self.distance is not None:
            told = self.distance.by_sample(wanted, got, batch)
            found = np.zeros((4, len(told[0])))
            found[0], found[1] = (t.numpy() for t in told)
        if self.function is not None:
            found = found.sum(1, keepdims=True)
            found[2:, 0] = float(self.of_function(got, batch).detach()), 1.0
        return found

    def of_function(self, got: Any, batch: Batch) -> Tensor:
        """What the user's function says of a batch. Raises ArgumentError where it cannot."""
        assert self.function is not None
        beside = () if self.labels is None else (self.labels[batch.index],)
        try:
            value = self.function(got, *beside)
        except TensorlrfError:
            raise
        except Exception as error:
            remedy = (
                "; labels= must have an entry for each batch that fits its outputs"
                if beside
                else "; it is called with what the model returns"
            )
            raise ArgumentError(
                f"loss: the function fails on batch {batch.index}: {type(error).__name__}: "
                f"{error}{remedy}"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise ArgumentError(
                f"loss: the function gives a {_described(value)} for batch {batch.index}; it must "
                "give a floating-point tensor of one number"
            )
        return value.reshape(()).to(torch.promote_types(value.dtype, torch.float32))


def _listed(argument: str, values: Any) -> list[Any]:
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
        raise ArgumentError(f"{argument} is a {type(values).__name__}; give a list")
    return list(values)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor of {tuple(value.shape)}, {value.dtype}"
    return type(value).__name__
