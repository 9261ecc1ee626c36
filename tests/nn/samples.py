"""Torch layers that have the weight of random factors, and layers on these factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tensorlrf.factors import Factors, Grouped
from tensorlrf.nn import (
    FactoredConv1d,
    FactoredConv2d,
    FactoredConv3d,
    FactoredConvTranspose1d,
    FactoredConvTranspose2d,
    FactoredConvTranspose3d,
    FactoredLayer,
    FactoredLinear,
)
from tensorlrf.ops import PathTable
from tests.ops.samples import assert_rounding, random_grouped

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS: dict[int, tuple[type[Conv], type[FactoredLayer]]] = {
    1: (nn.Conv1d, FactoredConv1d),
    2: (nn.Conv2d, FactoredConv2d),
    3: (nn.Conv3d, FactoredConv3d),
}
TRANSPOSED: dict[int, tuple[Any, Any]] = {
    1: (nn.ConvTranspose1d, FactoredConvTranspose1d),
    2: (nn.ConvTranspose2d, FactoredConvTranspose2d),
    3: (nn.ConvTranspose3d, FactoredConvTranspose3d),
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


def transposed_conv(factors: Factors, bias: bool = True, seed: int = 1, **options: Any) -> Any:
    """The transposed convolution of torch that has the kernel of `factors`, outputs first."""
    O, I, *kernel = factors.shape
    groups = factors.groups if isinstance(factors, Grouped) else 1
    made = TRANSPOSED[len(kernel)][0](
        I * groups, O, kernel, groups=groups, bias=bias, dtype=factors.dtype, **options
    )
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.weight.copy_(inputs_first(factors.to_dense(), groups))
        if bias:
            made.bias.copy_(torch.randn(O, generator=draws, dtype=factors.dtype))
    return made


def inputs_first(kernel: Tensor, groups: int) -> Tensor:
    """A kernel (O, I / groups, ...) as (I, O / groups, ...), channel by channel."""
    O, I, *size = kernel.shape
    made = kernel.new_empty(I * groups, O // groups, *size)
    for k in range(groups):
        for o in range(O // groups):
            for i in range(I):
                made[k * I + i, o] = kernel[k * (O // groups) + o, i]
    return made


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


def assert_as_dense(y: Tensor, factors: Factors, like: nn.Linear | Conv, x: Tensor) -> None:
    """y is like(x), with the weight of the factors, to the rounding of its sums."""

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        given = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        y: Tensor = functional_call(like, given, (x,))
        return y

    assert_rounding(y, factors, x, like.bias, run)
