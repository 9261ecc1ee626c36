"""Factored layers are good citizens among torch modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils.parametrize import register_parametrization

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.nn import FactoredLayer, FactoredLinear
from tensorlrf.ops import PathTable
from tests.nn.samples import (
    FORMATS,
    MATRIX_FORMATS,
    dense_conv,
    dense_linear,
    factored,
    input_of,
    of_kind,
    random_factors,
)

LAYERS = [(format, kind) for format in FORMATS for kind in ("linear", "conv")]
LAYERS += [
    (format, kind) for format in ("lowrank", "cp", "tucker") for kind in ("conv1d", "grouped")
]
LAYERS += [(format, "linear") for format in MATRIX_FORMATS]
LAYERS += [("kron", "grouped"), ("tt", "grouped"), ("tt", "conv1d"), ("kron", "conv3d")]
LAYERS += [("tucker_partial", "conv3d"), ("lowrank", "conv3d"), ("tucker_partial", "grouped1d")]


def make(format: str, kind: str, seed: int = 0) -> FactoredLayer:
    return factored(*of_kind(format, kind, seed))


def example(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return input_of(kind, dtype)


@pytest.mark.parametrize(("format", "kind"), LAYERS)
class TestEveryLayer:
    def test_parameters_are_the_tensors_of_the_factors(self, format: str, kind: str) -> None:
        layer = make(format, kind)
        named = dict(layer.named_parameters())
        bias = named.pop("bias")
        assert isinstance(bias, nn.Parameter)
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

    def test_factors_given_are_copied(self, format: str, kind: str) -> None:
        f, like = of_kind(format, kind)
        before = f.map(torch.clone)
        state = {name: t.clone() for name, t in like.state_dict().items()}
        layer = factored(f, like)
        with torch.no_grad():
            for p in layer.parameters():
                p.mul_(2)
        for name, t in f.tensors().items():
            assert torch.equal(t, before.tensors()[name])
        for name, t in like.state_dict().items():
            assert torch.equal(t, state[name])

    def test_state_dict_round_trip(self, format: str, kind: str) -> None:
        layer, other = make(format, kind), make(format, kind, seed=7)
        x = example(kind)
        other(x)
        layer.path_table = PathTable.single("dense")
        state = layer.state_dict()
        named = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        assert set(state) == set(named)
        assert other.load_state_dict(state, strict=True).missing_keys == []
        other.path_table = layer.path_table
        assert torch.equal(other(x), layer(x))

    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_copies_compute_the_same_and_are_independent(
        self, format: str, kind: str, how: str
    ) -> None:
        layer, x = make(format, kind), example(kind)
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
    def test_dtype_can_be_changed(self, format: str, kind: str, dtype: torch.dtype) -> None:
        layer = make(format, kind).to(dtype)
        assert all(p.dtype == dtype for p in layer.parameters())
        for path in layer.paths:
            layer.path_table = PathTable.single(path)
            y = layer(example(kind, dtype))
            assert y.dtype == dtype
            assert torch.isfinite(y).all()

    def test_vector_of_parameters(self, format: str, kind: str) -> None:
        layer, x = make(format, kind).eval(), example(kind)
        layer.path_table = PathTable.single("dense")
        vector = parameters_to_vector(layer.parameters()).detach()
        with torch.no_grad():
            before = layer(x)
            vector_to_parameters(torch.zeros_like(vector), layer.parameters())
            assert torch.count_nonzero(layer(x)) == 0
            vector_to_parameters(vector, layer.parameters())
            assert torch.equal(layer(x), before)

    def test_freezing_leaves_only_the_input_in_the_graph(self, format: str, kind: str) -> None:
        layer, x = make(format, kind).requires_grad_(False), example(kind)
        for path in layer.paths:
            layer.path_table = PathTable.single(path)
            assert not layer(x).requires_grad
            assert layer(x.clone().requires_grad_()).requires_grad

    def test_moving_to_another_kind_of_device_remakes_the_path_table(
        self, format: str, kind: str
    ) -> None:
        layer = make(format, kind)
        default = layer.path_table
        tuned = PathTable(((3, "dense"), (None, "chain")))
        layer.path_table = tuned
        assert layer.float().double().path_table == tuned
        layer.to("meta")
        assert layer(example(kind).to("meta")).device.type == "meta"
        assert layer.path_table == default  # meta tensors are planned for the CPU
        layer.path_table = tuned
        layer.load_state_dict(make(format, kind).state_dict(), assign=True)
        assert layer.factors.device.type == "cpu"
        assert layer.path_table == default
        assert torch.equal(layer(example(kind)), make(format, kind)(example(kind)))

    def test_autocast_runs_every_path(self, format: str, kind: str) -> None:
        layer, x = make(format, kind).float(), example(kind, torch.float32)
        for path in layer.paths:
            layer.path_table = PathTable.single(path)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert layer(x).dtype == torch.bfloat16
            assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_flags_of_the_layer_are_taken_over(kind: str) -> None:
    shape = (5, 4) if kind == "linear" else (5, 4, 3, 3)
    f = random_factors("cp", shape)
    for weight_flag, bias_flag, training in ((True, False, False), (False, True, True)):
        like = (dense_linear(f) if kind == "linear" else dense_conv(f)).train(training)
        like.weight.requires_grad_(weight_flag)
        assert like.bias is not None
        like.bias.requires_grad_(bias_flag)
        layer = factored(f, like)
        assert layer.training == training
        for name, p in layer.named_parameters():
            assert p.requires_grad == (bias_flag if name == "bias" else weight_flag)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_dtype_of_the_layer_is_taken_over_and_no_bias_is_added(kind: str) -> None:
    shape = (5, 4) if kind == "linear" else (5, 4, 3, 3)
    f = random_factors("cp", shape)
    like = (dense_linear if kind == "linear" else dense_conv)(f, bias=False).to(torch.bfloat16)
    layer = factored(f, like)
    assert layer.bias is None
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert f.dtype == torch.float64


def test_a_step_of_an_optimiser_moves_the_weight() -> None:
    layer, x = make("cp", "conv"), example("conv")
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = layer(x).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_a_parametrized_factor_is_what_runs() -> None:
    class Doubled(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return 2 * t

    layer, x = make("lowrank", "linear").eval(), example("linear")
    layer.bias = None
    for path in layer.paths:
        layer.path_table = PathTable.single(path)
        plain = layer(x)
        twin = copy.deepcopy(layer)
        register_parametrization(twin, "left", Doubled())
        torch.testing.assert_close(twin(x), 2 * plain, rtol=1e-14, atol=0)
        with torch.no_grad():
            torch.testing.assert_close(twin(x), 2 * plain, rtol=1e-14, atol=0)


def test_a_path_table_must_fit_the_layer() -> None:
    layer = make("lowrank", "conv")
    with pytest.raises(ArgumentError, match="'fold' is unknown; choose one of dense, chain"):
        layer.path_table = PathTable.single("fold")
    with pytest.raises(ArgumentError, match=r"path_table='chain' is a str; .*single\('chain'\)"):
        layer.path_table = "chain"  # type: ignore[assignment]


def test_a_bias_must_fit_the_factors() -> None:
    f = random_factors("lowrank", (5, 4))
    with pytest.raises(ShapeError, match=r"bias is \(4,\); it must be None or a tensor \(5,\)"):
        FactoredLinear(f, torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ArgumentError, match=r"bias is torch\.float32"):
        FactoredLinear(f, torch.zeros(5))
