"""Words for styles, as `_tp_plan` of models of transformers has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel


class SummedGradients(ParallelStyle):
    """Parameters that are whole on every rank and meet its part of the numbers alone, as norms of
    heads do: their gradients are added up over the ranks."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        group: Any = device_mesh.get_group()

        def summed(grad: Tensor) -> Tensor:
            whole = grad.clone()
            dist.all_reduce(whole, group=group)
            return whole

        for own in module.modules():
            hooks = _Hooks(summed)
            hooks(own)
            own.register_forward_pre_hook(hooks)
        return module


class _Hooks:
    """Has the gradients of a module's own parameters go through a function: before each forward,
    for under FSDP2 the parameters of a forward are others than those of now."""

    def __init__(self, hook: Callable[[Tensor], Tensor]) -> None:
        self.hook = hook
        self.hooked: dict[str, Tensor] = {}

    def __call__(self, module: nn.Module, _: Any = None) -> None:
        for name, p in module.named_parameters(recurse=False):
            if p.requires_grad and self.hooked.get(name) is not p:
                p.register_hook(self.hook)  # type: ignore[no-untyped-call]  # it has no types
                self.hooked[name] = p


TABLES = ("embedding_rowwise", "embedding_colwise")
"""Of embeddings, whose outputs are whole on every rank."""

WORDS = (
    "colwise", "rowwise", "colwise_gather_output", "rowwise_split_input", *TABLES,
    "replicated_with_grad_allreduce",
)  # fmt: skip


def style_of(word: str) -> ParallelStyle:
    """The style of a dense module that one of `WORDS` stands for."""
    whole = Replicate()
    if word == "replicated_with_grad_allreduce":
        return SummedGradients()
    if word in ("colwise", "rowwise"):
        return ColwiseParallel() if word == "colwise" else RowwiseParallel()
    if word in ("colwise_gather_output", "embedding_colwise"):
        return ColwiseParallel(output_layouts=whole)
    return RowwiseParallel(input_layouts=whole)
