"""Attention with a layer for each projection computes what torch's own does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.nn import FactoredLinear, FactoredMultiheadAttention


@st.composite
def attentions(draw: st.DrawFn) -> nn.MultiheadAttention:
    torch.manual_seed(draw(st.integers(0, 99)))
    heads, size = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    made = nn.MultiheadAttention(
        heads * size,
        heads,
        bias=draw(st.booleans()),
        add_bias_kv=draw(st.booleans()),
        add_zero_attn=draw(st.booleans()),
        kdim=draw(st.none() | st.integers(1, 5)),
        vdim=draw(st.none() | st.integers(1, 5)),
        batch_first=draw(st.booleans()),
    )
    with torch.no_grad():
        for p in made.parameters():
            p.normal_()
    return made.double()


def inputs(attention: Any, batch: int, target: int, source: int) -> tuple[Tensor, ...]:
    sizes = (attention.embed_dim, attention.kdim, attention.vdim)
    lengths = (target, source, source)
    made = [
        torch.randn(batch, n, s, dtype=torch.float64) for n, s in zip(lengths, sizes, strict=True)
    ]
    return tuple(t if attention.batch_first else t.transpose(0, 1) for t in made)


def assert_near(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(attentions(), st.data())
def test_same_outputs_and_weights(attention: nn.MultiheadAttention, data: st.DataObject) -> None:
    own = FactoredMultiheadAttention.from_packed(attention)
    batch, target, source = (data.draw(st.integers(1, 4)) for _ in range(3))
    qkv = inputs(attention, batch, target, source)
    options: dict[str, Any] = {
        "need_weights": data.draw(st.booleans()),
        "average_attn_weights": data.draw(st.booleans()),
    }
    kind = data.draw(st.sampled_from(["none", "bool", "float", "heads"]))
    draws = torch.rand(target, source) > 0.5
    draws[:, 0] = False  # some key for every query
    if kind == "bool":
        options["attn_mask"] = draws
    elif kind == "float":
        options["attn_mask"] = torch.randn(target, source, dtype=torch.float64)
    elif kind == "heads":
        options["attn_mask"] = draws.expand(batch * attention.num_heads, -1, -1)
    if data.draw(st.booleans()):
        padding = torch.rand(batch, source) > 0.5
        padding[:, 0] = False
        floats = kind == "float"  # torch asks for both of one kind
        options["key_padding_mask"] = (
            torch.zeros(batch, source, dtype=torch.float64).masked_fill(padding, -torch.inf)
            if floats
            else padding
        )
    assert_near(own(*qkv, **options), attention(*qkv, **options))


@pytest.mark.parametrize("batch_first", [True, False])
def test_one_sequence_and_causal_hint(batch_first: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, batch_first=batch_first).double()
    own = FactoredMultiheadAttention.from_packed(attention)
    x = torch.randn(4, 6, dtype=torch.float64)
    assert_near(own(x, x, x), attention(x, x, x))
    mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    for weights in (True, False):
        options = {"attn_mask": mask, "is_causal": True, "need_weights": weights}
        assert_near(own(x, x, x, **options), attention(x, x, x, **options))


@settings(max_examples=20, deadline=None)
@given(attentions())
def test_packed_again_it_is_the_same_module(attention: nn.MultiheadAttention) -> None:
    own = FactoredMultiheadAttention.from_packed(attention)
    again = own.pack()
    want, got = attention.state_dict(), again.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(want[k], got[k]) for k in want)
    shared = {p.data_ptr() for p in attention.parameters()}
    assert not any(p.data_ptr() in shared for p in again.parameters())
    assert all(p.is_meta for p in own.pack(values=False).parameters())


def test_factored_is_its_own_dense_form() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3).double()
    small = tensorlrf.nn.factorize(attention, "svd", 3)
    assert sum(isinstance(m, FactoredLinear) for m in small.modules()) == 4
    x = torch.randn(5, 2, 12, dtype=torch.float64, requires_grad=True)
    assert_near(small(x, x, x), small.pack()(x, x, x))
    small(x, x, x)[0].sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)


def test_refusals() -> None:
    own = FactoredMultiheadAttention.from_packed(nn.MultiheadAttention(4, 2, batch_first=True))
    x = torch.rand(2, 3, 4)
    with pytest.raises(ShapeError, match="query has shape"):
        own(x[..., :3], x, x)
    with pytest.raises(ShapeError, match="key has shape"):
        own(x, x[0], x)
    with pytest.raises(ShapeError, match="same length"):
        own(x, x, x[:, :2])
    with pytest.raises(ShapeError, match="attn_mask has shape"):
        own(x, x, x, attn_mask=torch.zeros(3, 2))
    with pytest.raises(ShapeError, match="key_padding_mask has shape"):
        own(x, x, x, key_padding_mask=torch.zeros(2, 2))
    with pytest.raises(ArgumentError, match="attn_mask has dtype"):
        own(x, x, x, attn_mask=torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="is_causal"):
        own(x, x, x, is_causal=True)
