"""factorize: decompose the weight, of each group apart, and keep everything else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import decomposition
from tensorlrf.errors import ArgumentError, RankError, ShapeError, UnsupportedError
from tensorlrf.factors import CPFactors, Factors, Grouped, LowRank, TuckerFactors
from tensorlrf.nn import FactoredLayer, FactoredLinear, factored_type, factorize
from tensorlrf.nn._groups import decompose_groups
from tests.draws import generator, seeded
from tests.metrics import second_moments

EPS = torch.finfo(torch.float64).eps
TORCH: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FORMAT: dict[str, type[Factors]] = {"svd": LowRank, "cp": CPFactors, "tucker": TuckerFactors}


def conv(axes: int = 2, groups: int = 1, **options: Any) -> Any:
    layer = TORCH[axes](
        4 * groups, 5 * groups, (3, 2, 2)[:axes], groups=groups, dtype=torch.float64, **options
    )
    with torch.no_grad():
        layer.weight.copy_(seeded(*layer.weight.shape, seed=axes))
    return layer.requires_grad_(False)


def blocks(layer: Any) -> tuple[Tensor, ...]:
    return layer.weight.detach().chunk(layer.groups)  # type: ignore[no-any-return]


def brief(method: str) -> dict[str, Any]:
    """Options that make it repeat and keep it short: what is tested is not how well it fits."""
    return {"random_state": 0, "n_iter_max": 3} if method == "cp" else {}


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("method", FORMAT)
def test_every_option_is_kept_and_the_layer_is_unchanged(
    method: str, axes: int, groups: int
) -> None:
    options = {"stride": (2, 1, 1), "padding": (1, 2, 1), "dilation": (1, 2, 1)}
    given = {name: value[:axes] for name, value in options.items()}
    layer = conv(axes, groups, padding_mode="circular", **given).eval()
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    small = factorize(layer, method, 2, **brief(method))
    assert type(small) is factored_type(layer)
    for name in ("stride", "padding", "dilation", "padding_mode", "groups", "training"):
        assert getattr(small, name) == getattr(layer, name)
    assert torch.equal(small.bias, layer.bias)
    assert not any(p.requires_grad for p in small.parameters())
    f = small.factors
    assert type(f.group(0) if isinstance(f, Grouped) else f) is FORMAT[method]
    assert isinstance(f, Grouped) == (groups > 1)
    assert (f.shape, f.dtype) == (layer.weight.shape, layer.weight.dtype)
    assert f.rank == ((2, 2) if method == "tucker" else 2)  # Tucker-2: the channels
    assert type(layer) is TORCH[axes]
    for name, t in layer.state_dict().items():
        assert torch.equal(t, state[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_flags_are_those_of_the_layer(dtype: torch.dtype) -> None:
    for layer in (nn.Linear(6, 8), conv(1, 2)):
        small: FactoredLayer = factorize(layer.to(dtype).requires_grad_(), "svd", 2)
        assert {p.dtype for p in small.parameters()} == {dtype}
        assert all(p.requires_grad for p in small.parameters())
        assert small.training


@pytest.mark.parametrize("method", FORMAT)
def test_at_full_rank_a_linear_layer_computes_the_same(method: str) -> None:
    linear = nn.Linear(6, 8, dtype=torch.float64)
    layer = factorize(linear, method, 6, **({"random_state": 0} if method == "cp" else {}))
    assert isinstance(layer, FactoredLinear)
    assert isinstance(layer.factors, FORMAT[method])
    x = torch.randn(5, 6, dtype=torch.float64)
    # CP is iterative: it ends at its tolerance, the others at rounding.
    size = float(linear.weight.detach().norm() * x.norm())
    tolerance = 1e-6 if method == "cp" else 64 * EPS
    assert float((layer(x) - linear(x)).detach().norm()) <= tolerance * size


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_at_full_rank_a_convolution_computes_the_same(method: str, axes: int) -> None:
    layer = conv(axes, 2)
    small = factorize(layer, method, 5 if method == "svd" else (5, 4))
    x = torch.randn(2, 8, *(4,) * axes, dtype=torch.float64)
    size = float(layer.weight.norm() * x.norm())
    assert float((small(x) - layer(x)).norm()) <= 64 * EPS * size


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("method", FORMAT)
def test_the_two_steps_in_one_for_each_group(method: str, groups: int) -> None:
    layer = conv(2, groups)
    options = {"modes": (0, 1)} if method == "tucker" else brief(method)
    f: Any = factorize(layer, method, 2, **brief(method)).factors
    for k, block in enumerate(blocks(layer)):
        want = getattr(decomposition, method)(block, 2, **options)
        got = f.group(k) if groups > 1 else f
        assert got.meta() == want.meta()
        for name, t in got.tensors().items():
            assert torch.equal(t, want.tensors()[name])


def test_tucker_of_a_convolution_is_tucker_2_unless_told() -> None:
    assert factorize(conv(), "tucker", (4, 3)).factors.meta()["modes"] == [0, 1]
    full = factorize(conv(), "tucker", (4, 3, 2, 2), modes=(0, 1, 2, 3))
    assert full.factors.meta()["modes"] == [0, 1, 2, 3]
    assert full.factors.rank == (4, 3, 2, 2)
    small = factorize(conv(3, 2), "tucker", (3, 2, 2, 1, 1), modes=(0, 1, 2, 3, 4))
    assert small.factors.rank == (3, 2, 2, 1, 1)
    assert small.factors.n_params == 2 * (12 + 5 * 3 + 4 * 2 + 3 * 2 + 2 + 2)


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize("method", FORMAT)
def test_a_share_of_each_group_is_one_of_the_whole(method: str, share: float) -> None:
    layer = conv(2, 3)
    f: Any = factorize(layer, method, share, **brief(method)).factors
    assert f.n_params <= share * layer.weight.numel()
    assert f.n_params == 3 * f.group(0).n_params


@pytest.mark.parametrize(
    ("method", "format"),
    [
        ("kron", "kron"), ("tt", "tt_matrix"), ("tr", "tr"), ("blr", "blr"), ("hodlr", "blr"),
        ("hierarchical", "blr"), ("monarch", "monarch"), ("blast", "blast"),
    ],
)  # fmt: skip
def test_each_structured_format_within_its_share(method: str, format: str) -> None:
    options = {"leaf": 6} if method in ("hodlr", "hierarchical") else {}
    layers: list[Any] = [nn.Linear(24, 36)]
    if method in ("kron", "tt"):
        layers.append(nn.Conv2d(8, 12, 3, stride=(1, 2), padding=1))
    for layer in layers:
        f = factorize(layer, method, 0.5, **options).factors
        assert f.format == (format if isinstance(layer, nn.Linear) else method)
        assert f.n_params <= 0.5 * layer.weight.numel()
        assert f.rel_error(layer.weight.detach()) < 1


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


@pytest.mark.parametrize("method", ["svd", "tucker"])
@pytest.mark.parametrize("groups", [1, 2])
def test_gram_makes_the_outputs_nearer(method: str, groups: int) -> None:
    kind = nn.Linear(8, 10, bias=False) if groups == 1 else nn.Conv1d(8, 10, 1, 1, 0, 1, 2, False)
    layer: Any = kind.double()
    draws = generator(11)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws))
    scales = torch.tensor([9.0, 3, 1, 0.1, 0.1, 1, 3, 9], dtype=torch.float64)
    x = torch.randn(200, 8, dtype=torch.float64, generator=draws) * scales
    gram = torch.stack([second_moments(part.T) for part in x.chunk(groups, dim=1)])
    if groups == 1:
        gram = gram[0]
    else:
        x = x[..., None]
    aware, plain = factorize(layer, method, 2, gram=gram), factorize(layer, method, 2)
    want = layer(x)
    off, base = ((f(x) - want).chunk(groups, dim=1) for f in (aware, plain))
    for one, other in zip(off, base, strict=True):  # each by moments of its own
        assert one.norm() < other.norm()


def test_moments_that_are_not_those_of_the_groups() -> None:
    layer = conv(1, 2)
    with pytest.raises(ShapeError, match=r"gram has shape \(12, 12\); .*\(2, n, n\)"):
        factorize(layer, "svd", 2, gram=torch.eye(12))
    with pytest.raises(ArgumentError, match="gram is a str"):
        factorize(layer, "svd", 2, gram="gram")


def test_an_option_of_the_decomposition_may_have_our_words() -> None:
    linear = nn.Linear(6, 8)
    layer = factorize(linear, "svd", 2, solver="randomized", random_state=0)
    again = factorize(linear, "svd", 2, solver="randomized", random_state=0)
    assert torch.equal(layer.weight, again.weight)


def test_unknown_words_are_refused_with_the_known_ones() -> None:
    linear = nn.Linear(6, 8)
    with pytest.raises(ArgumentError, match="method='svdd' is unknown; choose one of svd, cp, tuc"):
        factorize(linear, "svdd", 2)
    with pytest.raises(ArgumentError, match=r"n_iter= is no option of method 'cp'.*n_iter_max"):
        factorize(linear, "cp", 2, n_iter=3)
    with pytest.raises(ArgumentError, match="batch_dims= is no option of method 'svd'"):
        factorize(linear, "svd", 2, batch_dims=1)
    with pytest.raises(ArgumentError, match="differentiable= is no option of method 'svd'"):
        factorize(linear, "svd", 2, differentiable=True)


def test_formats_say_what_they_do_not_serve() -> None:
    conv = nn.Conv2d(8, 12, 3)
    with pytest.raises(UnsupportedError, match="ring"):
        factorize(conv, "tr", 2)
    with pytest.raises(UnsupportedError, match=r"svd|kron"):
        factorize(conv, "blr", 2)
    with pytest.raises(ArgumentError, match="order=3 is for linear layers"):
        factorize(conv, "tt", 2, order=3)


def test_what_the_decomposition_refuses() -> None:
    linear = nn.Linear(6, 8)
    for layer, rank in ((linear, 7), (conv(2, 2), 6)):
        with pytest.raises(RankError, match=f"rank={rank}"):
            factorize(layer, "svd", rank)
        with pytest.raises(ArgumentError, match="give rank or error"):
            factorize(layer, "svd")
    with torch.no_grad():
        linear.weight[0, 0] = torch.nan
    with pytest.raises(ArgumentError, match="NaN"):
        factorize(linear, "svd", 2)
    with pytest.raises(ShapeError, match="must be a multiple of groups=2"):
        decompose_groups(decomposition.svd, torch.zeros(3, 4), 2, 1)
