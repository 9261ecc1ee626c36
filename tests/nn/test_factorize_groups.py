"""factorize on convolutions of any dimension and with groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import decomposition
from tensorlrf.errors import ArgumentError, RankError, ShapeError, UnsupportedError
from tensorlrf.factors import CPFactors, Grouped, LowRank, TuckerFactors
from tensorlrf.nn import (
    FactoredConv1d,
    FactoredConv2d,
    FactoredConv3d,
    FactoredLayer,
    factored_type,
    factorize,
)
from tensorlrf.nn._groups import decompose_groups

EPS = torch.finfo(torch.float64).eps
TORCH: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
OURS = {1: FactoredConv1d, 2: FactoredConv2d, 3: FactoredConv3d}
FORMAT = {"svd": LowRank, "cp": CPFactors, "tucker": TuckerFactors}


def conv(axes: int, groups: int = 1, **options: Any) -> Any:
    draws = torch.Generator().manual_seed(axes)
    layer = TORCH[axes](
        4 * groups, 5 * groups, (3, 2, 2)[:axes], groups=groups, dtype=torch.float64, **options
    )
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws))
    return layer.requires_grad_(False)


def blocks(layer: Any) -> tuple[Tensor, ...]:
    return layer.weight.detach().chunk(layer.groups)


def brief(method: str) -> dict[str, Any]:
    """Options that make it repeat and keep it short: what is tested is not how well it fits."""
    return {"random_state": 0, "n_iter_max": 3} if method == "cp" else {}


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("method", ["svd", "cp", "tucker"])
def test_every_option_is_kept_and_the_layer_is_unchanged(
    method: str, axes: int, groups: int
) -> None:
    options = {"stride": (2, 1, 1)[:axes], "padding": (1, 2, 1)[:axes], "padding_mode": "circular"}
    layer = conv(axes, groups, **options).eval()
    before = layer.weight.clone()
    small = factorize(layer, method, 2, **brief(method))
    assert type(small) is OURS[axes] is factored_type(layer)
    for name in ("stride", "padding", "dilation", "padding_mode", "groups", "training"):
        assert getattr(small, name) == getattr(layer, name)
    f = small.factors
    assert type(f.group(0) if isinstance(f, Grouped) else f) is FORMAT[method]
    assert isinstance(f, Grouped) == (groups > 1)
    assert f.shape == layer.weight.shape
    assert f.rank == ((2, 2) if method == "tucker" else 2)  # Tucker-2: the channels
    assert torch.equal(layer.weight, before)
    assert small(torch.randn(2, 4 * groups, *(6,) * axes, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_at_full_rank_the_layer_computes_the_same(method: str, axes: int) -> None:
    layer = conv(axes, 2)
    rank = 5 if method == "svd" else (5, 4)
    small = factorize(layer, method, rank)
    x = torch.randn(2, 8, *(4,) * axes, dtype=torch.float64)
    size = float(layer.weight.norm() * x.norm())
    assert float((small(x) - layer(x)).norm()) <= 64 * EPS * size


@pytest.mark.parametrize("method", ["svd", "cp", "tucker"])
def test_each_group_is_decomposed_for_itself(method: str) -> None:
    layer = conv(2, 3)
    options = {"modes": (0, 1)} if method == "tucker" else brief(method)
    small = factorize(layer, method, 2, **brief(method))
    for k, block in enumerate(blocks(layer)):
        want = getattr(decomposition, method)(block, 2, **options)
        got = small.factors.group(k)  # type: ignore[attr-defined]
        assert got.meta() == want.meta()
        for name, t in got.tensors().items():
            assert torch.equal(t, want.tensors()[name])


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize("method", ["svd", "cp", "tucker"])
def test_a_share_of_each_group_is_one_of_the_whole(method: str, share: float) -> None:
    layer = conv(2, 3)
    f = factorize(layer, method, share, **brief(method)).factors
    assert f.n_params <= share * layer.weight.numel()
    assert f.n_params == 3 * f.group(0).n_params  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_for_an_error_all_get_the_largest_rank_that_a_group_needs(method: str) -> None:
    layer = conv(1, 3)
    with torch.no_grad():  # one group of rank one, one of rank two, one of full rank
        for k, r in enumerate((1, 2)):
            layer.weight[5 * k : 5 * k + 5] = decomposition.tucker(
                blocks(layer)[k], (r, r), modes=(0, 1)
            ).to_dense()
    one = getattr(decomposition, method)
    options = {"modes": (0, 1)} if method == "tucker" else {}
    needed = [one(block, error=0.2, **options).rank for block in blocks(layer)]
    f = factorize(layer, method, error=0.2).factors
    assert isinstance(f, Grouped)
    most = max(needed) if method == "svd" else tuple(map(max, zip(*needed, strict=True)))
    assert len(set(needed)) > 1
    assert f.rank == most
    for k, block in enumerate(blocks(layer)):
        assert f.group(k).rel_error(block) <= 0.2


def test_modes_may_be_given() -> None:
    small = factorize(conv(3, 2), "tucker", (3, 2, 2, 1, 1), modes=(0, 1, 2, 3, 4))
    assert small.factors.rank == (3, 2, 2, 1, 1)
    assert small.factors.n_params == 2 * (12 + 5 * 3 + 4 * 2 + 3 * 2 + 2 + 2)


def test_a_gram_for_each_group_makes_the_outputs_nearer() -> None:
    layer = nn.Conv1d(8, 10, 1, groups=2, bias=False, dtype=torch.float64)
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(10, 4, 1, generator=draws))
    scales = torch.tensor([9.0, 3, 1, 0.1, 0.1, 1, 3, 9], dtype=torch.float64)
    x = torch.randn(100, 8, 1, generator=draws, dtype=torch.float64) * scales[:, None]
    gram = torch.stack([part[..., 0].T @ part[..., 0] / 100 for part in x.chunk(2, dim=1)])
    aware, plain = factorize(layer, "svd", 2, gram=gram), factorize(layer, "svd", 2)
    want = layer(x)
    assert (aware(x) - want).norm() < (plain(x) - want).norm()
    with pytest.raises(ShapeError, match=r"gram has shape \(4, 4\); .*\(2, n, n\)"):
        factorize(layer, "svd", 2, gram=gram[0])
    with pytest.raises(ArgumentError, match="gram is a str"):
        factorize(layer, "svd", 2, gram="gram")


def test_what_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"depthwise convolution \(groups=4\).*leave it"):
        factorize(nn.Conv2d(4, 8, 3, groups=4), "svd", 2)
    with pytest.raises(RankError, match="rank=6"):
        factorize(conv(2, 2), "svd", 6)
    with pytest.raises(ArgumentError, match="give rank or error"):
        factorize(conv(1, 2), "svd")
    with pytest.raises(UnsupportedError, match="ConvTranspose3d; transposed convolution"):
        factorize(nn.ConvTranspose3d(4, 6, 3), "svd", 2)
    with pytest.raises(ShapeError, match="must be a multiple of groups=2"):
        decompose_groups(decomposition.svd, torch.zeros(3, 4), 2, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_flags_are_those_of_the_layer(dtype: torch.dtype) -> None:
    layer = conv(1, 2).to(dtype).train().requires_grad_(True)
    small: FactoredLayer = factorize(layer, "svd", 2)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert all(p.requires_grad for p in small.parameters())
    assert small.training
