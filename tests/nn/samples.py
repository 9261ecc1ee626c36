"""Random factors, torch layers to compare with, and the error that rounding may make."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tensorlrf.factors import (
    BlastFactors,
    BlockLowRank,
    CPFactors,
    Factors,
    Grouped,
    KroneckerSum,
    LowRank,
    MonarchFactors,
    TRFactors,
    TTFactors,
    TTMatrix,
    TuckerFactors,
)
from tensorlrf.nn import (
    FactoredConv1d,
    FactoredConv2d,
    FactoredConv3d,
    FactoredLayer,
    FactoredLinear,
)
from tensorlrf.ops import PathTable

FORMATS = ("lowrank", "cp", "tucker", "tucker_partial", "kron", "tt")
MATRIX_FORMATS = ("tr", "blr", "tree", "monarch", "blast")
"""Of matrices alone."""
Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS: dict[int, tuple[type[Conv], type[FactoredLayer]]] = {
    1: (nn.Conv1d, FactoredConv1d),
    2: (nn.Conv2d, FactoredConv2d),
    3: (nn.Conv3d, FactoredConv3d),
}
KINDS = {
    "linear": ((5, 4), 1),
    "conv": ((5, 4, 3, 3), 1),
    "conv1d": ((5, 4, 3), 1),
    "conv3d": ((5, 4, 2, 3, 2), 1),
    "grouped": ((6, 2, 3, 3), 2),
    "grouped1d": ((6, 2, 3), 3),
}
"""A name -> the shape of its weight, and its groups."""


def random_factors(
    format: str,
    shape: tuple[int, ...],
    rank: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Factors:
    """Factors of a weight of `shape`; "tucker_partial" leaves the last modes whole (for a matrix
    the input mode, for a kernel the two spatial ones)."""
    draws = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=draws, dtype=dtype)

    if format == "lowrank":
        return LowRank(randn(shape[0], rank), randn(rank, math.prod(shape[1:])), shape)
    if format == "cp":
        return CPFactors(randn(rank), tuple(randn(n, rank) for n in shape))
    if format == "kron":
        m1, n1 = (next(d for d in (2, 3, 1) if n % d == 0) for n in shape[:2])
        b = randn(rank, shape[0] // m1, shape[1] // n1, *shape[2:])
        return KroneckerSum(randn(rank, m1, n1), b)
    if format == "tt" and len(shape) > 2:
        modes = (0, *range(len(shape) - 1, 0, -1))
        sizes = [shape[k] for k in modes]
        ends = [1, *[rank] * (len(shape) - 1), 1]
        return TTFactors(tuple(randn(ends[k], n, ends[k + 1]) for k, n in enumerate(sizes)), modes)
    if format == "tt":  # padded to even sizes
        m, n = (-(-size // 2) for size in shape)
        cores = randn(1, 2, 1, rank), randn(rank, m, 2, rank), randn(rank, 1, n, 1)
        return TTMatrix(cores, shape)
    if format in MATRIX_FORMATS:
        return _matrix_factors(format, shape, rank, randn)
    modes = range(len(shape) // 2) if format == "tucker_partial" else range(len(shape))
    core = [min(rank, n) if k in modes else n for k, n in enumerate(shape)]
    factors = tuple(randn(shape[k], core[k]) for k in modes)
    return TuckerFactors(randn(*core), factors, tuple(modes))


def _matrix_factors(
    format: str, shape: tuple[int, ...], rank: int, randn: Callable[..., Tensor]
) -> Factors:
    m, n = shape
    if format == "tr":
        cores = randn(rank, 1, rank), randn(rank, m, rank), randn(rank, n, 1), randn(1, 1, rank)
        return TRFactors(cores, shape)
    halves = -(-m // 2), -(-n // 2)
    if format == "monarch":
        return MonarchFactors(randn(2, halves[0], 2, rank), randn(2, 2, rank, halves[1]), shape)
    if format == "blast":
        parts = randn(2, halves[0], rank), randn(2, rank, halves[1]), randn(2, 2, rank)
        return BlastFactors(*parts, shape)
    contents: list[tuple[int, int, Tensor | tuple[Tensor, Tensor]]] = []
    if format == "tree":
        contents.append((0, 0, randn(halves[0], n)))
    for row in (0, halves[0]):
        for column in (0, halves[1]):
            if format == "tree" and row == 0:
                continue
            rows = min(halves[0], m - row)
            columns = min(halves[1], n - column)
            contents.append((row, column, (randn(rows, 1), randn(1, columns))))
    return BlockLowRank.pack(contents, shape)


def random_grouped(
    format: str,
    shape: tuple[int, ...],
    groups: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Factors:
    """Factors of a weight of `shape`, of each of its groups apart where there are more than one."""
    if groups == 1:
        return random_factors(format, shape, seed=seed, dtype=dtype)
    one = (shape[0] // groups, *shape[1:])
    draws = [random_factors(format, one, seed=100 * k + seed, dtype=dtype) for k in range(groups)]
    return Grouped.stack(draws)


def of_kind(
    format: str, kind: str, seed: int = 0, dtype: torch.dtype = torch.float64, **options: object
) -> tuple[Factors, nn.Linear | Conv]:
    """Factors for a layer of one of `KINDS`, and the torch layer; a convolution has padding 1."""
    shape, groups = KINDS[kind]
    f = random_grouped(format, shape, groups, seed, dtype)
    if kind == "linear":
        return f, dense_linear(f)
    return f, dense_conv(f, **{"padding": 1, **options})


def input_of(kind: str, dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    """A batch of inputs for a layer of one of `KINDS`."""
    shape, groups = KINDS[kind]
    draws = torch.Generator().manual_seed(3)
    size = (batch, groups * shape[1], *(5,) * (len(shape) - 2))
    return torch.randn(size, generator=draws, dtype=torch.float64).to(dtype)


def dense_linear(factors: Factors, bias: bool = True, seed: int = 1) -> nn.Linear:
    """The torch layer that has the weight of `factors`, and a random bias."""
    m, n = factors.shape
    linear = nn.Linear(n, m, bias=bias, dtype=factors.dtype)
    _fill(linear, factors, seed)
    return linear


def dense_conv(factors: Factors, bias: bool = True, seed: int = 1, **options: object) -> Conv:
    """The torch layer that has the kernel of `factors`, a random bias and `options`."""
    O, I, *kernel = factors.shape
    groups = factors.groups if isinstance(factors, Grouped) else 1
    make, _ = CONVOLUTIONS[len(kernel)]
    conv = make(I * groups, O, kernel, groups=groups, bias=bias, dtype=factors.dtype, **options)  # type: ignore[arg-type]
    _fill(conv, factors, seed)
    return conv


def _fill(layer: nn.Linear | Conv, factors: Factors, seed: int) -> None:
    with torch.no_grad():
        layer.weight.copy_(factors.to_dense())
        if layer.bias is not None:
            draws = torch.Generator().manual_seed(seed)
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=draws, dtype=factors.dtype))


def factored(factors: Factors, like: nn.Linear | Conv, path: str | None = None) -> FactoredLayer:
    """The factored layer like `like`, always on `path` where one is given."""
    kinds = dict(CONVOLUTIONS.values())
    kind = FactoredLinear if isinstance(like, nn.Linear) else kinds[type(like)]
    layer: FactoredLayer = kind.from_factors(factors, like)
    if path is not None:
        layer.path_table = PathTable.single(path)
    return layer


def magnitude_of(like: nn.Linear | Conv, factors: Factors) -> nn.Linear | Conv:
    """The same layer with every number made positive: on |x| it gives the sum of the sizes of all
    terms of an output, which is what rounding errors are relative to."""
    positive = factors.map(torch.abs)
    if isinstance(like, nn.Linear):
        layer: nn.Linear | Conv = dense_linear(positive, like.bias is not None)
    else:
        layer = dense_conv(
            positive,
            like.bias is not None,
            stride=like.stride,
            padding=like.padding,
            dilation=like.dilation,
            padding_mode=like.padding_mode,
        )
    if like.bias is not None and layer.bias is not None:
        with torch.no_grad():
            layer.bias.copy_(like.bias.abs())
    return layer


def assert_within_rounding(
    got: Tensor, want: Tensor, magnitude: Tensor, factors: Factors, rows: int = 1
) -> None:
    """|got - want| <= 2 n eps sum |terms|, elementwise: both were computed by sums whose lengths
    come to n at most (Higham 2002, section 3.1), over the modes, the ranks and for gradients the
    rows."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    ranks = (factors.rank,) if isinstance(factors.rank, int) else factors.rank
    lengths = sum(math.prod(factors.shape) // n for n in factors.shape) + sum(ranks) + rows + 8
    bound = 2 * lengths * torch.finfo(got.dtype).eps * magnitude.abs()
    excess = (got - want).abs() - bound
    assert not torch.isnan(got).any()
    assert (excess <= 0).all(), f"beyond rounding by {float(excess.max()):.3g}"
