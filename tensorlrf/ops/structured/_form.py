"""What a structured format supplies, for a linear layer to run on it.

Runs look at the shapes of the factors, never at that of x: they hold for any number of leading
dimensions, and can be traced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from tensorlrf.factors import Factors
from tensorlrf.ops._counter import Counter

F = TypeVar("F", bound=Factors)


@dataclass(frozen=True)
class LinearForm(Generic[F]):
    """
    paths    the paths beside "dense", for these factors
    run      (path, factors, x (..., n)) -> (..., m), without bias
    cost     counts the calls of `run` for a number of rows
    rebuild  counts those of `to_dense`
    """

    paths: Callable[[F], tuple[str, ...]]
    run: Callable[[str, F, Tensor], Tensor]
    cost: Callable[[Counter, str, F, int], None]
    rebuild: Callable[[Counter, F], None]
