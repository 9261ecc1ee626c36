"""What each rank holds of a layer on factors: all ranks together compute what the matrices do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf.errors import FileFormatError, ShapeError, TensorlrfError, UnsupportedError
from tensorlrf.vllm._book import Book
from tensorlrf.vllm._held import Held
from tensorlrf.vllm._shards import Own
from tensorlrf.vllm._told import Factored

F64 = {"dtype": torch.float64, "device": "cpu"}
TOLERANCE = 1e-12  # sums of at most 16 products of numbers about 1, in float64


class Layer(nn.Module):
    """As much of a layer of vLLM as holds parameters."""

    left: Any
    right: Any
    weight: Any


def told(name: str, rows: int, rank: int, columns: int, **more: Any) -> Factored:
    return Factored(name, rows, rank, columns, False, f"{name}.left", f"{name}.right", **more)


def files_of(factors: list[Factored | None], shapes: list[tuple[int, int]]) -> dict[str, Tensor]:
    """The tensors of a folder, random; of parts in common once."""
    draws = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for k, (one, shape) in enumerate(zip(factors, shapes, strict=True)):
        sizes = {f"part{k}.weight": shape} if one is None else one.shapes
        for name, size in sizes.items():
            found.setdefault(name, torch.randn(size, generator=draws, **F64))
    return found


def dense(name: str, one: Factored | None, files: dict[str, Tensor]) -> Tensor:
    return files[f"{name}.weight"] if one is None else files[one.left] @ files[one.right]


def loaded(parts: list[tuple[str, Factored | None]], own: Own, files: dict[str, Tensor]) -> Any:
    """A layer on this rank, filled as vLLM does: each tensor of the files once."""
    layer = Layer()
    held = Held("layer", parts, own, Book())
    held.enter(layer, torch.float64)
    given: set[str] = set()
    for k, (name, one) in enumerate(parts):
        shard = k if parts[1:] else None
        if one is None:
            layer.weight.weight_loader(layer.weight, files[f"{name}.weight"], shard)
            continue
        guard = torch.empty(0, dtype=torch.float32, device="cpu")
        layer.weight.weight_loader(layer.weight, guard, shard)
        for key, source in (("left", one.left), ("right", one.right)):
            if source not in given:
                parameter = getattr(layer, key)
                parameter.weight_loader(parameter, files[source], shard)
                given.add(source)
    held.close()
    return layer, held


def two_products(x: Tensor, right: Tensor, left: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(nn.functional.linear(x, right), left, bias)


class Plain:
    """A product that holds its matrix, as those of a CPU's library do."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.clone(), None if bias is None else bias.clone()

    def __call__(self, x: Tensor, *, with_bias: bool = False) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias if with_bias else None)


def run(layer: Any, held: Held, x: Tensor, bias: Tensor | None) -> Tensor:
    """In both ways, which are equal."""
    y = held.product(layer, x, bias, two_products)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    held.pack(Plain)
    assert held.is_packed
    assert layer.left.numel() == layer.right.numel() == layer.weight.numel() == 0
    assert torch.allclose(held.packed(x, bias), y, rtol=0, atol=TOLERANCE)
    return y


@settings(max_examples=25, deadline=None)
@given(
    heads=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=3),
    ways=st.sampled_from([1, 2, 4]),
    biased=st.booleans(),
    common=st.booleans(),
)
def test_ranks_that_share_out_the_outputs(
    heads: list[tuple[int, int]], ways: int, biased: bool, common: bool
) -> None:
    """heads  (rows on a rank, rank of the factors or 0 for dense) of each part"""
    names = [f"part{k}" for k in range(len(heads))]
    factors = [
        told(name, ways * rows, rank, 5) if rank else None
        for name, (rows, rank) in zip(names, heads, strict=True)
    ]
    if common:  # parts of one rank have one right factor
        first: dict[int, str] = {}
        factors = [
            one and dataclasses.replace(one, right=first.setdefault(one.rank, one.right))
            for one in factors
        ]
    files = files_of(factors, [(ways * rows, 5) for rows, _ in heads])
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(1), **F64)
    bias = torch.arange(sum(ways * rows for rows, _ in heads), **F64) if biased else None
    found: list[list[Tensor]] = [[] for _ in heads]
    shifts = [None] * len(heads) if bias is None else bias.split([ways * r for r, _ in heads])
    for place in range(ways):
        own = Own(tuple(rows for rows, _ in heads), (1,) * len(heads), 5, 5, place, ways)
        layer, held = loaded(list(zip(names, factors, strict=True)), own, files)
        here = None
        if bias is not None:
            cut = [s[place * r : (place + 1) * r] for s, (r, _) in zip(shifts, heads, strict=True)]
            here = torch.cat(cut)
        y = run(layer, held, x, here)
        for part, piece in zip(found, y.split([rows for rows, _ in heads], -1), strict=True):
            part.append(piece)
    for name, one, part, shift in zip(names, factors, found, shifts, strict=True):
        expected = nn.functional.linear(x, dense(name, one, files), shift)
        assert torch.allclose(torch.cat(part, -1), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("ways", [1, 2, 3])
def test_ranks_that_share_out_the_inputs(ways: int) -> None:
    one = told("part0", 4, 2, 12)
    files = files_of([one], [(4, 12)])
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(1), **F64)
    total = torch.zeros(3, 4, **F64)
    for place in range(ways):
        own = Own((4,), (1,), 12 // ways, 12, place, ways)
        layer, held = loaded([("part0", one)], own, files)
        here = slice(place * own.columns, (place + 1) * own.columns)
        total += run(layer, held, x[:, here], None)
    assert torch.allclose(total, x @ dense("part0", one, files).T, rtol=0, atol=TOLERANCE)


def test_few_heads_of_keys_are_on_several_ranks() -> None:
    """One head of queries on each of four ranks, two of keys in all, dense values."""
    parts = [("part0", told("part0", 12, 2, 5)), ("part1", told("part1", 6, 3, 5)), ("part2", None)]
    factors = [one for _, one in parts]
    files = files_of(factors, [(12, 5), (6, 5), (6, 5)])
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(1), **F64)
    q, k, v = (x @ dense(name, one, files).T for name, one in parts)
    for place in range(4):
        layer, held = loaded(parts, Own((3, 3, 3), (1, 2, 2), 5, 5, place, 4), files)
        head = place // 2
        expected = [
            q[:, 3 * place : 3 * place + 3],
            k[:, 3 * head : 3 * head + 3],
            v[:, 3 * head : 3 * head + 3],
        ]
        y = run(layer, held, x, None)
        assert torch.allclose(y, torch.cat(expected, -1), rtol=0, atol=TOLERANCE)


def test_a_layer_that_is_one_in_the_files() -> None:
    """Queries, keys and values on the same factors, cut by heads; keys are on two ranks each."""
    one = told("part0", 12 + 6 + 6, 4, 5)
    files = files_of([one], [(24, 5)])
    weight = dense("part0", one, files)
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(1), **F64)
    for place in range(4):
        layer, held = loaded([("part0", one)], Own((3, 3, 3), (1, 2, 2), 5, 5, place, 4), files)
        head = place // 2
        at = [3 * place, 12 + 3 * head, 18 + 3 * head]
        rows = torch.cat([weight[k : k + 3] for k in at])
        assert torch.allclose(run(layer, held, x, None), x @ rows.T, rtol=0, atol=TOLERANCE)


def test_a_right_factor_in_common_is_held_once() -> None:
    first = told("part0", 4, 2, 5)
    second = dataclasses.replace(told("part1", 4, 2, 5), right=first.right)
    files = files_of([first, second], [(4, 5), (4, 5)])
    parts = [("part0", first), ("part1", second)]
    layer, _ = loaded(parts, Own((4, 4), (1, 1), 5, 5, 0, 1), files)
    assert layer.right.shape == (2, 5)


def one_layer(factors: Factored | None = None, **own: Any) -> tuple[Any, Held]:
    layer = Layer()
    sizes = {"rows": (4, 4), "copies": (1, 1), "columns": 6, "inputs": 6, "place": 0, "ways": 1}
    parts = [("gate", factors or told("gate", 4, 2, 6)), ("up", None)]
    held = Held("layer", parts, Own(**{**sizes, **own}), Book())
    held.enter(layer, torch.float64)
    return layer, held


def refused(error: type[TensorlrfError], text: str, call: Any, *given: Any) -> None:
    with pytest.raises(error, match=text) as caught:
        call(*given)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused() -> None:
    layer, held = one_layer()

    def load(key: str, shape: tuple[int, ...], shard: object) -> None:
        parameter = getattr(layer, key)
        parameter.weight_loader(parameter, torch.ones(shape, **F64), shard)

    refused(FileFormatError, r"gate.left.* is \(4, 3\).*\(4, 2\)", load, "left", (4, 3), 0)
    refused(FileFormatError, "gate.*'weight'.*tells of factors", load, "weight", (4, 6), 0)
    refused(FileFormatError, "up.*'right'.*it is dense", load, "right", (2, 6), 1)
    refused(FileFormatError, r"up.*dense.*\(0,\)", load, "weight", (0,), 1)
    refused(ShapeError, "tensor_parallel_size=1.*'up'.*has 5", load, "weight", (5, 6), 1)
    refused(UnsupportedError, "no part 2", load, "left", (4, 2), 2)
    refused(UnsupportedError, "no part None", load, "left", (4, 2), None)
    load("left", (4, 2), 0)
    refused(FileFormatError, "gate.right' of a factored layer is missing", held.close)
    load("right", (2, 6), 0)
    refused(FileFormatError, "up.weight", held.close)
    load("weight", (4, 6), 1)
    held.close()
    assert not any(held.book.slots.values())


def test_sizes_that_ranks_do_not_divide() -> None:
    three = {"ways": 3, "rows": (4, 4)}
    refused(ShapeError, "tensor_parallel_size=3.*4 rows of 'gate', which has 14", lambda: one_layer(
        told("gate", 14, 2, 6), **three))  # fmt: skip
    refused(FileFormatError, "'gate', 4 x 5 by its factors, takes 6", lambda: one_layer(
        told("gate", 4, 2, 5)))  # fmt: skip
    refused(UnsupportedError, "3 parts in vLLM and 2 in the files", lambda: one_layer(
        rows=(4, 4, 4), copies=(1, 1, 1)))  # fmt: skip
    layer, _ = one_layer(told("gate", 4, 2, 12), inputs=12, ways=2)
    refused(ShapeError, "6 columns of 'up', which has 13", layer.weight.weight_loader,
            layer.weight, torch.ones(4, 13, **F64), 1)  # fmt: skip
