"""What a structured format supplies, for a linear layer to run on it.

Runs look at the shapes of the factors, never at that of x: they hold for any number of leading
dimensions, and can be traced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tensorlrf.factors import Factors
from tensorlrf.ops._counter import Counter
from tensorlrf_kernels.launches import Workload

F = TypeVar("F", bound=Factors)


@dataclass(frozen=True)
class LinearForm(Generic[F]):
    """
    paths    the paths beside "dense", for these factors
    run      (path, factors, x (..., n)) -> (..., m), without bias
    cost     counts the calls of `run` for a number of rows
    rebuild  counts those of `to_dense`
    fused    (factors, x, bias) -> (..., m) in a kernel; None where the format has none
    problem  (factors, rows, dtype, tf32) -> the op, and what its kernel is to compute; None where
             no kernel serves and the op itself takes another way
    """

    paths: Callable[[F], tuple[str, ...]]
    run: Callable[[str, F, Tensor], Tensor]
    cost: Callable[[Counter, str, F, int], None]
    rebuild: Callable[[Counter, F], None]
    fused: Callable[[F, Tensor, Tensor | None], Tensor] | None = None
    problem: Callable[[F, int, torch.dtype, bool], tuple[str, Workload] | None] | None = None
