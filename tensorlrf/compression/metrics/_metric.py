"""What a metric is: a number of a model that knows which way is better, and what it is of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from tensorlrf.compression._uncompiled import own_model
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.copies import replica


@dataclass(frozen=True, repr=False, eq=False)
class Metric(ABC):
    """A number that a model is judged by, for `evaluate=`. Call it with a model.

    A metric of your own that has a direction, or scores of examples, is a subclass: `name`,
    `larger_is_better` and `scores`. `evaluate=` takes plain functions as well, of which the larger
    is always the better.

    Parameters
    ----------
    data : object
        What it was made of. Where that is the very object that `calibration=` gets, the report
        says that quality was measured on what the model was fitted to.

    Attributes
    ----------
    name : str
        In reports.
    larger_is_better : bool
        Which way is better.

    Examples
    --------
    >>> class Size(tensorlrf.metrics.Metric):
    ...     name, larger_is_better = "largest weight", False
    ...     def scores(self, model):
    ...         return -max(p.abs().max() for p in model.parameters())
    ...     def value(self, mean):
    ...         return -mean
    >>> layer = torch.nn.Linear(2, 1)
    >>> _ = torch.nn.init.constant_(layer.weight, 3.0)
    >>> Size(data=None)(layer)
    3.0
    """

    data: Any

    name: ClassVar[str] = "metric"
    larger_is_better: ClassVar[bool] = True

    @abstractmethod
    def scores(self, model: nn.Module) -> Any:
        """What `evaluate=` judges by, the larger the better whatever the metric itself is.

        A number, or scores of examples (n,), or these with the label of the group of each.

        Parameters
        ----------
        model : Module
            In eval mode; what is done to it stays with a copy.
        """

    def value(self, mean: float) -> float:
        """The metric, of the mean of the scores; that mean itself where nothing else is said.

        Parameters
        ----------
        mean : float
        """
        return mean

    def worse(self, mean: float, by: float) -> float:
        """By how much the metric gets worse where the mean of the scores falls.

        Parameters
        ----------
        mean : float
            Of the scores, before.
        by : float
            How far it falls.
        """
        before, after = self.value(mean), self.value(mean - by)
        return before - after if self.larger_is_better else after - before

    def __call__(self, model: nn.Module) -> float:
        with torch.no_grad(), without_autocast():
            scores = self.scores(replica(own_model(model)))
        values = scores[0] if isinstance(scores, tuple) and len(scores) == 2 else scores
        return self.value(float(torch.as_tensor(values, dtype=torch.float64, device="cpu").mean()))

    def __repr__(self) -> str:
        way = "larger" if self.larger_is_better else "smaller"
        return f"{self.name} of {self._of()}, the {way} the better"

    def _of(self) -> str:
        """The data, in words."""
        return f"a {type(self.data).__name__}"


def weighed(sums: ArrayLike, counts: ArrayLike) -> Tensor:
    """Scores of examples whose mean is that over all that was counted: of an example with more
    tokens than others each counts the same.

    sums    (n,), of each example over what it has
    counts  (n,), of what it has, the same for every model
    """
    given = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    return torch.from_numpy(given[0] * (given[1].size / given[1].sum()))


def plural(count: int, word: str) -> str:
    """1 batch, 2 batches."""
    more = "es" if word.endswith(("ch", "x")) else "s"
    return f"{count:,} {word}{'' if count == 1 else more}"
