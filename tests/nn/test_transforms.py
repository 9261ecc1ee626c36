"""torch.fx and torch.vmap through factored layers: every format, every path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from tensorlrf.errors import UnsupportedError
from tensorlrf.nn import FactoredLayer, factorize
from tensorlrf.ops import PathTable


def linear() -> tuple[nn.Module, Tensor]:
    return nn.Linear(16, 16), torch.randn(3, 16)


def conv1d() -> tuple[nn.Module, Tensor]:
    return nn.Conv1d(8, 8, 3, padding=1), torch.randn(2, 8, 7)


def conv2d() -> tuple[nn.Module, Tensor]:
    return nn.Conv2d(8, 8, 3, padding=1), torch.randn(2, 8, 6, 5)


def channels_last() -> tuple[nn.Module, Tensor]:
    layer, x = conv2d()
    return layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def padded() -> tuple[nn.Module, Tensor]:
    return nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), torch.randn(2, 8, 6, 5)


def grouped() -> tuple[nn.Module, Tensor]:
    return nn.Conv2d(8, 8, 3, groups=2), torch.randn(2, 8, 6, 5)


def conv3d() -> tuple[nn.Module, Tensor]:
    return nn.Conv3d(4, 4, 3, padding=1), torch.randn(2, 4, 4, 3, 5)


def embedding() -> tuple[nn.Module, Tensor]:
    return nn.Embedding(40, 16), torch.randint(0, 40, (3, 4))


MATRIX = ("svd", "cp", "tucker", "kron", "tt", "tr", "blr", "monarch", "blast")
KERNEL = ("svd", "cp", "tucker", "kron", "tt")
CASES = [
    *((linear, method) for method in MATRIX),
    *((make, m) for make in (conv2d, channels_last, grouped) for m in KERNEL),
    *((make, m) for make in (conv1d, conv3d, padded) for m in ("svd", "cp")),
    *((embedding, method) for method in ("svd", "tt")),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def layer_and_input(request: pytest.FixtureRequest) -> tuple[FactoredLayer, Tensor]:
    torch.manual_seed(0)
    make: Callable[[], tuple[nn.Module, Tensor]]
    make, method = request.param
    layer, x = make()
    return factorize(layer, method, 0.5), x


def test_fx_sees_one_call(layer_and_input: tuple[FactoredLayer, Tensor]) -> None:
    layer, x = layer_and_input
    for path in layer.timed_paths:
        layer.path_table = PathTable.single(path)
        model = nn.Sequential(layer, nn.Tanh())
        graph = fx.symbolic_trace(model)
        assert [n.op for n in graph.graph.nodes].count("call_module") == 2
        assert graph.get_submodule("0") is layer
        torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)


def test_fx_of_a_layer_alone_says_what_to_trace() -> None:
    layer = factorize(nn.Linear(8, 8), "svd", 2)
    with pytest.raises(UnsupportedError, match=r"nn\.Sequential\(layer\)"):
        fx.symbolic_trace(layer)


def test_vmap_is_a_loop(layer_and_input: tuple[FactoredLayer, Tensor]) -> None:
    layer, x = layer_and_input
    many = torch.stack([x, x.flip(0), x.roll(1, -1)])
    for path in layer.timed_paths:
        layer.path_table = PathTable.single(path)
        together = torch.vmap(layer)(many)
        for y, one in zip(together, many, strict=True):
            torch.testing.assert_close(y, layer(one))
        if not isinstance(layer, nn.Embedding) and x.is_floating_point():
            torch.testing.assert_close(torch.vmap(layer)(x), layer(x))


def test_gradients_per_sample(layer_and_input: tuple[FactoredLayer, Tensor]) -> None:
    layer, x = layer_and_input
    if not x.is_floating_point():
        x = x[:2]
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, parameters, (one[None],))
        return y.square().mean()

    for path in layer.timed_paths:
        layer.path_table = PathTable.single(path)
        each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
        for k, one in enumerate(x):
            expected = torch.autograd.grad(loss(parameters, one), list(parameters.values()))
            for name, g in zip(parameters, expected, strict=True):
                torch.testing.assert_close(each[name][k], g, rtol=1e-4, atol=1e-6)
