"""Attention by landmarks beside the softmax over all keys."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.nn import nystrom_attention
from tensorlrf.nn.attention._nystrom import segment_means
from tests.draws import seeded

softmax_attention = F.scaled_dot_product_attention


def near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def drawn(*lead: int, length: int, keys: int | None = None, size: int = 4) -> tuple[Tensor, ...]:
    keys = length if keys is None else keys
    return tuple(seeded(*lead, n, size, seed=k) for k, n in enumerate((length, keys, keys)))


def smooth(length: int, size: int = 4, heads: int = 3) -> tuple[Tensor, ...]:
    """Queries, keys and values that change slowly along the length."""
    at = torch.linspace(0, 1, length, dtype=torch.float64, device="cpu")
    waves = torch.stack([torch.sin((k + 1) * 3.0 * at + k) for k in range(8)], -1)
    return tuple(waves @ seeded(heads, 8, size, seed=s) for s in range(3))


def lost(q: Tensor, k: Tensor, v: Tensor, landmarks: int, **masks: Any) -> float:
    exact = softmax_attention(q, k, v)
    return float((nystrom_attention(q, k, v, landmarks, **masks) - exact).norm() / exact.norm())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 4))
def test_as_many_landmarks_as_rows_are_all_of_it(length: int, keys: int, more: int) -> None:
    q, k, v = drawn(2, 3, length=length, keys=keys)
    y = nystrom_attention(q, k, v, min(length, keys) + more)
    near(y, softmax_attention(q, k, v))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(0, 9), st.integers(0, 3), st.booleans())
def test_padding_changes_nothing(there: int, padding: int, extra: int, first: bool) -> None:
    """With fewer rows than landmarks and with more, whatever stands in the padding."""
    landmarks = 2 + extra
    q, k, v = drawn(2, length=there)
    apart = nystrom_attention(q, k, v, landmarks)
    pad = (0, 0, padding, 0) if first else (0, 0, 0, padding)
    q, k, v = (F.pad(t, pad, value=37.0) for t in (q, k, v))
    mask = torch.ones(2, there, dtype=torch.bool, device="cpu")
    mask = F.pad(mask, pad[2:], value=False)
    together = nystrom_attention(q, k, v, landmarks, mask=mask, query_mask=mask)
    near(together[mask], apart.flatten(0, 1))


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 40), st.integers(1, 5))
def test_equal_keys_and_equal_values_are_exact(length: int, landmarks: int) -> None:
    q, k, v = drawn(2, length=length)
    same = k[:, :1].expand_as(k)
    near(nystrom_attention(q, same, v, landmarks), softmax_attention(q, same, v))
    near(nystrom_attention(q, k, v[:, :1].expand_as(v), landmarks), v[:, :1].expand_as(v))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 99))
def test_order_within_a_segment_does_not_matter(size: int, landmarks: int, seed: int) -> None:
    q, k, v = drawn(2, length=size * landmarks)
    draws = torch.Generator("cpu").manual_seed(seed)
    order = torch.cat([torch.randperm(size, generator=draws) + size * j for j in range(landmarks)])
    y = nystrom_attention(q, k, v, landmarks)
    near(nystrom_attention(q, k[:, order], v[:, order], landmarks), y)


@settings(max_examples=20, deadline=None)
@given(st.integers(6, 30), st.integers(1, 5), st.integers(-2, 2))
def test_linear_in_values_and_alike_for_all_heads(length: int, landmarks: int, c: int) -> None:
    q, k, v = drawn(3, length=length)
    w = seeded(*v.shape, seed=9)
    both = nystrom_attention(q, k, v + c * w, landmarks)
    near(both, nystrom_attention(q, k, v, landmarks) + c * nystrom_attention(q, k, w, landmarks))
    one = nystrom_attention(q[1], k[1], v[1], landmarks)
    near(nystrom_attention(q, k, v, landmarks)[1], one)


def test_more_landmarks_leave_less() -> None:
    errors = [lost(*smooth(240), landmarks) for landmarks in (4, 8, 16, 32)]
    assert errors[-1] < 0.02
    assert all(after < before for before, after in pairwise(errors))


def test_no_more_error_than_the_inverse_of_the_landmarks() -> None:
    """Of Xiong et al. eq. 13, exactly inverted."""
    q, k, v = drawn(4, length=192, size=16)
    exact = softmax_attention(q, k, v)
    for landmarks in (8, 16, 32):
        few, asked = (segment_means(t, landmarks, None)[0] for t in (k, q))
        inner = (asked @ few.mT / 4).softmax(-1)
        outputs = softmax_attention(asked, k, v)
        plain = softmax_attention(q, few, torch.linalg.pinv(inner) @ outputs)
        assert lost(q, k, v, landmarks) < float((plain - exact).norm() / exact.norm())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.data())
def test_segments(length: int, m: int, data: st.DataObject) -> None:
    """Of lengths that differ by one at most, in order; all rows are in one."""
    kept = data.draw(st.none() | st.lists(st.booleans(), min_size=length, max_size=length))
    mask = None if kept is None else torch.tensor(kept, dtype=torch.bool, device="cpu")
    x = seeded(length, 3)
    means, counts = segment_means(x, m, mask)
    rows = x if mask is None else x[mask]
    near((means * counts[:, None]).sum(0), rows.sum(0))
    assert int(counts.sum()) == len(rows)
    assert int(counts.max() - counts.min()) <= 1
    at = 0
    for mean, count in zip(means, counts.int().tolist(), strict=True):
        near(mean, rows[at : at + count].mean(0) if count else torch.zeros_like(mean))
        at += count


def test_nothing_there_is_as_in_torch() -> None:
    q, k, v = drawn(2, length=9)
    mask = torch.tensor([[False], [True]], dtype=torch.bool, device="cpu").expand(2, 9)
    y = nystrom_attention(q, k, v, 3, mask=mask, query_mask=mask)
    near(y[0], softmax_attention(q, k, v, mask[:, None])[0])
    near(y[1], nystrom_attention(q, k, v, 3)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_dtypes_solve_in_float32(dtype: torch.dtype) -> None:
    q, k, v = smooth(96)
    want = nystrom_attention(q, k, v, 16)
    got = nystrom_attention(q.to(dtype), k.to(dtype), v.to(dtype), 16)
    assert got.dtype == dtype
    # Rounded inputs, landmarks, scores and outputs, and the ridge's condition between them.
    error = float((got.double() - want).norm() / want.norm())
    assert error < 32 * torch.finfo(dtype).eps


def test_gradients() -> None:
    q, k, v = (t.requires_grad_() for t in drawn(2, length=7, size=2))
    mask = torch.ones(2, 7, dtype=torch.bool, device="cpu")
    mask[1, 4:] = False

    def attend(*qkv: Tensor) -> Tensor:
        return nystrom_attention(*qkv, 3, mask=mask, query_mask=mask)

    assert torch.autograd.gradcheck(attend, (q, k, v))
    zero = torch.zeros(1, 20, 2, dtype=torch.float64, device="cpu", requires_grad=True)
    nystrom_attention(zero, zero, zero, 4).sum().backward()
    assert zero.grad is not None
    assert bool(zero.grad.isfinite().all())


def test_straight_code() -> None:
    """Compiled whole, and no number of a tensor is read on the way."""
    q, k, v = drawn(2, length=24)
    mask = torch.ones(2, 24, dtype=torch.bool, device="cpu")

    def attend(*qkv: Tensor) -> Tensor:
        return nystrom_attention(*qkv, 4, mask=mask, query_mask=mask)

    compiled: Any = torch.compile(attend, fullgraph=True, backend="eager")
    near(compiled(q, k, v), attend(q, k, v))
    meta = [t.to("meta") for t in (q, k, v)]
    assert nystrom_attention(*meta, 4, mask=mask.to("meta")).shape == v.shape


def test_refused() -> None:
    q, k, v = drawn(2, length=9)
    mask = torch.ones(2, 9, dtype=torch.bool, device="cpu")
    with pytest.raises(UnsupportedError, match="is_causal=True"):
        nystrom_attention(q, k, v, 3, is_causal=True)
    with pytest.raises(ArgumentError, match="landmarks=0"):
        nystrom_attention(q, k, v, 0)
    with pytest.raises(ArgumentError, match=r"mask has dtype torch\.float64"):
        nystrom_attention(q, k, v, 3, mask=mask.double())
    with pytest.raises(ShapeError, match=r"query_mask has shape \(2, 8\)"):
        nystrom_attention(q, k, v, 3, query_mask=mask[:, 1:])
    with pytest.raises(ShapeError, match="query, key and value have shapes"):
        nystrom_attention(q, k, v[:, 1:], 3)
    with pytest.raises(ArgumentError, match="one floating dtype"):
        nystrom_attention(q, k.float(), v, 3)
    with pytest.raises(ShapeError, match=r"key has shape \(4,\)"):
        nystrom_attention(q, k[0, 0], v, 3)
