"""Tall matrices, which may lie in memory by columns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tensorlrf.factors import Factors
from tensorlrf.ops.forms.lowering import LINEAR, symbolic_paths
from tensorlrf.ops.forms.stages import Matrix

TALL = 2
"""Outputs over inputs from which on a matrix is tall."""


def tall_matrices(factors: Factors) -> tuple[str, ...]:
    """Tensors of a linear layer that its chain multiplies by as they are, with far more outputs
    than inputs, such as the left factor of a low rank.

    A row of inputs times such a matrix is a dot product with each of many short rows or, where the
    columns are in one piece, a sum of few long ones: for few rows of inputs up to 2.4 times as fast
    on a CPU (bench/tall.py).
    """
    weights: list[Any] = [
        stage.weight
        for stage in symbolic_paths(LINEAR, factors).paths["chain"]
        if isinstance(stage, Matrix)
    ]
    own = {w.args[0] for w in weights if w.function is None}
    return tuple(n for n, t in factors.tensors().items() if n in own and _is_tall(t))


def _is_tall(matrix: Tensor) -> bool:
    m, n = matrix.shape
    return n > 0 and m >= TALL * n


def columns_first(matrix: Tensor) -> Tensor:
    """The same numbers, each column in one piece."""
    return matrix.T.contiguous().T


def lies_by_columns(matrix: Tensor) -> bool:
    return matrix.T.is_contiguous() and not matrix.is_contiguous()
