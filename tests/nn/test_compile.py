"""What torch.compile makes of layers by its own backend, and of frozen ones; the laws that every
layer obeys under it are in `tests/laws/compiled.py` and `tests/laws/forms.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from tensorlrf import ops
from tensorlrf.factors import Factors
from tensorlrf.nn import FactoredLinear
from tensorlrf.ops import PathTable
from tests.draws import seeded
from tests.ops import test_form_laws
from tests.ops.samples import random_factors


class OfRingsAndBlocks(test_form_laws.OfMatrices):
    def matrices(self) -> Iterator[Factors]:
        yield from (random_factors(format, (5, 4)) for format in ("tr", "blast"))


# Importing Inductor, torch itself uses what it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_inductor_computes_the_same_on_every_path_of_two_formats() -> None:
    """One of the slow laws, in every run."""
    OfRingsAndBlocks().test_inductor_computes_the_same()
    torch.compiler.reset()


# As above.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_frozen_layer_is_compiled_with_its_weight_until_it_is_thawed() -> None:
    layer = FactoredLinear(random_factors("lowrank", (6, 4))).eval()
    layer.path_table = PathTable.single("dense")
    layer.freeze()
    x = torch.ones(3, 4, dtype=torch.float64)
    products = []
    torch.compiler.reset()

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        products.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    with torch.no_grad():
        before = layer(x)
        torch.testing.assert_close(compiled(x), before)
        assert products == [1]
        layer.left.data.mul_(2)
        torch.testing.assert_close(compiled(x), before)
        layer.thaw()
        torch.testing.assert_close(compiled(x), 2 * before)
        assert len(products) == 2
        assert products[1] > 1
        layer.freeze()
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), 2 * before)
    # With grad the graph is another one, and goes through the factors.
    compiled(x).sum().backward()
    assert layer.left.grad is not None
    assert layer.is_frozen


@pytest.mark.parametrize("strict", [False, True])
def test_an_op_that_chooses_its_path_is_exported_for_any_batch(strict: bool) -> None:
    class Op(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ops.linear(x, factors)

    factors = random_factors("lowrank", (6, 4))
    program = export(Op(), (seeded(11, 4),), dynamic_shapes=({0: Dim.DYNAMIC},), strict=strict)
    x = seeded(13, 4)
    torch.testing.assert_close(program.module()(x), ops.linear(x, factors))
