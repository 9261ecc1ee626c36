"""The laws of a layer that torch.compile or torch.export traces.

A test file subclasses `CompiledLaws` and parametrises it by the cases that it supplies.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import PathTable
from tests.laws.layers import Case
from tests.traced import Traced

FEW, MORE = (11, 13), (17, 19)
"""Sizes of batches, none of them a size of a layer, which would be one symbol with it."""


def batch(x: Tensor, size: int) -> Tensor:
    """The first of x so many times."""
    return torch.cat([x[:1]] * size)


def calls(module: nn.Module, x: Tensor, sizes: Dim | None, *, strict: bool = False) -> list[str]:
    """What the exported program calls, having seen that it computes what the module does."""
    shapes = None if sizes is None else ({0: sizes},)
    program = export(module, (x,), dynamic_shapes=shapes, strict=strict)
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-12)
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


class CompiledLaws:
    """Subclass it, name the class Test..., and parametrise it by `case`."""

    def layer(self, case: Case) -> FactoredLayer:
        """On its dense path for few rows, on the chain for more."""
        layer = case.layer().eval()
        rows = layer._rows(batch(case.x, FEW[-1]))
        layer.path_table = PathTable(((rows, "dense"), (None, "chain")))
        return layer

    def test_a_path_table_costs_one_graph_a_path(self, case: Case) -> None:
        layer = self.layer(case)
        compiled = Traced(layer)
        for path, (sizes, graphs) in enumerate(((FEW, 1), (MORE, 2), (FEW, 2))):
            for size in sizes:
                x = batch(case.x, size)
                torch.testing.assert_close(
                    compiled.for_any_batch(x), layer(x), rtol=1e-12, atol=1e-12
                )
                assert compiled.graphs == graphs, (path, size)

    @pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_an_exported_program_takes_one_path(self, case: Case, strict: bool) -> None:
        """That of all the batches it may meet; it asks nothing of their size."""
        layer, x = self.layer(case), batch(case.x, FEW[0])
        dense, chain = (
            calls(layer._on_path(path), x, Dim("batch", min=2)) for path in ("dense", "chain")
        )
        assert dense != chain
        assert calls(layer, x, Dim("batch", min=2), strict=strict) == chain
        assert calls(layer, x, Dim("batch", min=2, max=FEW[-1]), strict=strict) == dense
        assert calls(layer, x, None, strict=strict) == calls(layer._on_path("dense"), x, None)

    def test_a_frozen_layer_is_exported_with_its_weight(self, case: Case) -> None:
        """And with grad goes through its factors."""
        layer, x = self.layer(case), case.input()
        layer = layer._on_path("dense")
        thawed = calls(layer, x, None)
        layer.freeze()
        assert calls(layer, x, None) == thawed
        with torch.no_grad():
            frozen = calls(layer, x, None)
        assert len(frozen) < len(thawed)
        assert frozen == thawed[-len(frozen) :]
