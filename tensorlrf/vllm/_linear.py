"""Linear layers of vLLM on factors: of one matrix, or of several that read the same input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod

from tensorlrf.errors import FileFormatError
from tensorlrf.vllm import _products
from tensorlrf.vllm._book import Book, Slot, parameter_of
from tensorlrf.vllm._products import Packed
from tensorlrf.vllm._shards import (
    Own,
    Piece,
    columns_here,
    piece_of,
    pieces_of,
    rows_here,
    sizes_of,
)
from tensorlrf.vllm._told import Factored, check_bias

Parts = Sequence[tuple[str, Factored | None]]


class LowRankLinear(LinearMethodBase):
    """How vLLM makes, fills and runs a linear layer that is on factors, or has parts that are.

    Parameters
    ----------
    parts : sequence of (str, Factored or None)
        Name and factors of each part, None for a dense one.
    book : Book
        Of the model.
    """

    def __init__(self, parts: Parts, book: Book) -> None:
        self.parts = parts
        self.book = book

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **_: Any,
    ) -> None:
        """Give the layer parameters, as vLLM asks for."""
        for _name, factors in self.parts:
            check_bias(factors, bool(layer.has_bias))
        heads = getattr(layer, "num_kv_head_replicas", 1)  # of keys and values, not of queries
        copies = [1 if k == 0 else heads for k in range(len(output_partition_sizes))]
        own = Own(
            tuple(output_partition_sizes),
            tuple(copies),
            input_size_per_partition,
            input_size,
            layer.tp_rank,
            layer.tp_size,
        )
        layer.on_factors = Held(layer, pieces_of(layer.prefix, self.parts, own), own, self.book)
        lefts, rights, dense = sizes_of(layer.on_factors.pieces)
        for name, shape in (
            ("left", (lefts,)),
            ("right", (rights, own.columns)),
            ("weight", (dense, own.columns)),
        ):
            parameter_of(layer, name, shape, params_dtype, partial(layer.on_factors.load, name))
        layer.on_factors.enter()

    def process_weights_after_loading(self, layer: Any) -> None:
        """Look whether all tensors have come, and have a CPU's library pack them."""
        layer.on_factors.close()

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., inputs on this rank) -> (..., outputs on this rank)"""
        held: Held = layer.on_factors
        made = held.packed(x, bias) if held.is_packed else held.unpacked(layer, x, bias)
        return made[0] if len(made) == 1 else torch.cat(made, -1)


class Dense(UnquantizedLinearMethod):
    """A linear layer that is dense, of a model in which others are on factors.

    Parameters
    ----------
    check : callable
        Asked once the model is loaded.
    """

    def __init__(self, check: Any) -> None:
        super().__init__()
        self.check = check

    def process_weights_after_loading(self, layer: Any) -> None:
        """As vLLM does."""
        self.check()
        super().process_weights_after_loading(layer)


class Held:
    """The pieces of a layer, which lie in its parameters one after another.

    `left` has the left factors, flat; `right` the right ones, below each other; `weight` what is
    dense.
    """

    def __init__(self, layer: Any, pieces: list[Piece], own: Own, book: Book) -> None:
        self.layer = layer.prefix
        self.pieces = pieces
        self.own = own
        self.book = book
        self.slots: dict[tuple[str, str], Slot] = {}
        self._parameters = layer._parameters  # not the layer, which has this
        self._first: Packed | None = None
        self._lefts: tuple[Packed | None, ...] = ()

    # ---- loading ----------------------------------------------------------------------------

    def enter(self) -> None:
        """Note what is to come."""
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
        if _products.ON_CPU:
            self._pack()

    def _pack(self) -> None:
        """On a CPU: what multiplies the input as one matrix, then a left factor after another."""
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
            None if one.factors is None else Packed(_left(self._data("left"), one), own)
            for one, own in zip(self.pieces, shifts, strict=True)
        )
        self._first = Packed(stacked, shift)
        for name in ("left", "right", "weight"):
            self._parameters[name].data = self._data(name).new_empty(0)

    # ---- running ----------------------------------------------------------------------------

    @property
    def is_packed(self) -> bool:
        """Whether a CPU's library has what the parameters held."""
        return self._first is not None

    def packed(self, x: Tensor, bias: Tensor | None) -> list[Tensor]:
        """x (..., n) -> (..., m) of each piece"""
        assert self._first is not None
        with_bias = bias is not None
        t = self._first(x, with_bias=with_bias)  # (..., all ranks + rows that are dense)
        made = []
        for one, left in zip(self.pieces, self._lefts, strict=True):
            begin, end = one.first
            own = t[..., begin:end]
            made.append(own if left is None else left(own.contiguous(), with_bias=with_bias))
        return made

    def unpacked(self, layer: Any, x: Tensor, bias: Tensor | None) -> list[Tensor]:
        """x (..., n) -> (..., m) of each piece"""
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
                made.append(_products.linear(x, layer.right[begin:end], left, shift))
        return made

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


def _copy_rows(target: Tensor, whole: Tensor, rows: list[slice]) -> None:
    start = 0
    for own in rows:
        size = own.stop - own.start
        target[start : start + size].copy_(whole[own])
        start += size
