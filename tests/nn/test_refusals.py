"""What a factored layer cannot stand in for is refused by name, with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.nn import FactoredConv2d, FactoredLinear, factorize
from tests.nn.samples import random_factors


class OwnLinear(nn.Linear):
    pass


def with_forward_replaced() -> nn.Linear:
    layer = nn.Linear(4, 5)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


def with_hook() -> nn.Linear:
    layer = nn.Linear(4, 5)
    layer.register_forward_hook(lambda *args: None)
    return layer


def pruned() -> nn.Linear:
    layer: nn.Linear = prune.random_unstructured(nn.Linear(4, 5), "weight", 0.5)
    return layer


LINEAR: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: OwnLinear(4, 5),
        "is a OwnLinear; subclass of Linear; only the exact type .*register_plain",
    ),
    (
        lambda: nn.MultiheadAttention(4, 2).out_proj,
        "NonDynamicallyQuantizableLinear; its weight is read",
    ),
    (lambda: nn.LazyLinear(5), "is a LazyLinear; lazy: run the model once"),
    (lambda: nn.Bilinear(4, 4, 5), "is a Bilinear; pass a torch.nn.Linear"),
    (lambda: parametrizations.weight_norm(nn.Linear(4, 5)), "remove_parametrizations"),
    (pruned, "a Linear; its weight is computed by a hook .*prune.*; remove it first"),
    (with_hook, r"a Linear; has hooks \(forward_hooks\).* register them on the new"),
    (with_forward_replaced, r"its forward is replaced on the instance; restore it first \(del"),
    (lambda: FactoredLinear(random_factors("lowrank", (5, 4))), "runs on factors already"),
]
CONV: list[tuple[Callable[[], Any], str]] = [
    (lambda: nn.Conv2d(4, 8, 3, groups=4), r"depthwise convolution \(groups=4\).* leave it dense"),
    (
        lambda: nn.ConvTranspose2d(4, 6, 3),
        "is a ConvTranspose2d; transposed convolution; leave it dense",
    ),
    (lambda: nn.LazyConv2d(6, 3), "is a LazyConv2d; lazy"),
    (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)), "is a Conv2d; parametrised"),
]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize(("make", "message"), LINEAR)
def test_other_layers_than_linear(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        FactoredLinear.from_factors(random_factors("lowrank", (5, 4)), make())
    with pytest.raises(UnsupportedError, match=message):
        factorize(make(), "svd", 2)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize(("make", "message"), CONV)
def test_other_layers_than_conv2d(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        FactoredConv2d.from_factors(random_factors("lowrank", (6, 4, 3, 3)), make())
    with pytest.raises(UnsupportedError, match=message):
        factorize(make(), "svd", 2)


def test_what_is_no_layer() -> None:
    with pytest.raises(ArgumentError, match=r"like is a Tensor; pass a torch\.nn\.Linear"):
        FactoredLinear.from_factors(random_factors("lowrank", (5, 4)), torch.zeros(5, 4))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="layer is a Tensor"):
        factorize(torch.zeros(5, 4), "svd", 2)  # type: ignore[call-overload]


def test_factors_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"shape \(4, 5\), but like.weight has shape \(5, 4\)"):
        FactoredLinear.from_factors(random_factors("cp", (4, 5)), nn.Linear(4, 5))
    with pytest.raises(ShapeError, match=r"\(6, 4, 3, 3\)"):
        FactoredConv2d.from_factors(random_factors("cp", (6, 4, 3, 1)), nn.Conv2d(4, 6, 3))
    with pytest.raises(ShapeError, match="weight of a linear layer is"):
        FactoredLinear(random_factors("cp", (4, 5, 2)))
    with pytest.raises(ShapeError, match="kernel of a convolution is"):
        FactoredConv2d(random_factors("cp", (4, 5)))


def test_what_is_no_factors_object() -> None:
    with pytest.raises(ArgumentError, match="factors is a Parameter; pass a factors object"):
        FactoredLinear.from_factors(nn.Linear(4, 5).weight, nn.Linear(4, 5))  # type: ignore[arg-type]
