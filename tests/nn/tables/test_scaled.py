"""Subclasses of an embedding that scale what they look up are told by what they compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.factors import LowRank
from tensorlrf.nn import FactoredEmbedding, factored_type, factorize
from tensorlrf.nn.behaviour.lookups import scale_of
from tensorlrf.nn.obstacles import why_not
from tensorlrf.nn.stock import to_dense_layer, to_stock_layer
from tensorlrf.ops import PathTable

WORDS, WIDTH = 40, 12


class ByNumber(nn.Embedding):
    """As BART's."""

    def __init__(self, *args: Any, scale: float = 1.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.embed_scale = scale

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids) * self.embed_scale


class ByBuffer(nn.Embedding):
    """As Gemma's: rounded to the dtype of the weight before it multiplies."""

    def __init__(self, *args: Any, scale: float = 1.0, **options: Any) -> None:
        super().__init__(*args, **options)
        number = torch.tensor(scale, dtype=torch.float32, device=options.get("device"))
        self.register_buffer("embed_scale", number, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = super().forward(input_ids)
        return found * self.embed_scale.to(self.weight.dtype)


class Normed(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return F.normalize(super().forward(input), dim=-1)


class Dropped(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(super().forward(input), 0.5, self.training)


class Positions(nn.Embedding):
    def forward(self, mask: Tensor, past: int = 0) -> Tensor:
        return super().forward(mask.cumsum(-1) + past)


class Wide(nn.Embedding):
    """Another number for every column."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gains = torch.arange(1.0, 1 + self.embedding_dim, dtype=torch.float32, device="cpu")

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.gains.to(self.weight.dtype)


SCALED: list[Callable[..., nn.Embedding]] = [ByNumber, ByBuffer]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def table(make: Any, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Embedding:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Embedding = make(WORDS, WIDTH, dtype=dtype, device="cpu", **options)
    return made


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    make=st.sampled_from(SCALED), dtype=st.sampled_from(DTYPES), padding=st.none() | st.just(3),
    scale=st.floats(1e-2, 64.0).map(lambda c: float(f"{c:.9g}")), negative=st.booleans(),
    method=st.sampled_from(["svd", "tt", "cp"]),
)  # fmt: skip
def test_what_is_scaled_is_looked_up_in_factors(
    make: Any, dtype: torch.dtype, padding: int | None, scale: float, negative: bool, method: str
) -> None:
    scale = -scale if negative else scale
    like = table(make, dtype, padding_idx=padding, scale=scale)
    found = scale_of(like)
    assert isinstance(found, float)
    ids = torch.arange(0, WORDS, dtype=torch.int64, device="cpu").reshape(4, -1)
    # The very outputs, on the weight itself.
    assert torch.equal(F.embedding(ids, like.weight) * found, like(ids))
    layer = factorize(like, method, 5)
    assert type(layer) is FactoredEmbedding
    assert (layer.scale, layer.padding_idx) == (found, padding)
    assert layer.stands_for == make.__name__
    # The weight is the one without the scale, and near that of the layer at full rank.
    layer = factorize(like, "svd", WIDTH)
    eps = torch.finfo(dtype).eps
    # Rows of U S^1/2 and columns of S^1/2 V^T are at most s_1^1/2 long. Both are rounded to their
    # dtype, by eps / 2, and so is their product: 3/2 eps s_1. In float64 the decomposition itself
    # adds a few eps for each of the 12 singular values.
    bound = (
        (24 if dtype == torch.float64 else 3)
        * eps
        * float(torch.linalg.matrix_norm(like.weight.detach().double(), 2))
    )
    assert float((layer.weight - like.weight).detach().abs().max()) <= bound
    got = layer(ids)
    assert got.dtype == dtype
    assert float((got - like(ids)).detach().abs().max()) <= 2 * abs(scale) * bound
    back = to_dense_layer(layer)
    assert type(back) is type(like)
    assert back.padding_idx == padding
    assert torch.equal(back.weight, layer.weight.detach())
    assert scale_of(back) == found


@pytest.mark.parametrize("make", SCALED)
@pytest.mark.parametrize("method", ["svd", "tt", "cp", "tucker"])
@pytest.mark.parametrize("path", ["chain", "dense"])
def test_what_leaves_is_of_torch_alone_and_scales(make: Any, method: str, path: str) -> None:
    like = table(make, torch.float64, scale=5.5, padding_idx=3)
    layer = factorize(like, method, 4)
    layer.path_table = PathTable.single(path)
    ids = torch.tensor([[3, 0], [39, 7]], device="cpu")
    torch.testing.assert_close(layer(ids), 5.5 * layer.weight[ids])
    stock = to_stock_layer(layer, path)
    torch.testing.assert_close(stock(ids), layer(ids))
    assert all(type(m).__module__.startswith("torch.") for m in stock.modules())
    frozen = factorize(like, method, 4).eval().freeze()
    torch.testing.assert_close(frozen(ids), layer(ids))
    compiled = torch.export.export(layer, (ids,)).module()
    torch.testing.assert_close(compiled(ids), layer(ids))


def test_the_gradient_is_that_of_what_is_scaled() -> None:
    layer = factorize(table(ByNumber, torch.float64, scale=3.0), "svd", 4)
    other = FactoredEmbedding(layer.factors)
    ids = torch.tensor([1, 2, 5], device="cpu")
    layer(ids).sum().backward()
    other(ids).sum().backward()
    for p, q in zip(layer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 3.0 * q.grad)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Normed, "is no multiple of what is looked up"),
        (Dropped, "is no multiple of what is looked up"),
        (Wide, "is no multiple of what is looked up"),
        (Positions, r"takes more than indices \(past\)"),
    ],
)
def test_other_forwards_are_told_apart(make: Any, words: str) -> None:
    like = table(make)
    with pytest.raises(UnsupportedError, match=words):
        factorize(like, "svd", 2)
    assert factored_type(like) is None


def test_a_number_that_files_have_is_none_of_its_own() -> None:
    like = table(ByNumber, scale=2.0)
    like.register_buffer("steps", torch.zeros((), dtype=torch.float32, device="cpu"))
    assert "holds more than weight and bias (steps)" in why_not(like)


def test_nothing_of_the_layer_is_changed_or_drawn() -> None:
    like = table(Dropped)
    before, state = like.weight.detach().clone(), torch.random.get_rng_state()
    assert isinstance(scale_of(like), str)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(like.weight, before)
    assert like.training


def test_on_meta_it_is_seen_that_there_is_a_scale_and_where_it_can_which() -> None:
    with torch.device("meta"):
        by_number, by_buffer = ByNumber(5, 4, scale=3.0), ByBuffer(5, 4, scale=3.0)
        normed = Normed(5, 4)
    assert scale_of(by_number) == 3.0
    assert math.isnan(float(scale_of(by_buffer)))
    assert factored_type(by_buffer) is FactoredEmbedding
    assert factored_type(normed) is None
    half = ByBuffer(5, 4, scale=3.0, device="meta")
    half.weight = nn.Parameter(torch.ones(5, 4, dtype=torch.float32, device="cpu"))
    assert "on the meta device" in why_not(half)


def test_a_scale_is_a_finite_number() -> None:
    factors = LowRank(torch.ones(5, 2), torch.ones(2, 4))
    for wrong in (math.inf, "2", True):
        with pytest.raises(ArgumentError, match="scale="):
            FactoredEmbedding(factors, scale=wrong)  # type: ignore[arg-type]
    assert "scale=2.5" in repr(FactoredEmbedding(factors, scale=2.5))
