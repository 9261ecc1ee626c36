"""torch.fx and torch.vmap through factored layers: every format, every path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from tensorlrf.errors import UnsupportedError
from tensorlrf.nn import factorize
from tensorlrf.ops import PathTable
from tests.laws.layers import Case
from tests.nn.samples import factored, input_of, of_kind
from tests.nn.test_layer import CASES

SLIDING = {
    "reflected": {"padding_mode": "reflect"},
    "strided": {"stride": 2, "dilation": 2, "padding": 2},
}
CASES = [
    *CASES,
    *(
        Case(name, lambda s, o=o: of_kind("cp", "conv", s, **o), factored, input_of("conv"))
        for name, o in SLIDING.items()
    ),
    Case(
        "channels_last",
        lambda s: of_kind("tucker", "conv", s),
        lambda f, like: factored(f, like.to(memory_format=torch.channels_last)),
        input_of("conv").to(memory_format=torch.channels_last),
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_fx_sees_one_call(case: Case) -> None:
    layer, x = case.layer(), case.x
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


@every_case
def test_vmap_is_a_loop_with_gradients_per_sample(case: Case) -> None:
    layer, x = case.layer(), case.x
    many = torch.stack([x, x.flip(0), x.roll(1, -1)])
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, parameters, (one[None],))
        return y.square().mean()

    for path in layer.timed_paths:
        layer.path_table = PathTable.single(path)
        for y, one in zip(torch.vmap(layer)(many), many, strict=True):
            torch.testing.assert_close(y, layer(one))
        if x.is_floating_point():
            torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
        each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
        for k, one in enumerate(x):
            expected = torch.autograd.grad(loss(parameters, one), list(parameters.values()))
            for name, g in zip(parameters, expected, strict=True):
                torch.testing.assert_close(each[name][k], g)
