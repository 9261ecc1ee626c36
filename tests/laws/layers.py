"""The laws that every factored layer obeys: it is a good citizen among torch modules.

A test file subclasses `LayerLaws` and parametrises it by the cases that it supplies.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import tensorlrf
from tensorlrf.factors import Factors
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import PathTable


@dataclass(frozen=True)
class Case:
    """A kind of layer on a format.

    parts  from a seed to random factors, float64, and the torch layer that has their weight
    build  from these to the factored layer
    x      an input of that layer; indices of an embedding
    """

    name: str
    parts: Callable[[int], tuple[Factors, Any]]
    build: Callable[[Factors, Any], FactoredLayer]
    x: Tensor

    def layer(self, seed: int = 0) -> FactoredLayer:
        """One of random factors."""
        return self.build(*self.parts(seed))

    def input(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The input, in that dtype where it is in floating point."""
        return self.x.to(dtype) if self.x.is_floating_point() else self.x

    def __str__(self) -> str:
        return self.name


class LayerLaws:
    """Subclass it, name the class Test..., and parametrise it by `case`."""

    def test_parameters_are_the_tensors_of_the_factors(self, case: Case) -> None:
        layer = case.layer()
        named = dict(layer.named_parameters())
        bias = named.pop("bias", None)
        assert (bias is None) == (layer.bias is None)
        tensors = layer.factors.tensors()
        full = [name.replace(".", "_") for name, t in tensors.items() if t.numel()]
        assert list(named) == full
        # Without elements, as the dense blocks of a matrix that has none, it is a buffer.
        assert {**named, **dict(layer.named_buffers())}.keys() == {
            name.replace(".", "_") for name in tensors
        }
        for p, t in zip(named.values(), (t for t in tensors.values() if t.numel()), strict=True):
            # A kernel among the factors is kept as the kernel that runs; all else is itself.
            assert p is t or torch.equal(p.reshape(t.shape), t)

    def test_factors_given_are_copied(self, case: Case) -> None:
        f, like = case.parts(0)
        before = f.map(torch.clone)
        state = {name: t.clone() for name, t in like.state_dict().items()}
        layer = case.build(f, like)
        with torch.no_grad():
            for p in layer.parameters():
                p.mul_(2)
        for name, t in f.tensors().items():
            assert torch.equal(t, before.tensors()[name])
        for name, t in like.state_dict().items():
            assert torch.equal(t, state[name])

    def test_state_dict_round_trip(self, case: Case) -> None:
        layer, other = case.layer(), case.layer(seed=7)
        x = case.input()
        other(x)
        layer.path_table = PathTable.single("dense")
        state = layer.state_dict()
        named = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        assert set(state) == set(named)
        assert other.load_state_dict(state, strict=True).missing_keys == []
        other.path_table = layer.path_table
        assert torch.equal(other(x), layer(x))

    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_copies_compute_the_same_and_are_independent(self, case: Case, how: str) -> None:
        layer, x = case.layer(), case.input()
        layer.path_table = PathTable(((1, "chain"), (None, "dense")))
        twin = copy.deepcopy(layer) if how == "deepcopy" else pickle.loads(pickle.dumps(layer))
        assert twin.path_table == layer.path_table
        assert repr(twin) == repr(layer)
        before = layer(x)
        assert torch.equal(twin(x), before)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        assert torch.equal(layer(x), before)
        assert torch.count_nonzero(twin(x)) == 0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_dtype_can_be_changed(self, case: Case, dtype: torch.dtype) -> None:
        layer = case.layer().to(dtype)
        assert all(p.dtype == dtype for p in layer.parameters())
        for path in layer.paths:
            layer.path_table = PathTable.single(path)
            y = layer(case.input(dtype))
            assert y.dtype == dtype
            assert torch.isfinite(y).all()

    def test_vector_of_parameters(self, case: Case) -> None:
        layer, x = case.layer().eval(), case.input()
        layer.path_table = PathTable.single("dense")
        vector = parameters_to_vector(layer.parameters()).detach()
        with torch.no_grad():
            before = layer(x)
            vector_to_parameters(torch.zeros_like(vector), layer.parameters())
            assert torch.count_nonzero(layer(x)) == 0
            vector_to_parameters(vector, layer.parameters())
            assert torch.equal(layer(x), before)

    def test_freezing_leaves_only_the_input_in_the_graph(self, case: Case) -> None:
        layer, x = case.layer().requires_grad_(False), case.input()
        for path in layer.paths:
            layer.path_table = PathTable.single(path)
            assert not layer(x).requires_grad
            if x.is_floating_point():
                assert layer(x.clone().requires_grad_()).requires_grad

    def test_moving_to_another_kind_of_device_remakes_the_path_table(self, case: Case) -> None:
        layer = case.layer()
        default = layer.path_table
        tuned = PathTable(((3, "dense"), (None, "chain")))
        layer.path_table = tuned
        assert layer.float().double().path_table == tuned
        layer.to("meta")
        assert layer(case.input().to("meta")).device.type == "meta"
        assert layer.path_table == default  # meta tensors are planned for the CPU
        layer.path_table = tuned
        layer.load_state_dict(case.layer().state_dict(), assign=True)
        assert layer.factors.device.type == "cpu"
        assert layer.path_table == default
        assert torch.equal(layer(case.input()), case.layer()(case.input()))

    def test_autocast_runs_every_path(self, case: Case) -> None:
        layer, x = case.layer().float(), case.input(torch.float32)
        for path in layer.paths:
            layer.path_table = PathTable.single(path)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert layer(x).dtype == torch.bfloat16
            assert layer(x).dtype == torch.float32

    def test_export_is_in_layers_of_torch(self, case: Case) -> None:
        layer, x = case.layer().eval(), case.input()
        stock = tensorlrf.export(nn.Sequential(layer))
        assert not any(isinstance(m, FactoredLayer) for m in stock.modules())
        torch.testing.assert_close(stock(x), layer(x), rtol=1e-11, atol=1e-11)
        program = torch.export.export(stock, (x,))
        assert torch.equal(program.module()(x), stock(x))

    # ---- training ---------------------------------------------------------------------------

    def test_gradients_are_those_through_the_dense_weight(self, case: Case) -> None:
        """Of the torch layer's weight, pulled back to the factors, all of which they reach."""
        f, like = case.parts(0)
        layer, x = case.build(f, like), case.input()
        leaves = [p for name, p in layer.named_parameters() if name != "bias"]
        y = like.requires_grad_()(x)
        dy = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
        dweight, *rest = torch.autograd.grad(y, list(like.parameters()), dy)
        expected = [*torch.autograd.grad(layer.weight.clone(), leaves, dweight), *rest]
        for path in layer.paths:
            layer.path_table = PathTable.single(path)
            found = torch.autograd.grad(layer(x), [*leaves, *[layer.bias][: len(rest)]], dy)
            assert all(map(torch.count_nonzero, found))
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

    def test_a_step_lowers_the_loss_by_what_its_gradients_say(self, case: Case) -> None:
        layer, x = case.layer().train(), case.input()
        for path in layer.paths:
            layer.path_table = PathTable.single(path)
            layer.zero_grad()
            loss = layer(x).square().mean()
            loss.backward()
            slope = sum(float(p.grad.square().sum()) for p in layer.parameters())
            wanted = 1e-5 * loss.item()  # what is of second order is small beside it
            torch.optim.SGD(layer.parameters(), lr=wanted / slope).step()
            assert loss.item() - layer(x).square().mean().item() == pytest.approx(wanted, rel=0.01)

    def test_training_thaws_and_eval_is_of_what_was_learnt(self, case: Case) -> None:
        layer, x = case.layer().eval(), case.input()
        layer.path_table = PathTable.single("dense")
        with torch.no_grad():
            before = layer(x)
            layer.freeze()
            torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-12)
        layer.train()
        assert not layer.is_frozen
        layer(x).square().sum().backward()
        torch.optim.SGD(layer.parameters(), lr=1e-3).step()
        with torch.no_grad():
            learnt = layer(x)
            assert not torch.equal(learnt, before)
            assert torch.equal(layer.eval()(x), learnt)
            torch.testing.assert_close(layer.freeze()(x), learnt, rtol=1e-12, atol=1e-12)
