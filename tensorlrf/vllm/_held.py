"""The pieces of a linear layer on one rank: how they are filled from the files, and run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tensorlrf.errors import FileFormatError
from tensorlrf.vllm._book import Book, Slot, parameter_of
from tensorlrf.vllm._shards import (
    Own,
    Parts,
    Piece,
    columns_here,
    piece_of,
    pieces_of,
    rows_here,
    sizes_of,
)

Linear = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(x, right, left, bias) -> x @ right^T @ left^T + bias"""


class Product(Protocol):
    """`x @ weight^T`, with a bias where it is asked for, of a weight that it holds."""

    def __call__(self, x: Tensor, *, with_bias: bool = False) -> Tensor:
        """x (..., n) -> (..., m)"""


class Held:
    """The pieces of a layer, which lie in its parameters one after another.

    `left` has the left factors, flat; `right` the right ones, below each other; `weight` what is
    dense.
    """

    def __init__(self, layer: str, parts: Parts, own: Own, book: Book) -> None:
        self.layer = layer
        self.pieces = pieces_of(layer, parts, own)
        self.own = own
        self.book = book
        self.slots: dict[tuple[str, str], Slot] = {}
        self._parameters: dict[str, Any] = {}
        self._first: Product | None = None
        self._lefts: tuple[Product | None, ...] = ()

    # ---- loading ----------------------------------------------------------------------------

    def enter(self, layer: nn.Module, dtype: torch.dtype) -> None:
        """Give a layer its parameters, and note what is to come."""
        lefts, rights, dense = sizes_of(self.pieces)
        columns = self.own.columns
        for key, shape in (
            ("left", (lefts,)),
            ("right", (rights, columns)),
            ("weight", (dense, columns)),
        ):
            parameter_of(layer, key, shape, dtype, partial(self.load, key))
        self._parameters = layer._parameters  # not the layer, which has this
        for one in self.pieces:
            factors = one.factors
            if factors is None:
                name = f"{one.name}.weight"
                slot = Slot(name, name, None, partial(self._put_weight, one))
                self.slots[one.name, "weight"] = self.book.enter(slot)
                continue
            for key, source, put in (
                ("left", factors.left, self._put_left),
                ("right", factors.right, self._put_right),
            ):
                slot = Slot(
                    f"{factors.name}.{key}", source, factors.shapes[source], partial(put, one)
                )
                self.slots[one.name, key] = self.book.enter(slot)

    def load(self, key: str, _: Tensor, tensor: Tensor, shard: object = None) -> None:
        """What vLLM calls for each tensor of the files that belongs to the layer."""
        shard = getattr(tensor, "shard_id", None) if shard is None else shard
        piece = piece_of(self.layer, self.pieces, shard)
        slot = self.slots.get((piece.name, key))
        if slot is not None:
            self.book.fill(slot, tensor)
        elif tensor.numel():  # and not what stands beside factors in place of a weight
            raise FileFormatError(
                f"{piece.name!r} has the tensor {key!r}, and config.json tells of "
                f"{'none such: it is dense' if piece.factors is None else 'factors'}; get the "
                "folder anew"
            )

    def _put_left(self, piece: Piece, whole: Tensor) -> None:
        here = rows_here(piece.name, len(whole), piece.spans, self.own)
        _copy_rows(_left(self._data("left"), piece), whole, here)

    def _put_right(self, piece: Piece, whole: Tensor) -> None:
        columns = columns_here(piece.name, whole.shape[1], self.own)
        self._data("right")[slice(*piece.first)].copy_(whole[:, columns])

    def _put_weight(self, piece: Piece, whole: Tensor) -> None:
        if whole.ndim != 2:
            raise FileFormatError(
                f"{piece.name!r} is dense by config.json, and its weight in the files has the "
                f"shape {tuple(whole.shape)}; get the folder anew"
            )
        before = len(self._data("right"))
        here = rows_here(piece.name, len(whole), piece.spans, self.own)
        columns = columns_here(piece.name, whole.shape[1], self.own)
        target = self._data("weight")[slice(piece.first[0] - before, piece.first[1] - before)]
        _copy_rows(target, whole[:, columns], here)

    def close(self) -> None:
        """Once all have come."""
        self.book.close(list(self.slots.values()))

    def pack(self, product: Callable[[Tensor, Tensor | None], Product]) -> None:
        """Have products hold all in place of the parameters: one for all that multiplies the input,
        and one for each left factor.

        product  makes one of a matrix and a bias
        """
        bias = self._parameters.get("bias")
        shifts = self._split(None if bias is None else bias.data)
        stacked = torch.cat([self._data("right"), self._data("weight")])
        shift = None
        if bias is not None and any(one.factors is None for one in self.pieces):
            shift = bias.new_zeros(len(stacked))
            for one, own in zip(self.pieces, shifts, strict=True):
                if one.factors is None:
                    shift[slice(*one.first)] = own
        self._lefts = tuple(
            None if one.factors is None else product(_left(self._data("left"), one), own)
            for one, own in zip(self.pieces, shifts, strict=True)
        )
        self._first = product(stacked, shift)
        for name in ("left", "right", "weight"):
            self._parameters[name].data = self._data(name)[:0].clone()

    # ---- running ----------------------------------------------------------------------------

    @property
    def is_packed(self) -> bool:
        """Whether a CPU's library has what the parameters held."""
        return self._first is not None

    def packed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., n) -> (..., m)"""
        assert self._first is not None
        with_bias = bias is not None
        t = self._first(x, with_bias=with_bias)  # (..., all ranks + rows that are dense)
        made = []
        for one, left in zip(self.pieces, self._lefts, strict=True):
            begin, end = one.first
            own = t[..., begin:end]
            made.append(own if left is None else left(own.contiguous(), with_bias=with_bias))
        return _joined(made)

    def product(self, layer: Any, x: Tensor, bias: Tensor | None, linear: Linear) -> Tensor:
        """x (..., n) -> (..., m), by the parameters of the layer and a product of two factors."""
        shifts = self._split(bias)
        before = layer.right.shape[0]
        made = []
        for one, shift in zip(self.pieces, shifts, strict=True):
            begin, end = one.first
            if one.factors is None:
                own = layer.weight[begin - before : end - before]
                made.append(nn.functional.linear(x, own, shift))
            else:
                left = _left(layer.left, one)
                made.append(linear(x, layer.right[begin:end], left, shift))
        return _joined(made)

    def _split(self, bias: Tensor | None) -> Sequence[Tensor | None]:
        if bias is None:
            return [None] * len(self.pieces)
        return torch.split(bias, [one.rows for one in self.pieces])

    def _data(self, name: str) -> Tensor:
        data: Tensor = self._parameters[name].data
        return data


def _left(flat: Tensor, piece: Piece) -> Tensor:
    """The left factor of a piece, of all that lie one after another."""
    assert piece.factors is not None
    begin, end = piece.left
    return flat[begin:end].view(piece.rows, piece.factors.rank)


def _joined(made: list[Tensor]) -> Tensor:
    return made[0] if len(made) == 1 else torch.cat(made, -1)


def _copy_rows(target: Tensor, whole: Tensor, rows: list[slice]) -> None:
    start = 0
    for own in rows:
        size = own.stop - own.start
        target[start : start + size].copy_(whole[own])
        start += size
