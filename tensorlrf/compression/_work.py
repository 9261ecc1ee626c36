"""How much arithmetic a layer does on the inputs that it gets, dense and on factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tensorlrf.factors import Factors
from tensorlrf.nn.plain import TABLES, Plain
from tensorlrf.ops import Positions, conv_cost, embedding_cost, linear_cost
from tensorlrf.ops.geometry import resolve_padding


@dataclass(frozen=True)
class Work:
    """FLOPs of all calls with the weight, on factors, and the paths that these take."""

    dense: int
    factored: int
    paths: tuple[str, ...]


def work(
    plain: Plain,
    factors: Factors,
    inputs: Sequence[tuple[int, ...]],
    path_for: Callable[[int], str],
) -> Work:
    """Of a layer that computes what `plain` does, called on inputs of these shapes.

    path_for  from the rows M of an input to the path that it takes
    """
    dense = factored = 0
    paths: dict[str, None] = {}
    for shape in inputs:
        if plain.kind in TABLES:
            rows = math.prod(shape)
            path = path_for(rows)
            whole = embedding_cost(factors, "dense", rows, rebuild=False)
            cost = embedding_cost(factors, path, rows)
        elif plain.axes:
            where = _positions(plain, factors.shape[2:], shape)
            path, adjoint = path_for(where.output), plain.is_transposed
            whole = conv_cost(factors, "dense", where, rebuild=False, transposed=adjoint)
            cost = conv_cost(factors, path, where, transposed=adjoint)
        else:
            rows = math.prod(shape[:-1])
            path = path_for(rows)
            whole = linear_cost(factors, "dense", rows, rebuild=False)
            cost = linear_cost(factors, path, rows)
        dense, factored = dense + whole.flops, factored + cost.flops
        paths[path] = None
    return Work(dense, factored, tuple(paths))


def _positions(plain: Plain, kernel: tuple[int, ...], shape: tuple[int, ...]) -> Positions:
    """Where a convolution is evaluated. What is not padded by zeros, alike on both sides, is padded
    before: then all of the larger input is met."""
    batch, size = shape[0] if len(shape) == plain.axes + 2 else 1, shape[-plain.axes :]
    padding: Any = plain.padding
    if plain.is_transposed:
        more = plain.output_padding
        return Positions.of_transposed(
            (batch, *size), kernel, plain.stride, padding, more, plain.dilation
        )
    zeros = resolve_padding(padding, kernel, plain.stride, plain.dilation)
    if plain.padding_mode != "zeros" or any(zeros.excess):
        size = tuple(n + more for n, more in zip(size, zeros.total, strict=True))
        padding = 0
    return Positions.of((batch, *size), kernel, plain.stride, padding, plain.dilation)
