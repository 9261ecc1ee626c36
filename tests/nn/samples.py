"""Random factors, torch layers to compare with, and the error that rounding may make."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.nn import FactoredConv2d, FactoredLinear
from tensorlrf.ops import PathTable

FORMATS = ("lowrank", "cp", "tucker", "tucker_partial")


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
    modes = range(len(shape) // 2) if format == "tucker_partial" else range(len(shape))
    core = [min(rank, n) if k in modes else n for k, n in enumerate(shape)]
    factors = tuple(randn(shape[k], core[k]) for k in modes)
    return TuckerFactors(randn(*core), factors, tuple(modes))


def dense_linear(factors: Factors, bias: bool = True, seed: int = 1) -> nn.Linear:
    """The torch layer that has the weight of `factors`, and a random bias."""
    m, n = factors.shape
    linear = nn.Linear(n, m, bias=bias, dtype=factors.dtype)
    _fill(linear, factors, seed)
    return linear


def dense_conv(factors: Factors, bias: bool = True, seed: int = 1, **options: object) -> nn.Conv2d:
    """The torch layer that has the kernel of `factors`, a random bias and `options`."""
    O, I, kh, kw = factors.shape
    conv = nn.Conv2d(I, O, (kh, kw), bias=bias, dtype=factors.dtype, **options)  # type: ignore[arg-type]
    _fill(conv, factors, seed)
    return conv


def _fill(layer: nn.Linear | nn.Conv2d, factors: Factors, seed: int) -> None:
    with torch.no_grad():
        layer.weight.copy_(factors.to_dense())
        if layer.bias is not None:
            draws = torch.Generator().manual_seed(seed)
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=draws, dtype=factors.dtype))


def factored(
    factors: Factors, like: nn.Linear | nn.Conv2d, path: str | None = None
) -> FactoredLinear | FactoredConv2d:
    """The factored layer like `like`, always on `path` where one is given."""
    layer: FactoredLinear | FactoredConv2d
    if isinstance(like, nn.Linear):
        layer = FactoredLinear.from_factors(factors, like)
    else:
        layer = FactoredConv2d.from_factors(factors, like)
    if path is not None:
        layer.path_table = PathTable.single(path)
    return layer


def magnitude_of(like: nn.Linear | nn.Conv2d, factors: Factors) -> nn.Linear | nn.Conv2d:
    """The same layer with every number made positive: on |x| it gives the sum of the sizes of all
    terms of an output, which is what rounding errors are relative to."""
    positive = factors.map(torch.abs)
    if isinstance(like, nn.Linear):
        layer: nn.Linear | nn.Conv2d = dense_linear(positive, like.bias is not None)
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
