"""A metric of the user's own: what it says of the given model, and how far another falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tensorlrf.compression._paired import Floats, Ints, excess, student
from tensorlrf.compression.journal._kept import NOT_KEPT, Kept, Of, numbers
from tensorlrf.compression.metrics._metric import Metric
from tensorlrf.compression.report._quality import Judged, Quality
from tensorlrf.errors import ArgumentError
from tensorlrf.files.strict import JsonNode
from tensorlrf.nn.copies import replica

Evaluate = Callable[[nn.Module], Any]
"""Model -> a number, the higher the better; or a score of each example, a 1-D tensor or sequence;
or (scores, labels of the group of each). A `Metric` says itself which way is better."""

LEVEL = 0.95
"""Of a bound, one-sided."""

GIVEN = "the given model"
"""In messages, and in a journal."""

CONTRACT = (
    "it must return a finite number, the higher the better, or a score for each example (a 1-D "
    "tensor or a sequence), or a pair of these scores and the label of each one's group"
)


@dataclass(frozen=True)
class Scores:
    """values  (n,), of each example, or a single one for all
    groups     (n,), the number of the group of each
    whole      whether it is a single one for all
    """

    values: Floats
    groups: Ints
    whole: bool

    @classmethod
    def read(cls, at: JsonNode) -> Scores:
        """Inverse of `to_json`. Raises FileFormatError."""
        at.keys_are(["values", "groups", "whole"])
        values = [entry.word_or_number() for entry in at["values"].entries()]
        groups = [entry.whole() for entry in at["groups"].entries()]
        good = len(values) == len(groups) > 0 and max(groups) < len(groups)
        if not good or any(not value < math.inf for value in values):
            at.wrong("scores of examples in groups")
        return cls(np.array(values, np.float64), np.array(groups, np.int64), at["whole"].flag())

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "values": numbers(self.values.tolist()),
            "groups": self.groups.tolist(),
            "whole": self.whole,
        }

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def n_groups(self) -> int:
        return int(self.groups.max()) + 1


@dataclass(frozen=True)
class Drop:
    """How far a model falls below the given one.

    quality  the metric, of scores their mean
    mean     by how much it is worse than that of the given model
    bound    it is worse by no more than this, at the level asked for
    """

    quality: float
    mean: float
    bound: float


class Judge:
    """The metric and the given model, which it has judged twice.

    noise  a difference of two numbers that `evaluate` gives of the same model is no larger than
           this; 0 where it gives the same twice, or where scores of examples scatter by themselves
    calls  of the metric, so far
    """

    def __init__(
        self,
        evaluate: Evaluate,
        model: nn.Module,
        argument: str = "evaluate",
        kept: Kept = NOT_KEPT,
        calibration: Any = None,
    ) -> None:
        if not callable(evaluate):
            raise ArgumentError(
                f"{argument} is a {type(evaluate).__name__}; pass a function of a model"
            )
        self._evaluate, self._argument, self._kept = evaluate, argument, kept
        self._metric = evaluate if isinstance(evaluate, Metric) else None
        self.judged = judged_by(evaluate, calibration)
        self._given, self._has_met = model, False
        self.calls = 0
        first, second = (self._scores(lambda: model, GIVEN) for _ in range(2))
        self._check_alike(first, second, GIVEN)
        if not np.isfinite(first.values).all():
            raise ArgumentError(f"{argument} returns infinity for the given model; {CONTRACT}")
        values = (first.values + second.values) / 2
        self.dense = Scores(values, first.groups, first.whole)
        self.deterministic = bool((first.values == second.values).all())
        self._noise = _noise(first, second)
        self.noise = self._worse(self._noise)

    @property
    def given(self) -> float:
        """What it says of the given model."""
        return self._value(self.dense.mean)

    @property
    def examples(self) -> int:
        """Scores that it gives; 0 where it gives one number for all."""
        return 0 if self.dense.whole else len(self.dense.values)

    def drop(self, model: nn.Module, who: str, level: float = LEVEL) -> Drop:
        """How far the metric of a model falls.

        who  what it is, for messages
        """
        return self.drop_of(lambda: model, who, level)

    def drop_of(self, make: Callable[[], nn.Module], who: str, level: float = LEVEL) -> Drop:
        """The same of a model that is made where an earlier call has not judged it."""
        scores = self._scores(make, who)
        self._check_alike(self.dense, scores, who)
        mean = self.dense.mean - scores.mean
        if not math.isfinite(mean):
            return self._drop(scores.mean, mean, mean)
        if scores.whole:
            return self._drop(scores.mean, mean, mean + self._noise)
        more = excess(self.dense.values - scores.values, scores.groups, level, self._size)
        return self._drop(scores.mean, mean, mean + math.hypot(more, self._noise))

    def _drop(self, mean: float, fall: float, bound: float) -> Drop:
        """Of scores, in units of the metric."""
        return Drop(self._value(mean), self._worse(fall), self._worse(bound))

    def _value(self, mean: float) -> float:
        return mean if self._metric is None else self._metric.value(mean)

    def _worse(self, by: float) -> float:
        return by if self._metric is None else self._metric.worse(self.dense.mean, by)

    def quality(
        self,
        drop: Drop,
        *,
        max_drop: float | None = None,
        resolution: float | None = None,
        confirmed: Drop | None = None,
    ) -> Quality:
        """What a report says of it."""
        return Quality(
            self.given, drop.quality, drop.mean, drop.bound, self.examples,
            self.dense.n_groups if self.examples else 0, self.noise, self.calls, max_drop,
            resolution, None if confirmed is None else confirmed.mean,
            None if confirmed is None else confirmed.bound, self.judged,
        )  # fmt: skip

    @property
    def words(self) -> str:
        """What it judges by."""
        if self.dense.whole:
            return f"two calls of {self._argument} on one model, which differ,"
        return f"{self.examples:,} examples in {self.dense.n_groups:,} groups (of {self._argument})"

    @property
    def _size(self) -> float:
        """By how much a score may differ where none has yet."""
        values = self.dense.values
        spread = float(values.max() - values.min())
        return spread if spread > 0 else abs(float(values[0]))

    def _scores(self, make: Callable[[], nn.Module], who: str) -> Scores:
        self.calls += 1
        of = self._of(self.calls, who)
        known = self._kept.find(*of)
        if known is not None:
            return Scores.read(known)
        self._meet()
        scores = self._judged(make(), who)
        self._kept.put({of: scores.to_json()})
        return scores

    def _meet(self) -> None:
        """Show it the given model where an earlier call has, and this one not yet: it may compare
        with what it is called with first. Raises ArgumentError where it is not what it was."""
        if self._has_met:
            return
        self._has_met = True
        first, second = (self._kept.find(*self._of(k, GIVEN)) for k in (1, 2))
        if first is None:
            return
        scores, before = self._judged(self._given, GIVEN), Scores.read(first)
        self._check_alike(before, scores, GIVEN)
        repeats = second is not None and (Scores.read(second).values == before.values).all()
        if repeats and not np.array_equal(scores.values, before.values):
            raise ArgumentError(
                f"{self._argument} says {scores.mean:.6g} of the given model, and said "
                f"{before.mean:.6g} in the call that journal= goes on from; give the same function "
                "on the same data, or another folder as journal="
            )

    def _of(self, call: int, who: str) -> Of:
        return ("scores", self._argument, str(call), who)

    def _judged(self, model: nn.Module, who: str) -> Scores:
        # What it does to a model stays with a copy.
        own = replica(model)
        try:
            with torch.no_grad():
                known = self._metric
                returned = self._evaluate(own) if known is None else known.scores(own)
        except Exception as error:
            raise ArgumentError(
                f"{self._argument} fails on {who}: {type(error).__name__}: {error}"
            ) from error
        scores = _read(returned)
        if scores is None:
            raise ArgumentError(f"{self._argument} returns {_shown(returned)}; {CONTRACT}")
        if np.isnan(scores.values).any() or (scores.values == np.inf).any():
            bad = "NaN" if np.isnan(scores.values).any() else "infinity"
            raise ArgumentError(
                f"{self._argument} returns {bad} for {who}; {CONTRACT}. Of a model that is of no "
                "use it may return -inf"
            )
        return scores

    def _check_alike(self, one: Scores, other: Scores, who: str) -> None:
        if one.whole != other.whole or not np.array_equal(one.groups, other.groups):
            raise ArgumentError(
                f"{self._argument} returns {_described(other)} for {who}, and {_described(one)} "
                "before; scores must be of the same examples, in the same order, each time"
            )


def judged_by(evaluate: Any, calibration: Any) -> Judged:
    """By what, which way, and whether on the very data that models are fitted to."""
    if not isinstance(evaluate, Metric):
        return Judged()
    seen = evaluate.data is not None and evaluate.data is calibration
    return Judged(evaluate.name, evaluate.larger_is_better, seen)


def judges_of(evaluate: Any) -> tuple[Evaluate, Evaluate | None]:
    """(the metric to search by, the one to confirm by) of a function or a pair of them."""
    if isinstance(evaluate, Sequence) and not isinstance(evaluate, str):
        if len(evaluate) != 2 or not all(callable(one) for one in evaluate):
            raise ArgumentError(
                "evaluate must be a function of a model, or a pair of them: one on the data to "
                "search by, and one on other data, to confirm what was found"
            )
        return evaluate[0], evaluate[1]
    if not callable(evaluate):
        raise ArgumentError(f"evaluate is a {type(evaluate).__name__}; pass a function of a model")
    return evaluate, None


def _noise(first: Scores, second: Scores) -> float:
    """Of two calls on one model, with the mean of which a third one is compared: the bound on the
    difference, by Student's t with the one degree of freedom that there is."""
    differences = first.values - second.values
    apart = abs(float(differences.mean()))
    if not first.whole and apart <= excess(differences, first.groups, LEVEL, 0.0):
        return 0.0  # the scatter of the scores explains it, and is in every bound
    return student(LEVEL, 1) * apart / math.sqrt(2) * math.sqrt(1 + 1 / 2)


def _read(returned: Any) -> Scores | None:
    """None for what is none."""
    labels: Any = None
    if isinstance(returned, tuple) and len(returned) == 2 and not _is_number(returned[0]):
        returned, labels = returned
    if _is_number(returned):
        if labels is not None:
            return None
        return Scores(np.array([float(returned)]), np.zeros(1, np.int64), True)
    values = _vector(returned)
    if values is None:
        return None
    if labels is None:
        return Scores(values, np.arange(len(values)), False)
    if isinstance(labels, (Tensor, np.ndarray)):
        labels = labels.tolist()
    if not isinstance(labels, Sequence) or isinstance(labels, str) or len(labels) != len(values):
        return None
    numbers: dict[Any, int] = {}
    try:
        groups = np.array([numbers.setdefault(label, len(numbers)) for label in labels])
    except TypeError:  # a label that cannot be hashed
        return None
    return Scores(values, groups, False)


def _is_number(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 0 and not _is_complex(value)
    return isinstance(value, (Real, np.number)) and not isinstance(value, np.complexfloating)


def _is_complex(value: Any) -> bool:
    return value.is_complex() if isinstance(value, Tensor) else bool(np.iscomplexobj(value))


def _vector(value: Any) -> Floats | None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().tolist() if value.ndim == 1 else None
    elif isinstance(value, np.ndarray):
        value = value.tolist() if value.ndim == 1 else None
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        return None
    if not all(_is_number(one) for one in value):
        return None
    return np.array([float(one) for one in value], np.float64)


def _shown(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(_shown(one) for one in value[:3])})"
    return f"a {type(value).__name__}"


def _described(scores: Scores) -> str:
    if scores.whole:
        return "one number"
    return f"{len(scores.values)} scores in {scores.n_groups} groups"
