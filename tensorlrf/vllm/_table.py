"""Embeddings and heads of vLLM on factors, which may be the same for both."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from tensorlrf.errors import FileFormatError
from tensorlrf.vllm import _products
from tensorlrf.vllm._book import Book, Slot, parameter_of
from tensorlrf.vllm._products import Packed
from tensorlrf.vllm._told import Factored, check_bias


class LowRankTable(QuantizeMethodBase):
    """How vLLM makes, fills and runs an embedding or a head on factors, cut by its vocabulary.

    Parameters
    ----------
    factors : Factored
    book : Book
        Of the model.
    """

    def __init__(self, factors: Factored, book: Book) -> None:
        self.factors = factors
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
        own = self.factors
        check_bias(own, bool(getattr(layer, "has_bias", False)))
        if (own.rows, own.columns) != (layer.org_vocab_size, layer.embedding_dim):
            raise FileFormatError(
                f"the layer {own} by its factors, is {layer.org_vocab_size} x "
                f"{layer.embedding_dim} by config.json; get the folder anew"
            )
        layer.on_factors = slots = []
        for name, source, shape, put in (
            ("left", own.left, (sum(output_partition_sizes), own.rank), _put_left),
            ("right", own.right, (own.rank, input_size_per_partition), _put_right),
        ):
            slot = Slot(f"{own.name}.{name}", source, own.shapes[source], partial(put, layer))
            slots.append(self.book.enter(slot))
            parameter_of(layer, name, shape, params_dtype, partial(_load, self.book, slot))
        parameter_of(layer, "weight", (0,), params_dtype, partial(_pass_over, own.name))

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """Have a head the factors of an embedding, where they are the same in the files."""
        method = embed_tokens.quant_method
        if isinstance(method, LowRankTable):
            theirs = method.factors
            if (theirs.left, theirs.right) == (self.factors.left, self.factors.right):
                self.book.forget(layer.on_factors)
                layer.on_factors = []
                layer.left, layer.right = embed_tokens.left, embed_tokens.right
        return layer

    def process_weights_after_loading(self, layer: Any) -> None:
        """Look whether all tensors have come, and have a CPU's library pack them."""
        self.book.close(layer.on_factors)
        layer.packed_rows = layer.packed_first = layer.packed_left = None
        if _products.ON_CPU:
            layer.packed_rows = Packed(layer.right.data.t(), None)
            bias = getattr(layer, "bias", None)
            layer.packed_first = Packed(layer.right.data, None)
            layer.packed_left = Packed(layer.left.data, None if bias is None else bias.data)

    def embedding(self, layer: Any, input_: Tensor) -> Tensor:
        """Tokens (...) -> (..., size of the model)"""
        if layer.packed_rows is None:
            return _products.rows(input_, layer.left, layer.right)
        y: Tensor = layer.packed_rows(nn.functional.embedding(input_, layer.left))
        return y

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., size of the model) -> (..., tokens on this rank)"""
        if layer.packed_first is None:
            return _products.linear(x, layer.right, layer.left, bias)
        y: Tensor = layer.packed_left(layer.packed_first(x), with_bias=bias is not None)
        return y


def _load(book: Book, slot: Slot, _: Tensor, tensor: Tensor, *__: object) -> None:
    book.fill(slot, tensor)


def _pass_over(name: str, _: Tensor, tensor: Tensor, *__: object) -> None:
    if tensor.numel():
        raise FileFormatError(
            f"{name!r} has the tensor 'weight', and config.json tells of factors; get the folder "
            "anew"
        )


def _put_left(layer: Any, whole: Tensor) -> None:
    """Rows of this rank's tokens; those that fill up are zero."""
    begin, end = layer.shard_indices.org_vocab_start_index, layer.shard_indices.org_vocab_end_index
    layer.left.data[: end - begin].copy_(whole[begin:end])
    layer.left.data[end - begin :].zero_()


def _put_right(layer: Any, whole: Tensor) -> None:
    layer.right.data.copy_(whole)
