"""Answers beside labels: how many are right, and F1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from tensorlrf.compression.calibration._outputs import tensors_of
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.metrics._metric import Metric, plural, weighed
from tensorlrf.compression.metrics._reading import batches_of, check_numbers, counting
from tensorlrf.errors import ArgumentError, ShapeError

IGNORED = -100
"""The label of what does not count, as in torch's losses."""

Decode = Callable[[Any], Any]
"""From what a model returns to an answer for each example."""


def accuracy(data: Any, labels: Any, *, decode: Decode | None = None) -> Metric:
    """The share of answers that are right.

    Parameters
    ----------
    data : iterable of batches
        The arguments of the model, as `calibration=` takes them, without labels; other ones than
        those a model was fitted to. No function.
    labels : Tensor or sequence
        One of each example, in the order of the data; or a list with a tensor or list for each
        batch. Of tokens (batch, tokens); the label -100 does not count.
    decode : callable, optional
        From what the model returns to its answers, as many as there are labels of a batch; by
        default the arg max over the last dimension of what is called logits, else of the one
        tensor.

    Returns
    -------
    Metric
        Of values in [0, 1], the larger the better, with a score for each sample.

    Raises
    ------
    ArgumentError
        For batches or labels that cannot be. Called, for more or fewer answers than labels, and
        for NaN.

    Examples
    --------
    >>> right = tensorlrf.metrics.accuracy([torch.eye(3)], [0, 1, 1])
    >>> round(right(torch.nn.Identity()), 4)
    0.6667
    """
    _check_decode(decode)
    batches, known = batches_of(data), _labels(labels)
    if all(one == IGNORED for one in known):
        raise ArgumentError(f"labels={labels!r:.40} name nothing that counts; give one an example")
    return _Accuracy(data, batches, known, decode)


def f1(
    data: Any, labels: Any, *, decode: Decode | None = None, positive: Hashable | None = None
) -> Metric:
    """F1, the harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN).

    Of labels it is the mean over all classes that there are, or answered; with `positive` that of
    this class. Of sets (the spans of a sentence, the boxes of a picture) it is that of all their
    members, an answer of which is right where it is among those of the same example.

    Parameters
    ----------
    data : iterable of batches
        As in `accuracy`.
    labels : Tensor or sequence
        As in `accuracy`; or a set or frozenset of each example, one after the other.
    decode : callable, optional
        As in `accuracy`; it has to give sets where the labels are such.
    positive : optional
        The class that counts, one of the labels.

    Returns
    -------
    Metric
        Of values in [0, 1], the larger the better: one number, since F1 is no mean over examples,
        so that a drop of it has no bound.

    Raises
    ------
    ArgumentError
        As `accuracy`, and where there is nothing to be found.

    References
    ----------
    van Rijsbergen 1979.

    Examples
    --------
    >>> found = tensorlrf.metrics.f1([torch.eye(3)], [0, 1, 1], positive=1)  # one of two
    >>> round(found(torch.nn.Identity()), 4)
    0.6667
    """
    _check_decode(decode)
    batches, known = batches_of(data), _labels(labels)
    sets = [isinstance(one, AbstractSet) for one in known]
    if any(sets) and not all(sets):
        raise ArgumentError("labels are sets of some examples and not of others; give all as sets")
    if any(sets):
        if positive is not None:
            raise ArgumentError(f"positive={positive!r} is for labels, and these are sets")
        if not any(known):
            raise ArgumentError("labels are sets without a member: there is nothing to be found")
        return _SetF1(data, batches, known, decode)
    if all(one == IGNORED for one in known):
        raise ArgumentError(f"labels={labels!r:.40} name nothing that counts; give one an example")
    if positive is not None and positive not in known:
        raise ArgumentError(f"positive={positive!r} is none of the labels")
    return _ClassF1(data, batches, known, decode, positive)


@dataclass(frozen=True, repr=False, eq=False)
class _Labelled(Metric):
    """labels  of all examples, one after the other"""

    batches: tuple[Batch, ...]
    labels: list[Any]
    decode: Decode | None

    def answers(self, model: nn.Module) -> tuple[list[Any], list[tuple[int, int]]]:
        """(of each label the answer; the batch and the sample that it is of). Raises for others
        than there are labels."""
        found: list[Any] = []
        of: list[tuple[int, int]] = []
        for batch in self.batches:
            output = call(model, batch, argument="data")
            check_numbers(tensors_of(output), batch)
            answers = list(_flat(self._decoded(output)))
            each = max(1, len(answers) // batch.samples)
            of += [(batch.index, k // each) for k in range(len(answers))]
            found += answers
        if len(found) != len(self.labels):
            what = "the model's" if self.decode is None else "decode's"
            raise ShapeError(
                f"labels are {len(self.labels):,}, and {what} answers on data {len(found):,}: give "
                "one label an answer, in the order of the data"
            )
        return found, of

    def _decoded(self, output: Any) -> Any:
        if self.decode is None:
            return counting(output, None).argmax(-1)
        try:
            return self.decode(output)
        except Exception as error:  # of whatever kind: it is the user's
            raise ArgumentError(
                f"decode fails on what the model returns: {type(error).__name__}: {error}"
            ) from error

    def _of(self) -> str:
        return plural(len(self.labels), "label")


class _Accuracy(_Labelled):
    name = "accuracy"

    def scores(self, model: nn.Module) -> Any:
        answers, of = self.answers(model)
        numbers: dict[tuple[int, int], int] = {}
        at = np.array([numbers.setdefault(one, len(numbers)) for one in of])
        counts = np.array([one != IGNORED for one in self.labels], np.float64)
        right = np.array([a == b for a, b in zip(answers, self.labels, strict=True)]) * counts
        sums, whole = (np.bincount(at, weights=part) for part in (right, counts))
        return weighed(sums[whole > 0], whole[whole > 0])


@dataclass(frozen=True, repr=False, eq=False)
class _ClassF1(_Labelled):
    positive: Hashable | None

    name = "F1"

    def scores(self, model: nn.Module) -> float:
        answers, _ = self.answers(model)
        pairs = [(a, b) for a, b in zip(answers, self.labels, strict=True) if b != IGNORED]
        right = Counter(a for a, b in pairs if a == b)
        told, there = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
        classes = {**there, **told} if self.positive is None else {self.positive: 1}
        of = [2 * right[one] / (told[one] + there[one]) for one in classes]
        return float(np.mean(of))


class _SetF1(_Labelled):
    name = "F1"

    def scores(self, model: nn.Module) -> float:
        answers, _ = self.answers(model)
        if not all(isinstance(one, AbstractSet) for one in answers):
            raise ArgumentError("labels are sets, and decode does not give sets; give decode= that")
        right = sum(len(a & b) for a, b in zip(answers, self.labels, strict=True))
        return 2 * right / sum(map(len, (*answers, *self.labels)))


def _check_decode(decode: Any) -> None:
    if decode is not None and not callable(decode):
        raise ArgumentError(
            f"decode is a {type(decode).__name__}; pass a function from what the model returns to "
            "its answers"
        )


def _labels(given: Any) -> list[Any]:
    if isinstance(given, (str, bytes)) or not isinstance(given, (Tensor, Iterable)):
        raise ArgumentError(f"labels is a {type(given).__name__}; pass one label an example")
    found = list(_flat(given))
    if not found:
        raise ArgumentError("labels is empty; pass one label an example")
    return found


def _flat(values: Any) -> Iterator[Any]:
    """What is in tensors, arrays, lists and tuples, nested; all else as it is, sets among it."""
    if isinstance(values, (Tensor, np.ndarray)):
        listed = values.tolist()
        yield from _flat(listed) if isinstance(listed, list) else (listed,)
        return
    if isinstance(values, (str, bytes, AbstractSet)) or not isinstance(values, Iterable):
        yield values
        return
    for one in values:
        nested = isinstance(one, (Tensor, np.ndarray, list, Sequence))
        yield from _flat(one) if nested else (one,)
