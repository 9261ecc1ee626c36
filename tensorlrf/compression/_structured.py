"""How a layer is to be given a structured format, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.compression._methods import METHODS, Method
from tensorlrf.compression._ranks import Ladder, LayerRank, matrix_ladder
from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition.blocks._blast import default_blocks
from tensorlrf.decomposition.blocks._blr_spectra import Place
from tensorlrf.decomposition.blocks._hierarchical import RULES
from tensorlrf.decomposition.blocks._hierarchical import _rule as rule_of
from tensorlrf.decomposition.blocks._hierarchical_tree import least_params
from tensorlrf.decomposition.blocks._monarch import near_root
from tensorlrf.decomposition.kron._shapes import has_proper_pairs, proper_pairs, sides
from tensorlrf.decomposition.linalg._rangefinder import check_sketch
from tensorlrf.decomposition.linalg._truncation import METHODS as SVD_METHODS
from tensorlrf.decomposition.methods import registered
from tensorlrf.decomposition.second_moments import SecondMoments
from tensorlrf.decomposition.sizes import matrix_sizes, row_digits
from tensorlrf.decomposition.trains._tr import INITS
from tensorlrf.decomposition.trains._tr_start import ring_ranks
from tensorlrf.decomposition.trains._tt_ranks import train_params, train_ranks
from tensorlrf.errors import ArgumentError, TensorlrfError, unknown
from tensorlrf.factors import Factors
from tensorlrf.ops import train_order

State = int | torch.Generator | None


@dataclass(frozen=True, kw_only=True)
class Structured(Method):
    """What the structured formats share. Their parameters are known when they are fitted: a plan
    gives a layer its share of them, and the fit finds sizes and ranks within it."""

    by_share: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        own: Any = self
        check_iteration(own.n_iter_max, own.tol)

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        if groups > 1:
            return f"{self.word} serves no convolution with groups"
        if len(shape) > 2 and "conv" not in registered(self.word).on:
            return f"{self.word} serves linear layers only"
        return ""

    def for_shape(self, shape: tuple[int, ...]) -> Method:
        return self

    def planned_params(self, rank: LayerRank, shape: tuple[int, ...], groups: int) -> int | None:
        return None

    def least_params(self, shape: tuple[int, ...]) -> int:
        """Of the smallest form that a weight of this shape can have."""
        raise NotImplementedError

    def _ladder(self, shape: tuple[int, ...]) -> Ladder:
        """A rung is a number of parameters, as of a low-rank matrix, from the least on."""
        whole, least = matrix_ladder(shape[0], math.prod(shape[1:])), self.least_params(shape)
        return Ladder(whole.dense, tuple(rung for rung in whole.rungs if rung.params >= least))

    def decompose(self, weight: Tensor, gram: SecondMoments | None, random_state: State) -> Factors:
        """Factors of a weight, in the metric of its inputs where they are known."""
        options = {**self.options(), "gram": gram}
        method = registered(self.word)
        if method.draws:
            options["random_state"] = random_state
        return method.for_layers(weight, self.rank, error=self.error, **options)


@dataclass(frozen=True, kw_only=True)
class Kron(Structured):
    """A sum of Kronecker products; the options are those of `tensorlrf.kron`.

    shapes   ((m1, n1), (m2, n2)), or None: searched for each layer, by its error at the share
    """

    shapes: tuple[tuple[int, int], tuple[int, int]] | None = None
    method: str = "auto"
    n_iter_max: int | None = None
    tol: float | None = None
    n_power_iter: int = 8
    n_oversample: int = 10

    word: ClassVar[str] = "kron"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shapes is not None:
            pairs = _tuples(self.shapes)
            if not (isinstance(pairs, tuple) and len(pairs) == 2 and all(map(_is_pair, pairs))):
                raise ArgumentError(
                    f"shapes={self.shapes!r} must be ((m1, n1), (m2, n2)), such as "
                    "((64, 64), (64, 64))"
                )
            object.__setattr__(self, "shapes", pairs)
        if self.method not in SVD_METHODS:
            raise unknown("method", self.method, SVD_METHODS)
        check_sketch(self.n_power_iter, self.n_oversample)

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        m, n = shape[:2]
        if self.shapes is None and not has_proper_pairs(m, n):
            return f"{m} x {n} channels have no divisors to share out to two factors"
        if self.shapes is not None:
            (m1, n1), (m2, n2) = self.shapes
            if (m1 * m2, n1 * n2) != (m, n):
                return f"shapes={self.shapes} make a weight {m1 * m2} x {n1 * n2}, not {m} x {n}"
        return super().why_not(shape, groups)

    def least_params(self, shape: tuple[int, ...]) -> int:
        pairs = proper_pairs(*shape[:2]) if self.shapes is None else [self.shapes]
        return min(sum(sides(pair, math.prod(shape[2:]))) for pair in pairs)


@dataclass(frozen=True, kw_only=True)
class TT(Structured):
    """A TT-matrix of a linear weight; of a convolution the train of its modes, which runs as a
    convolution along each axis between two pointwise ones. The options are those of
    `tensorlrf.tt_matrix`, for linear layers; n_iter_max and tol serve fits to inputs.

    order   number of cores; None: by the size
    """

    row_sizes: tuple[int, ...] | None = None
    column_sizes: tuple[int, ...] | None = None
    order: int | None = None
    n_iter_max: int | None = None
    tol: float | None = None

    word: ClassVar[str] = "tt"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("row_sizes", "column_sizes"):
            sizes = _tuples(getattr(self, name))
            if sizes is not None and not (isinstance(sizes, tuple) and _are_positive(sizes)):
                raise ArgumentError(f"{name}={sizes!r} must be sizes of digits, such as (8, 8, 12)")
            object.__setattr__(self, name, sizes)
        _check_count("order", self.order, 2)

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        digits = self.row_sizes or self.column_sizes or self.order
        if len(shape) > 2 and digits:
            return "row_sizes=, column_sizes= and order= are for linear layers"
        if len(shape) == 2:
            try:
                self._digits(shape)
            except TensorlrfError as error:
                return str(error)
        return super().why_not(shape, groups)

    def least_params(self, shape: tuple[int, ...]) -> int:
        if len(shape) > 2:
            return sum(shape)
        rows, columns = self._digits(shape)
        return sum(a * b for a, b in zip(rows, columns, strict=True))

    def planned_params(self, rank: LayerRank, shape: tuple[int, ...], groups: int) -> int | None:
        if len(shape) > 2:
            sizes = [shape[k] for k in train_order(len(shape))]
        else:
            sizes = [a * b for a, b in zip(*self._digits(shape), strict=True)]
        return train_params(sizes, train_ranks(rank, sizes, math.prod(shape)))

    def _digits(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return matrix_sizes(shape[0], shape[1], self.row_sizes, self.column_sizes, self.order)


@dataclass(frozen=True, kw_only=True)
class TR(Structured):
    """A tensor ring of the digits of rows and columns; the options are those of `tensorlrf.tr`.

    sizes   ((m_0, ...), (n_0, ...)); None: two digits each
    """

    sizes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    init: str = "svd"
    n_iter_max: int | None = None
    tol: float | None = None

    word: ClassVar[str] = "tr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sizes is not None:
            sizes = _tuples(self.sizes)
            two = isinstance(sizes, tuple) and len(sizes) == 2
            if not two or not all(isinstance(s, tuple) and _are_positive(s) for s in sizes):
                raise ArgumentError(
                    f"sizes={self.sizes!r} must be the digits of rows and columns, such as "
                    "((16, 24), (16, 24))"
                )
            object.__setattr__(self, "sizes", sizes)
        if self.init not in INITS:
            raise unknown("init", self.init, INITS)

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        if self.sizes is not None and len(shape) == 2:
            products = tuple(math.prod(digits) for digits in self.sizes)
            if products != shape:
                return f"sizes={self.sizes} make a weight {products}, not {shape}"
        return super().why_not(shape, groups)

    def planned_params(self, rank: LayerRank, shape: tuple[int, ...], groups: int) -> int | None:
        sizes = [n for digits in self.sizes or map(row_digits, shape) for n in digits]
        ranks = ring_ranks(rank, sizes, math.prod(shape))
        return sum(n * r * s for n, r, s in zip(sizes, ranks, (*ranks[1:], ranks[0]), strict=True))

    def least_params(self, shape: tuple[int, ...]) -> int:
        return sum(sum(digits) for digits in self.sizes or map(row_digits, shape))


@dataclass(frozen=True, kw_only=True)
class BLR(Structured):
    """Blocks of low rank; the options are those of `tensorlrf.blr`.

    block   rows and columns of a block; None: searched for each layer
    """

    block: int | tuple[int, int] | None = None
    dense_blocks: bool = True
    n_iter_max: int | None = None
    tol: float | None = None

    word: ClassVar[str] = "blr"

    def __post_init__(self) -> None:
        super().__post_init__()
        _set_pair(self, "block")
        if not isinstance(self.dense_blocks, bool):
            raise ArgumentError(f"dense_blocks={self.dense_blocks!r} must be True or False")

    def least_params(self, shape: tuple[int, ...]) -> int:
        # One block of rank one, of the grid or of the whole.
        return 1 if self.block is not None else sum(shape)


@dataclass(frozen=True, kw_only=True)
class Hierarchical(Structured):
    """A tree of blocks; the options are those of `tensorlrf.hierarchical`."""

    leaf: int = 64
    admissible: str = "weak"
    n_iter_max: int | None = None
    tol: float | None = None

    word: ClassVar[str] = "hierarchical"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count("leaf", self.leaf, 1, none=False)
        if self.admissible not in RULES:
            raise unknown("admissible", self.admissible, RULES)

    def least_params(self, shape: tuple[int, ...]) -> int:
        whole = Place(0, 0, shape[0], shape[1])
        fixed = least_params(whole, self.leaf, rule_of(self.admissible), 0, 0, 0)
        # And one block of rank one beside them, if there are any.
        return fixed + 2


@dataclass(frozen=True, kw_only=True)
class Monarch(Structured):
    """A Monarch matrix; the options are those of `tensorlrf.monarch`."""

    blocks: int | tuple[int, int] | None = None
    n_iter_max: int | None = None
    tol: float | None = None

    word: ClassVar[str] = "monarch"

    def __post_init__(self) -> None:
        super().__post_init__()
        _set_pair(self, "blocks")

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        return _too_many(self.blocks, shape) or super().why_not(shape, groups)

    def least_params(self, shape: tuple[int, ...]) -> int:
        Q, K = _both(self.blocks) or (near_root(shape[0]), near_root(shape[1]))
        return Q * K * (-(-shape[0] // Q) - (-shape[1] // K))


@dataclass(frozen=True, kw_only=True)
class Blast(Structured):
    """A grid of blocks with shared bases; the options are those of `tensorlrf.blast`."""

    blocks: int | tuple[int, int] | None = None
    n_iter_max: int | None = None
    tol: float | None = None

    word: ClassVar[str] = "blast"

    def __post_init__(self) -> None:
        super().__post_init__()
        _set_pair(self, "blocks")

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        return _too_many(self.blocks, shape) or super().why_not(shape, groups)

    def least_params(self, shape: tuple[int, ...]) -> int:
        m, n = shape
        p, q = _both(self.blocks) or default_blocks(m, n)
        return p * -(-m // p) + q * -(-n // q) + p * q


STRUCTURED: tuple[type[Structured], ...] = (Kron, TT, TR, BLR, Hierarchical, Monarch, Blast)

for _kind in STRUCTURED:
    if _kind.word in METHODS:
        raise ArgumentError(f"method {_kind.word!r} is registered already")
    METHODS[_kind.word] = _kind


def _tuples(value: Any) -> Any:
    """Lists, as JSON has them, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _are_positive(values: tuple[Any, ...]) -> bool:
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in values)
    return bool(values) and whole and min(values) > 0


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _are_positive(value)


def _set_pair(method: Structured, name: str) -> None:
    """A positive int, two of them, or None."""
    value = _tuples(getattr(method, name))
    alone = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if value is not None and not alone and not _is_pair(value):
        raise ArgumentError(f"{name}={value!r} must be a positive int, two of them, or None")
    object.__setattr__(method, name, value)


def _both(value: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (value, value) if isinstance(value, int) else value


def _too_many(blocks: int | tuple[int, int] | None, shape: tuple[int, ...]) -> str:
    """Why a matrix of this shape cannot have so many blocks; empty where it can."""
    both = _both(blocks)
    if both is not None and len(shape) == 2 and (both[0] > shape[0] or both[1] > shape[1]):
        return f"blocks={blocks} are more than its {shape[0]} rows or {shape[1]} columns"
    return ""


def _check_count(name: str, value: Any, least: int, *, none: bool = True) -> None:
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"{name}={value!r} must be an int of at least {least}")
