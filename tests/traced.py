"""What torch.compile makes of a function: how many graphs, and whether for any batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo import mark_dynamic
from torch._dynamo.backends.registry import lookup_backend


class Traced:
    """A function under torch.compile, whole; its graphs are counted."""

    def __init__(self, function: Callable[..., Any], backend: str = "eager") -> None:
        torch.compiler.reset()
        self.graphs = 0
        self._run: Callable[..., Any] = torch.compile(
            function, fullgraph=True, backend=self._counted
        )
        self._backend: Callable[..., Any] = lookup_backend(backend)

    def _counted(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return self._backend(graph, inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        return self._run(*inputs)

    def for_any_batch(self, *inputs: Tensor) -> Any:
        """An error where a size of a batch is taken for a constant."""
        for x in inputs:
            mark_dynamic(x, 0)
        return self._run(*inputs)
