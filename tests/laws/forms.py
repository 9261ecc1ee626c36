"""The laws that every form obeys: what layers on a format do, by each of their paths.

A test subclasses `FormLaws`, is called Test..., and says of what it has samples: for each kind of
layer the factors, the torch layer that has their weight, and an input.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tensorlrf import ops
from tensorlrf.factors import Factors
from tensorlrf.nn import FactoredEmbedding, FactoredLayer, factored_type
from tensorlrf.nn.stock import to_stock_layer
from tensorlrf.ops import PathTable
from tensorlrf.ops.fused import path_names
from tests.laws.compiled import FEW, batch
from tests.laws.stock import check_stock
from tests.traced import Traced

Sample = tuple[Factors, Any, Tensor]
EXACT = {"rtol": 1e-10, "atol": 1e-10}
"""Of a few hundred products and sums of numbers near one, in float64."""


class FormLaws:
    """Subclass it, name the class Test..., and give `samples`."""

    def samples(self) -> Iterator[Sample]:
        """(factors in float64, the torch layer with their weight and a bias, two inputs in one) for
        each kind of layer that the form has."""
        raise NotImplementedError

    def layers(self) -> Iterator[tuple[FactoredLayer, Any, Tensor]]:
        """Each layer once for each of its paths, "fused" too, which is the op's reference here."""
        for factors, dense, x in self.samples():
            kind = factored_type(dense)
            assert kind is not None
            layer = kind.from_factors(factors, dense).eval()
            for path in ("dense", *path_names(factors, layer._layer)):
                on_path: FactoredLayer = copy.deepcopy(layer)
                on_path._run_by(PathTable.single(path))
                yield on_path, dense, x

    # ---- what it computes -------------------------------------------------------------------

    def test_every_path_is_the_dense_layer(self) -> None:
        for layer, dense, x in self.layers():
            torch.testing.assert_close(layer(x), dense(x), **EXACT)
            for one in (x[0], x[:0]):  # without a batch, and an empty one
                torch.testing.assert_close(layer(one), dense(one), **EXACT)

    def test_the_bias_is_added_once_on_every_path(self) -> None:
        for layer, dense, x in self.layers():
            if layer.bias is not None:
                before = layer(x)
                layer.bias.data += 1
                torch.testing.assert_close(layer(x), before + 1, **EXACT)
                layer.bias = None
                torch.testing.assert_close(layer(x), self._without_bias(dense)(x), **EXACT)

    def _without_bias(self, dense: nn.Module) -> nn.Module:
        bare: Any = copy.deepcopy(dense)
        bare.bias = None
        return bare  # type: ignore[no-any-return]

    def test_gradients_are_those_of_the_dense_layer(self) -> None:
        """Of the input and of every tensor that the layer keeps."""
        for layer, _, x in self.layers():
            leaves = [p for p in layer.parameters() if p.numel()]
            x = x.requires_grad_() if x.is_floating_point() else x
            y = layer(x)
            torch.manual_seed(0)
            dy = torch.randn_like(y)
            wanted = [*leaves, x] if x.requires_grad else leaves
            got = torch.autograd.grad(y, wanted, dy)
            layer._run_by(PathTable.single("dense"))
            for ours, theirs in zip(got, torch.autograd.grad(layer(x), wanted, dy), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    # ---- what it is said to do --------------------------------------------------------------

    def test_cost_counts_what_runs(self) -> None:
        """FLOPs, as torch counts them: of products and convolutions."""
        for layer, _, x in self.layers():
            path = layer.path_table.paths[0]
            if path == "fused":
                continue  # counted as on a GPU
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                y = layer(x)
            factors, rows = layer.factors, layer._rows(x)
            if isinstance(layer, FactoredEmbedding):
                cost = ops.embedding_cost(factors, path, rows)
            elif y.ndim == 2:
                cost = ops.linear_cost(factors, path, rows)
            else:
                conv: Any = layer
                padded = F.pad(x, conv._pad_ahead) if conv._pad_ahead else x
                stride, padding, dilation = conv._geometry
                size = (x.shape[0], *padded.shape[2:])
                places = ops.Positions.of(size, factors.shape[2:], stride, padding, dilation)
                cost = ops.conv_cost(factors, path, places)
            assert cost.flops == counter.get_total_flops(), (layer, path)

    def test_code_is_straight(self) -> None:
        """One call a line, and nothing that is walked or decided on the way."""
        for layer, _, _ in self.layers():
            for lowered in layer._runs.values():
                head, *lines = inspect.getsource(lowered.run).strip().splitlines()
                assert head.startswith("def lowered(x, ")
                words = {word for line in lines for word in line.split()}
                assert words.isdisjoint({"for", "while", "if", "else", "lambda", "try:"})

    # ---- what becomes of it -----------------------------------------------------------------

    def test_export_computes_the_same_in_layers_of_torch(self) -> None:
        """With a bias and without; the kernel becomes the chain."""
        for layer, _, x in self.layers():
            path = layer.path_table.paths[0]
            check_stock(layer, path, x)
            layer.bias = None
            check_stock(layer, path, x)
            if path == "fused":
                fused, chain = to_stock_layer(layer, path), to_stock_layer(layer, "chain")
                assert torch.equal(fused(x), chain(x))

    def test_state_dict_copies_and_pickles(self) -> None:
        for layer, _, x in self.layers():
            y = layer(x)
            again = pickle.loads(pickle.dumps(layer))
            torch.testing.assert_close(again(x), y, rtol=0, atol=0)
            for p in again.parameters():
                p.data.zero_()
            assert not again(x).any()
            again.load_state_dict(layer.state_dict())
            torch.testing.assert_close(again(x), y, rtol=0, atol=0)

    def test_autocast_runs_it_as_torch_runs_its_own(self) -> None:
        for layer, dense, x in self.layers():
            small, own = layer.float(), copy.deepcopy(dense).float()
            given = x.float() if x.is_floating_point() else x
            exact = own(given)
            with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                y, theirs = small(given), own(given)
            if x.is_floating_point():
                assert y.dtype == theirs.dtype == torch.bfloat16
            # Some products in a row, each rounded to 8 bits.
            scale = exact.abs().max()
            torch.testing.assert_close(y.float() / scale, exact / scale, rtol=0, atol=0.1)

    # ---- all of them traced at once ---------------------------------------------------------

    def test_all_compile_into_one_graph_for_any_batch(self) -> None:
        """Which keeps what it may need for gradients, and reads the parameters as they are."""
        beside = self.beside()
        compiled = Traced(beside)
        for times in FEW:
            inputs = beside.batches(times)
            for ours, eager in zip(compiled.for_any_batch(*inputs), beside(*inputs), strict=True):
                torch.testing.assert_close(ours, eager, **EXACT)
            for p in beside.parameters():
                p.data.mul_(1.25)
        assert compiled.graphs == 1

    @pytest.mark.slow
    def test_compiled_training_follows_the_eager_one(self) -> None:
        beside = self.beside()
        compiled = Traced(beside, "aot_eager")
        leaves = [p for p in beside.parameters() if p.requires_grad]
        for times in FEW:
            inputs, found = beside.batches(times), []
            for run in (compiled.for_any_batch, beside):
                loss = torch.stack([y.square().mean() for y in run(*inputs)]).sum()
                found.append(torch.autograd.grad(loss, leaves))
            for ours, eager in zip(*found, strict=True):
                torch.testing.assert_close(ours, eager, **EXACT)
        assert compiled.graphs == 1

    # Importing Inductor, torch itself uses what it deprecates.
    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
    @pytest.mark.slow
    def test_inductor_computes_the_same(self) -> None:
        beside = self.beside()
        compiled, inputs = Traced(beside, "inductor"), beside.batches(FEW[0])
        with torch.no_grad():
            for ours, eager in zip(compiled(*inputs), beside(*inputs), strict=True):
                torch.testing.assert_close(ours, eager, **EXACT)
        assert compiled.graphs == 1

    @pytest.mark.slow
    def test_all_are_exported_for_any_batch(self) -> None:
        beside = self.beside()
        shapes = (tuple({0: Dim.DYNAMIC} for _ in beside.inputs),)
        program = export(beside, beside.batches(FEW[0]), dynamic_shapes=shapes)
        runner = program.module()
        assert dict(runner.named_parameters()).keys() == dict(beside.named_parameters()).keys()
        inputs = beside.batches(FEW[1])
        for ours, eager in zip(runner(*inputs), beside(*inputs), strict=True):
            torch.testing.assert_close(ours, eager, **EXACT)

    def beside(self) -> Beside:
        return Beside([(layer, x) for layer, _, x in self.layers()])


class Beside(nn.Module):
    """Each of the layers on its own input."""

    def __init__(self, pairs: list[tuple[nn.Module, Tensor]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer for layer, _ in pairs])
        self.inputs = [x for _, x in pairs]

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]

    def batches(self, size: int) -> tuple[Tensor, ...]:
        return tuple(batch(x, size) for x in self.inputs)
