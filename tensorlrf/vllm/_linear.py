"""Linear layers of vLLM on factors: of one matrix, or of several that read the same input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod

from tensorlrf.vllm import _products
from tensorlrf.vllm._book import Book
from tensorlrf.vllm._held import Held
from tensorlrf.vllm._products import Packed
from tensorlrf.vllm._shards import Own, Parts
from tensorlrf.vllm._told import check_bias


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
        layer.on_factors = Held(layer.prefix, self.parts, own, self.book)
        layer.on_factors.enter(layer, params_dtype)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Look whether all tensors have come, and have a CPU's library pack them."""
        layer.on_factors.close()
        if _products.ON_CPU:
            layer.on_factors.pack(Packed)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., inputs on this rank) -> (..., outputs on this rank)"""
        held: Held = layer.on_factors
        if held.is_packed:
            return held.packed(x, bias)
        return held.product(layer, x, bias, _products.linear)


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
