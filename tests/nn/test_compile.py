"""Straight code for torch.compile and torch.export, which sees updates of the factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from tensorlrf.nn import FactoredLinear
from tensorlrf.ops import PathTable, linear_paths
from tests.draws import seeded
from tests.nn.samples import assert_as_dense, factored, input_of, of_kind
from tests.ops.samples import STRUCTURED_FORMATS, random_factors, structured

FORMATS = ("lowrank", "cp", "tucker")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


LAYERS = ("linear", "conv", "conv3d", "grouped1d")


class EveryPath(nn.Module):
    """The outputs of a linear layer and of convolutions, by each of their paths, in one graph."""

    def __init__(
        self, format: str, dtype: torch.dtype = torch.float32, padding_mode: str = "zeros"
    ) -> None:
        super().__init__()
        pairs = [
            of_kind(format, kind, 0, dtype, stride=2, padding_mode=padding_mode) for kind in LAYERS
        ]
        self.factors = [f for f, _ in pairs]
        self.like = [like for _, like in pairs]  # no parameters of the model
        self.layers = nn.ModuleList()
        self.input_of = []
        for k, (f, like) in enumerate(pairs):
            for path in factored(f, like).paths:
                self.layers.append(factored(f, like, path))
                self.input_of.append(k)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [m(inputs[k]) for m, k in zip(self.layers, self.input_of, strict=True)]

    def example(self, batch: int = 3) -> tuple[Tensor, ...]:
        return tuple(input_of(kind, self.factors[0].dtype, batch) for kind in LAYERS)

    def check(self, got: list[Tensor], inputs: tuple[Tensor, ...], scale: float = 1.0) -> None:
        """`got` is what the dense layers give, times `scale`."""
        for k, y in zip(self.input_of, got, strict=True):
            assert_as_dense(y / scale, self.factors[k], self.like[k], inputs[k])

    def double_outputs(self) -> None:
        """Twice the output: one factor of each layer and its bias, in place."""
        with torch.no_grad():
            for m in self.layers:
                next(iter(m.factors.tensors().values())).mul_(2)
                m.bias.mul_(2)


# Importing Inductor, torch itself uses what it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("format", FORMATS)
def test_inductor_compiles_every_path_into_one_graph(format: str) -> None:
    model = EveryPath(format).eval()
    inputs = model.example()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        model.check(compiled(*inputs), inputs)
        model.double_outputs()
        model.check(compiled(*inputs), inputs, scale=2.0)
        model.check(model(*inputs), inputs, scale=2.0)


# As above.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_inductor_compiles_every_structured_format_into_one_graph() -> None:
    some = [structured(format, (2, 3, 2, 4), 2) for format in STRUCTURED_FORMATS]
    layers = [FactoredLinear(factors) for factors in some for _ in linear_paths(factors)]
    for layer, path in zip(layers, (p for f in some for p in linear_paths(f)), strict=True):
        layer.path_table = PathTable(((None, path),))
    model = Beside(layers).eval()
    inputs = [seeded(5, layer.in_features, seed=30) for layer in layers]
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        for y, x, layer in zip(compiled(inputs), inputs, layers, strict=True):
            torch.testing.assert_close(y, x @ layer.weight.T, rtol=1e-12, atol=1e-12)


class Beside(nn.Module):
    """Each of the layers on its own input."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]


@pytest.mark.parametrize("format", FORMATS)
def test_compiled_training_follows_the_eager_one(format: str) -> None:
    model = EveryPath(format, torch.float64, "circular")
    inputs = model.example()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the second round after a step
        gradients = []
        for run in (model, compiled):
            model.zero_grad()
            torch.stack([y.square().mean() for y in run(*inputs)]).sum().backward()
            gradients.append([p.grad for p in model.parameters()])
        for eager, graph in zip(*gradients, strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-12, atol=1e-12)
        torch.optim.SGD(model.parameters(), lr=1e-3).step()


def test_a_path_table_costs_one_graph_a_path() -> None:
    layer = FactoredLinear(random_factors("lowrank", (6, 4)))
    layer.path_table = PathTable(((8, "dense"), (None, "chain")))
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(sum("linear" in str(node.target) for node in graph.graph.nodes))
        return graph

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for rows in (3, 5, 8, 9, 20, 31, 4):
        x = torch.ones(rows, 4, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), layer(x))
    assert graphs == [1, 2]  # one product on the rebuilt weight, then two


@pytest.mark.parametrize("format", FORMATS)
def test_export_with_a_dynamic_batch(format: str) -> None:
    model = EveryPath(format, torch.float64, "circular").eval()
    model.double_outputs()
    batch = Dim("batch", min=2)
    shapes = tuple({0: batch} for _ in LAYERS)
    program = export(model, model.example(), dynamic_shapes=(shapes,))
    runner = program.module()
    for size in (2, 7):
        inputs = model.example(size)
        model.check(runner(*inputs), inputs, scale=2.0)
    with torch.no_grad():
        for name, p in runner.named_parameters():
            if name.endswith(("left", "weights", "core", "bias")):
                p.mul_(2)
    inputs = model.example(4)
    model.check(runner(*inputs), inputs, scale=4.0)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("batch", "products"),
    [(Dim("batch", min=2), 2), (Dim("batch", min=2, max=8), 1), (None, 1)],
    ids=["unbounded", "bounded", "fixed"],
)
def test_export_freezes_one_path(strict: bool, batch: Dim | None, products: int) -> None:
    layer = FactoredLinear(random_factors("lowrank", (6, 4)))
    layer.path_table = PathTable(((8, "dense"), (None, "chain")))
    x = torch.ones(3, 4, dtype=torch.float64)
    shapes = None if batch is None else ({0: batch},)
    program = export(layer, (x,), dynamic_shapes=shapes, strict=strict)
    linears = [node for node in program.graph.nodes if "linear" in str(node.target)]
    assert len(linears) == products
    torch.testing.assert_close(program.module()(x), layer(x))


# As above.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_frozen_layer_is_compiled_with_its_weight_until_it_is_thawed() -> None:
    layer = FactoredLinear(random_factors("lowrank", (6, 4))).eval()
    layer.path_table = PathTable.single("dense")
    layer.freeze()
    x = torch.ones(3, 4, dtype=torch.float64)
    products = []

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
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_frozen_layer_is_exported_with_its_weight(kind: str, strict: bool) -> None:
    f, like = of_kind("lowrank", kind)
    layer = factored(f, like, "dense").eval().freeze()
    x = input_of(kind)
    with torch.no_grad():
        program = export(layer, (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), layer(x))
    assert sum("matmul" in str(node.target) for node in program.graph.nodes) == 0
    program = export(layer, (x,), strict=strict)  # with grad: through the factors
    y = program.module()(x)
    torch.testing.assert_close(y, layer(x))
    assert sum("matmul" in str(node.target) for node in program.graph.nodes) == 1
