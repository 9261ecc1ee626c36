"""Products with a matrix of weights, as vLLM makes them best on the device that it runs on."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.platforms import current_platform

from tensorlrf_kernels.lowrank_embedding import lowrank_embedding
from tensorlrf_kernels.lowrank_linear import lowrank_linear

ON_CPU: bool = current_platform.is_cpu()
ON_GPU: bool = current_platform.is_cuda_alike()


class Packed:
    """`x @ weight^T + bias` on a CPU, by what vLLM has packed `weight` for once."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._own = SimpleNamespace(
            weight=nn.Parameter(weight.contiguous(), requires_grad=False),
            bias=None if bias is None else nn.Parameter(bias.clone(), requires_grad=False),
        )
        dispatch_cpu_unquantized_gemm(self._own, remove_weight=True)

    def __call__(self, x: Tensor, *, with_bias: bool = False) -> Tensor:
        """x (..., n) -> (..., m)"""
        own = self._own
        y: Tensor = own.cpu_linear(x, own.weight, own.bias if with_bias else None)
        return y


def linear(x: Tensor, right: Tensor, left: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ right^T @ left^T + bias`: in one kernel of ours on a GPU."""
    if ON_GPU:
        return lowrank_linear(x, right, left, bias)
    return nn.functional.linear(nn.functional.linear(x, right), left, bias)


def rows(places: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Rows `(left @ right)[places]`: in one kernel of ours on a GPU."""
    if ON_GPU:
        return lowrank_embedding(places, left, right)
    return torch.matmul(nn.functional.embedding(places, left), right)
