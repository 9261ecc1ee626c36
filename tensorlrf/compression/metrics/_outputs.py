"""Outputs beside those of another model: how many answers are the same, and how near they point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression._uncompiled import own_model
from tensorlrf.compression.calibration.batches import Batch, call, list_batches
from tensorlrf.compression.losses._output_loss import OutputLoss, Readout
from tensorlrf.compression.metrics._metric import Metric, plural, weighed
from tensorlrf.compression.metrics._reading import check_numbers, check_readout, counting
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.copies import replica


def agreement(data: Any, reference: nn.Module, *, readout: Readout | None = None) -> Metric:
    """The share of answers, classes or next tokens, that are those of another model.

    An answer is the arg max over the last dimension of the logits: one a sample of a classifier,
    one a token of a language model, without padding. No labels are needed.

    Parameters
    ----------
    data : iterable of batches or callable
        As `calibration=` of `compress` takes them, but other ones: what a model was fitted to tells
        too much good of it.
    reference : Module
        The dense model, mostly. It runs here once; its answers are kept, not the model.
    readout : callable, optional
        From what the model returns to its logits (..., classes); by default what is called logits,
        else the one tensor there is.

    Returns
    -------
    Metric
        Of values in [0, 1], the larger the better, with a score for each sample.

    Raises
    ------
    ArgumentError
        For what cannot be run or holds NaN, and for outputs that are no logits. Called, for a model
        whose outputs have other shapes than those of `reference`.

    Examples
    --------
    >>> model = torch.nn.Linear(8, 4)
    >>> same = tensorlrf.metrics.agreement([torch.randn(16, 8)], model)
    >>> same
    agreement of 1 batch, the larger the better
    >>> same(model)
    1.0
    """
    return _beside(_Agreement, _Answers("relative", readout), data, reference)


def cosine(data: Any, reference: nn.Module, *, readout: Readout | None = None) -> Metric:
    """The mean cosine of outputs, such as embeddings, with those of another model.

    Rows are the vectors along the last dimension: one a sample, or one a token, without padding.

    Parameters
    ----------
    data, reference
        As in `agreement`. The outputs of `reference` are kept, so that of a language model, whose
        rows are long, `agreement` takes less memory.
    readout : callable, optional
        From what the model returns to the tensor (..., d) that counts, such as the mean over tokens
        of a sentence encoder; by default what is called logits, else all floating-point tensors.

    Returns
    -------
    Metric
        Of values in [-1, 1], the larger the better, with a score for each sample. A row of zeros
        has the cosine 0 with any other.

    Raises
    ------
    ArgumentError
        As `agreement`.

    Examples
    --------
    >>> model = torch.nn.Linear(8, 4)
    >>> near = tensorlrf.metrics.cosine([torch.randn(16, 8)], model)
    >>> round(near(model), 6)
    1.0
    """
    return _beside(_Cosine, OutputLoss("cosine", readout), data, reference)


@dataclass(frozen=True)
class _Answers(OutputLoss):
    """A row is the number of the class, and its loss whether that is another one."""

    def rows(self, output: Any, batch: Batch) -> list[Tensor]:
        return [t.argmax(-1, keepdim=True) for t in super().rows(output, batch)]

    def counted(self, output: Any) -> list[Tensor]:
        logits = counting(output, self.readout)
        if logits.ndim < 2 or logits.shape[-1] < 2:
            raise ArgumentError(
                f"outputs of shape {tuple(logits.shape)} are no logits (..., classes) of two "
                "classes or more; give readout=, or another metric"
            )
        return [logits]

    def between_rows(self, wanted: Tensor, got: Tensor) -> tuple[Tensor, Tensor]:
        lost = (wanted != got).any(-1).to(wanted.dtype)
        return lost, torch.ones_like(lost)


@dataclass(frozen=True)
class _Wanted:
    """What the reference gives on a batch: its rows, and the shapes that they have come in."""

    batch: Batch
    rows: list[Tensor]
    shapes: list[tuple[int, ...]]


@dataclass(frozen=True, repr=False, eq=False)
class _Beside(Metric):
    """One less the mean loss of rows beside those of a reference."""

    loss: OutputLoss
    wanted: tuple[_Wanted, ...]

    def scores(self, model: nn.Module) -> Tensor:
        parts = [self._scores(model, one) for one in self.wanted]
        kept, whole = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return weighed(kept, whole)

    def _scores(self, model: nn.Module, one: _Wanted) -> tuple[Tensor, Tensor]:
        output = call(model, one.batch, argument="data")
        found = _shapes(self.loss, output, one.batch)
        if found != one.shapes:
            told = (", ".join(map(str, shapes)) or "nothing" for shapes in (found, one.shapes))
            raise ArgumentError(
                f"outputs on batch {one.batch.index} of data are of shape {next(told)}, and those "
                f"of reference of {next(told)}; give the model that this one was made of"
            )
        lost, whole = self.loss.by_sample(one.rows, output, one.batch)
        return whole - lost, whole

    def _of(self) -> str:
        return plural(len(self.wanted), "batch")


class _Agreement(_Beside):
    name = "agreement"


class _Cosine(_Beside):
    name = "cosine"


def _beside(kind: type[_Beside], loss: OutputLoss, data: Any, reference: Any) -> Metric:
    check_readout(loss.readout)
    if not isinstance(reference, nn.Module):
        raise ArgumentError(
            f"reference is a {type(reference).__name__}; pass the model to compare with"
        )
    own = own_model(reference)
    wanted = []
    with torch.no_grad(), without_autocast():
        for batch in list_batches(data, replica(own), "data"):
            output = call(replica(own), batch, argument="data")
            shapes = _shapes(loss, output, batch)
            rows = [t.detach().clone() for t in loss.rows(output, batch)]
            wanted.append(_Wanted(batch, rows, shapes))
    if not any(len(t) for one in wanted for t in one.rows):
        raise ArgumentError(
            "data: of all outputs of reference no row counts; is all of it padding?"
        )
    return kind(data, loss, tuple(wanted))


def _shapes(loss: OutputLoss, output: Any, batch: Batch) -> list[tuple[int, ...]]:
    """Of the tensors that count. Raises ArgumentError for NaN, and where there is none."""
    tensors = loss.counted(output)
    check_numbers(tensors, batch)
    if not tensors:
        raise ArgumentError("there is no floating-point tensor in the outputs; give readout=")
    return [tuple(t.shape) for t in tensors]
