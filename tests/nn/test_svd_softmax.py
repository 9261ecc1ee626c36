"""The head that looks at all words cheaply and at the best of them exactly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.nn import SVDSoftmaxHead
from tensorlrf.nn.heads._preview import read

D, V = 32, 500


def linear(bias: bool = True, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A head whose spectrum falls, as those of language models do."""
    draws = torch.Generator().manual_seed(seed)
    layer = nn.Linear(D, V, bias=bias)
    fall = torch.linspace(1, 0.05, D)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(V, D, generator=draws) * fall @ turns(seed + 1))
        if bias:
            layer.bias.copy_(torch.randn(V, generator=draws))
    return layer.to(dtype)


def turns(seed: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(D, D, generator=draws))[0]


def states(n: int = 200, seed: int = 5) -> Tensor:
    """About a mean that is none of zero, some directions far longer than others."""
    draws = torch.Generator().manual_seed(seed)
    spread = torch.linspace(2, 0.1, D)
    mean = torch.randn(D, generator=torch.Generator().manual_seed(99))
    return torch.randn(n, D, generator=draws) * spread @ turns(7) + 3 * mean


sizes = st.tuples(st.integers(1, D), st.integers(1, V))


@given(sizes=sizes, bias=st.booleans(), fitted=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_best_of_the_preview_are_exact_and_the_others_are_the_preview(
    sizes: tuple[int, int], bias: bool, fitted: bool, seed: int
) -> None:
    (window, top), layer = sizes, linear(bias, seed)
    head = SVDSoftmaxHead.from_linear(
        layer, window=window, top=top, states=states() if fitted else None
    )
    h = states(1, seed=seed + 50)
    with torch.no_grad():
        exact, got = layer(h), head(h)
    preview = preview_of(head, h)
    scale = float(exact.abs().max())
    right = (got - exact).abs() <= 1e-4 * scale
    seen = (got - preview).abs() <= 1e-4 * scale
    assert bool((right | seen).all())
    assert int(right.sum()) >= top
    best = preview.topk(top).indices
    wanted = exact.gather(1, best)
    torch.testing.assert_close(got.gather(1, best), wanted, atol=1e-4 * scale, rtol=0)


def preview_of(head: SVDSoftmaxHead, h: Tensor) -> Tensor:
    with torch.no_grad():
        logits = (h @ head.turn.T)[:, : head.window] @ head.preview + head.shift
        return logits if head.bias is None else logits + head.bias


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_with_all_columns_it_is_the_linear_layer(fitted: bool, shape: tuple[int, ...]) -> None:
    layer = linear()
    head = SVDSoftmaxHead.from_linear(layer, window=D, top=1, states=states() if fitted else None)
    h = states(8)[: max(1, torch.Size(shape).numel())].reshape(*shape, D)
    torch.testing.assert_close(head(h), layer(h), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(head.weight, layer.weight, atol=1e-4, rtol=1e-4)


def test_rows_of_which_all_words_would_be_looked_at_are_exact() -> None:
    layer = linear()
    head = SVDSoftmaxHead.from_linear(layer, window=4, top=V // 2)
    h = states(2)
    torch.testing.assert_close(head(h), layer(h), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(head(h[:1]), layer(h[:1]), atol=1e-3)


def test_a_preview_fitted_to_states_is_nearer() -> None:
    """And none of its width is nearer in the mean square, which is what it is made for."""
    layer, seen, other = linear(), states(400), states(400, seed=11)
    errors = []
    for given_states in (seen, None):
        head = SVDSoftmaxHead.from_linear(layer, window=8, top=1, states=given_states)
        errors.append(float((preview_of(head, other) - layer(other)).norm().detach()))
    assert errors[0] < 0.6 * errors[1]
    best = torch.linalg.svdvals((seen - seen.mean(0)) @ layer.weight.T.detach())[8:].norm()
    head = SVDSoftmaxHead.from_linear(layer, window=8, top=1, states=seen)
    assert float((preview_of(head, seen) - layer(seen)).norm().detach()) <= 1.01 * float(best)


def test_calibrated_finds_what_was_asked_for_on_other_states() -> None:
    layer = linear()
    head = SVDSoftmaxHead.calibrated(layer, states(2000), recall=(0.99, 0.95))
    found = head.measure(states(500, seed=31), seconds=0.05)
    assert found.recall[0] >= 0.98
    assert found.recall[1] >= 0.94
    assert found.read == read(D, V, head.window, head.top) < found.dense
    assert f"top-1 {found.recall[0]:.4f}" in str(found)
    every = SVDSoftmaxHead.calibrated(layer, states(50), recall=(1.0, 1.0))
    assert every.window <= D
    assert every.top <= V


def test_measure_tells_a_head_that_misses() -> None:
    layer = linear()
    poor = SVDSoftmaxHead.from_linear(layer, window=1, top=1)
    full = SVDSoftmaxHead.from_linear(layer, window=D, top=1)
    assert poor.measure(states(50), seconds=0.02).recall[1] < 0.9
    assert full.measure(states(50), seconds=0.02).recall == (1.0, 1.0)


def test_topk_is_that_of_the_logits() -> None:
    layer = linear()
    head = SVDSoftmaxHead.from_linear(layer, window=16, top=100)
    h = states(1)
    values, words = head.topk(h, 5)
    torch.testing.assert_close(values, layer(h).gather(-1, words), atol=1e-4, rtol=1e-4)
    assert bool((values.diff() <= 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    layer = linear(dtype=dtype)
    head = SVDSoftmaxHead.from_linear(layer, window=8, top=9, states=states().to(dtype))
    h = states(1).to(dtype)
    assert head(h).dtype == dtype
    assert {p.dtype for p in head.parameters()} == {dtype}
    assert head.measure(states(5), seconds=0.01).rows == 5


def test_it_is_a_module(tmp_path: Path) -> None:
    layer = linear()
    head = SVDSoftmaxHead.from_linear(layer, window=8, top=9)
    h = states(1)
    blank = nn.Sequential(SVDSoftmaxHead(D, V, window=8, top=9))
    tensorlrf.save(nn.Sequential(head), tmp_path / "head.safetensors")
    back = tensorlrf.load(tmp_path / "head.safetensors", blank)
    torch.testing.assert_close(back(h), head(h))
    torch.testing.assert_close(copy.deepcopy(head)(h), head(h))
    torch.testing.assert_close(head.to_linear()(h), layer(h), atol=1e-4, rtol=1e-4)
    assert repr(head).startswith("SVDSoftmaxHead(in_features=32, out_features=500, window=8, top=9")
    head(h).square().sum().backward()
    assert head.preview.grad is not None
    assert head.rest.grad is not None
    compiled: Any = torch.compile(head, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(h), head(h))
    program = torch.export.export(head.eval(), (h,))
    torch.testing.assert_close(program.module()(h), head(h))


def test_the_linear_layer_stays_as_it_is() -> None:
    layer = linear()
    before = layer.weight.detach().clone()
    head = SVDSoftmaxHead.from_linear(layer, window=8, top=9)
    with torch.no_grad():
        for part in head.parameters():
            part += 1
    assert torch.equal(layer.weight, before)
    layer.requires_grad_(False)
    frozen = SVDSoftmaxHead.from_linear(layer.eval(), window=8, top=9)
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())


def test_what_cannot_be_is_refused() -> None:
    layer = linear()
    for bad in ({"window": 0, "top": 1}, {"window": 33, "top": 1}, {"window": 8, "top": 501}):
        with pytest.raises(ArgumentError, match="must be an int from 1 to"):
            SVDSoftmaxHead.from_linear(layer, **bad)
    with pytest.raises(UnsupportedError, match=r"pass a torch\.nn\.Linear"):
        SVDSoftmaxHead.from_linear(nn.Conv1d(4, 4, 1), window=2, top=2)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="states is"):
        SVDSoftmaxHead.from_linear(layer, window=8, top=9, states=torch.rand(4, 5))
    with pytest.raises(ArgumentError, match="NaN or Inf"):
        SVDSoftmaxHead.calibrated(layer, torch.full((4, D), torch.nan))
    with pytest.raises(ArgumentError, match="recall="):
        SVDSoftmaxHead.calibrated(layer, states(), recall=(2.0, 0.5))
    with pytest.raises(ArgumentError, match="two at least"):
        SVDSoftmaxHead.calibrated(layer, states(1))
