"""How two models differ: in their layers, their weights, and what they put out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._heads import heads_of
from tensorlrf.compression.calibration.batches import Batch, call, list_batches
from tensorlrf.compression.comparison._comparison import (
    ComparedLayer,
    Comparison,
    OutputsApart,
)
from tensorlrf.compression.comparison._sides import Side
from tensorlrf.compression.losses._output_loss import AT_ONCE, OutputLoss, Readout
from tensorlrf.compression.metrics._reading import check_numbers, check_readout
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.copies import replica


def compare(a: Any, b: Any, data: Any = None, *, readout: Readout | None = None) -> Comparison:
    """How two models differ.

    Layers are compared by their names: formats, ranks and sizes, and of two models the weights that
    they stand for; with data what they put out on it.

    Parameters
    ----------
    a, b : Module, path, FileReport, Report or Plan
        Models; or what tells of one: a path is that of a file which `save` wrote, of which only the
        factored layers are known.
    data : iterable of batches or callable, optional
        As `calibration=` of `compress` takes them, for two models.
    readout : callable, optional
        From what a model returns to the tensor that counts, by default what is called logits, else
        all floating-point tensors.

    Returns
    -------
    Comparison
        Its one-line repr, and a table when it is printed.

    Raises
    ------
    ArgumentError
        For what is neither of these, data without two models, outputs with NaN.
    ShapeError
        Where outputs have other shapes.
    FileError, FileFormatError
        Of a path.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> tensorlrf.compare(model, model, [torch.randn(8, 64)])
    Comparison: 0 of 1 layer differ, 4,160 and 4,160 parameters, outputs 0 apart
    """
    check_readout(readout)
    sides = Side.of(a, "a"), Side.of(b, "b")
    models = [side.model for side in sides if side.model is not None]
    if data is not None and len(models) < 2:
        raise ArgumentError("data is for two models that can be run; leave it out, or give models")
    rows = []
    weights = [{} if side.model is None else dict(side.model.named_modules()) for side in sides]
    with torch.no_grad(), without_autocast():
        for name in {**sides[0].layers, **sides[1].layers}:
            modules = [own.get(name) for own in weights]
            rows.append(
                ComparedLayer(
                    name,
                    sides[0].layers.get(name),
                    sides[1].layers.get(name),
                    _difference(*modules),
                )
            )
        outputs = None if data is None else _outputs(models[0], models[1], data, readout)
    return Comparison(
        tuple(rows), (sides[0].params, sides[1].params), (sides[0].bytes, sides[1].bytes), outputs
    )


def _difference(a: nn.Module | None, b: nn.Module | None) -> float | None:
    """Of their weights, over the larger norm."""
    if a is None or b is None:
        return None
    if a is b:
        return 0.0
    one, other = _weight(a), _weight(b)
    if one is None or other is None or one.shape != other.shape:
        return None
    sums = [0.0, 0.0, 0.0]
    pieces = (torch.split(t.flatten(), AT_ONCE) for t in (one, other.to(one.device)))
    for x, y in zip(*pieces, strict=True):
        p, q = x.double(), y.double()
        for k, t in enumerate((p - q, p, q)):
            sums[k] += float(t.square().sum())
    whole = max(sums[1:])
    return math.sqrt(sums[0] / whole) if whole else math.sqrt(sums[0])


def _weight(module: nn.Module) -> Tensor | None:
    """The dense one, of a layer that has one; none on meta."""
    if isinstance(module, FactoredLayer):
        weight: Any = module.factors.to_dense()
    else:
        weight = module._parameters.get("weight")
    known = isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta
    return weight.detach() if known else None


def _outputs(a: nn.Module, b: nn.Module, data: Any, readout: Readout | None) -> OutputsApart:
    one, other = replica(a), replica(b)
    batches = list_batches(data, one, "data")
    totals = _Totals(bool(heads_of(a) or heads_of(b)))
    for batch in batches:
        found = [call(model, batch, argument="data") for model in (one, other)]
        totals.add(batch, found[0], found[1], readout)
    if not totals.rows:
        raise ArgumentError("data: of all outputs no row counts; is all of it padding?")
    return totals.mean(len(batches))


class _Totals:
    """Sums over rows, of a model that `classifies` or not."""

    def __init__(self, classifies: bool) -> None:
        self.classifies = classifies
        self.rows = 0
        self.squares = [0.0, 0.0, 0.0]  # of the differences, of a, of b
        self.cosines = 0.0
        self.same = self.kl = 0.0
        self.are_logits = True

    def add(self, batch: Batch, a: Any, b: Any, readout: Readout | None) -> None:
        """Those of a batch. Raises ShapeError, and ArgumentError for NaN."""
        loss = OutputLoss("cosine", readout)
        pairs = [loss.counted(out) for out in (a, b)]
        shapes = [", ".join(str(tuple(t.shape)) for t in side) or "nothing" for side in pairs]
        if shapes[0] != shapes[1]:
            raise ShapeError(
                f"outputs on batch {batch.index} of data are of shape {shapes[0]} of a and "
                f"{shapes[1]} of b; give models with one kind of output, or readout="
            )
        for side in pairs:
            check_numbers(side, batch)
        told = readout is None and isinstance(getattr(a, "logits", None), Tensor)
        single = len(pairs[0]) == 1 and pairs[0][0].ndim > 1 and pairs[0][0].shape[-1] > 1
        self.are_logits &= single and (told or self.classifies)
        for wanted, got in zip(*(loss.rows(out, batch) for out in (a, b)), strict=True):
            rows = max(1, AT_ONCE // max(1, wanted.shape[-1]))
            for x, y in zip(torch.split(wanted, rows), torch.split(got, rows), strict=True):
                self._add(x.double(), y.double())

    def _add(self, a: Tensor, b: Tensor) -> None:
        """(rows, n) each."""
        self.rows += len(a)
        for k, t in enumerate((a - b, a, b)):
            self.squares[k] += float(t.square().sum())
        lost = OutputLoss("cosine").between_rows(a, b)[0]
        self.cosines += float((1 - lost).sum())
        self.same += float((a.argmax(-1) == b.argmax(-1)).sum())
        self.kl += float(OutputLoss("kl").between_rows(a, b)[0].sum())

    def mean(self, batches: int) -> OutputsApart:
        lost, *both = self.squares
        whole = max(both)
        logits = self.are_logits
        return OutputsApart(
            batches, self.rows, math.sqrt(lost / whole) if whole else math.sqrt(lost),
            self.cosines / self.rows, self.same / self.rows if logits else None,
            self.kl / self.rows if logits else None,
        )  # fmt: skip
