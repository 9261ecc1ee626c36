"""The dense path keeps its weight exactly as long as it is right, and nowhere else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from tensorlrf.nn import FactoredConv2d, FactoredLinear
from tests.nn.samples import dense_conv, dense_linear, factored, random_factors


def dense_path(kind: str = "linear") -> tuple[FactoredLinear | FactoredConv2d, Tensor]:
    """A layer in eval mode that always rebuilds its weight, and an input."""
    f = random_factors("cp", (5, 4) if kind == "linear" else (5, 4, 3, 3))
    layer = factored(f, dense_linear(f) if kind == "linear" else dense_conv(f), "dense")
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return layer.eval(), x if kind == "linear" else x[..., None, None].expand(3, 4, 5, 6)


def kept(layer: FactoredLinear | FactoredConv2d) -> int:
    return len(layer._dense)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_weight_is_rebuilt_once_in_eval_without_grad(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = dense_path(kind)
    made = []
    keep = type(layer._dense).keep
    monkeypatch.setattr(
        type(layer._dense), "keep", lambda self, *args: (made.append(1), keep(self, *args))
    )
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(layer(x), first)
    assert len(made) == kept(layer) == 1


def test_nothing_is_kept_with_grad_or_in_training() -> None:
    layer, x = dense_path()
    layer(x)
    assert kept(layer) == 0
    layer.train()
    with torch.no_grad():
        layer(x)
    assert kept(layer) == 0


def double_in_place(layer: FactoredLinear | FactoredConv2d) -> None:
    with torch.no_grad():
        layer.get_parameter("weights").mul_(2)


def double_by_optimiser(layer: FactoredLinear | FactoredConv2d) -> None:
    weights = layer.get_parameter("weights")
    weights.grad = -weights.detach().clone()
    torch.optim.SGD([weights], lr=1.0).step()
    weights.grad = None


def double_by_replacing(layer: FactoredLinear | FactoredConv2d) -> None:
    layer.weights = torch.nn.Parameter(2 * layer.get_parameter("weights").detach())


def double_by_data(layer: FactoredLinear | FactoredConv2d) -> None:
    weights = layer.get_parameter("weights")
    weights.data = 2 * weights.data


def double_by_loading(layer: FactoredLinear | FactoredConv2d) -> None:
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    state["weights"] *= 2
    layer.load_state_dict(state)


def double_in_inference_mode(layer: FactoredLinear | FactoredConv2d) -> None:
    with torch.inference_mode():
        layer.get_parameter("weights").mul_(2)


@pytest.mark.parametrize(
    "double",
    [
        double_in_place,
        double_by_optimiser,
        double_by_replacing,
        double_by_data,
        double_by_loading,
        double_in_inference_mode,
    ],
)
def test_results_follow_every_counted_change(double: object) -> None:
    layer, x = dense_path()
    layer.bias = None
    with torch.no_grad():
        before = layer(x)
    assert kept(layer) == 1
    double(layer)  # type: ignore[operator]
    with torch.no_grad():
        # Twice the weights are twice each product: exact in binary.
        assert torch.equal(layer(x), 2 * before)
        assert torch.equal(layer(x), 2 * before)


def test_another_view_of_the_same_memory_is_another_parameter() -> None:
    f = random_factors("lowrank", (4, 4), rank=4)
    layer = factored(f, dense_linear(f, bias=False), "dense").eval()
    x = torch.eye(4, dtype=torch.float64)
    with torch.no_grad():
        before = layer(x)
        layer.left = torch.nn.Parameter(layer.get_parameter("left").detach().T)
        after = layer(x)
        assert torch.equal(after, layer.weight.T)
    assert not torch.equal(after, before)


def test_the_weight_is_let_go_when_the_module_changes() -> None:
    for change in (
        lambda m: m.train(),
        lambda m: m.eval(),
        lambda m: m.to(torch.float64),
        lambda m: m.load_state_dict(m.state_dict()),
    ):
        layer, x = dense_path()
        with torch.no_grad():
            layer(x)
        assert kept(layer) == 1
        change(layer)
        assert kept(layer) == 0


def test_the_weight_is_neither_saved_nor_copied() -> None:
    layer, x = dense_path()
    bare = len(pickle.dumps(layer))
    with torch.no_grad():
        layer(x)
    assert kept(layer) == 1
    assert set(layer.state_dict()) == {"weights", "factors_0", "factors_1", "bias"}
    assert kept(copy.deepcopy(layer)) == 0
    assert kept(pickle.loads(pickle.dumps(layer))) == 0
    assert len(pickle.dumps(layer)) == bare


def test_inference_parameters_are_never_kept() -> None:
    f = random_factors("cp", (5, 4))
    with torch.inference_mode():
        layer = factored(f, dense_linear(f), "dense").eval()
        layer.bias = None
        x = torch.randn(3, 4, dtype=torch.float64)
        before = layer(x)
        assert kept(layer) == 0
        layer.get_parameter("weights").mul_(2)
        assert torch.equal(layer(x), 2 * before)


def test_a_weight_kept_in_inference_mode_serves_outside() -> None:
    layer, x = dense_path()
    with torch.inference_mode():
        before = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), before)
    y = layer(x.clone().requires_grad_())
    y.sum().backward()
    assert layer.get_parameter("weights").grad is not None


def test_stand_ins_for_the_parameters_are_never_kept() -> None:
    layer, x = dense_path()
    layer.bias = None
    doubled = {name: p.detach() for name, p in layer.named_parameters()}
    doubled["weights"] = 2 * doubled["weights"]
    with torch.no_grad():
        before = layer(x)
        assert torch.equal(functional_call(layer, doubled, (x,)), 2 * before)
        assert torch.equal(layer(x), before)
        layer._dense.clear()
        functional_call(layer, doubled, (x,))
        assert kept(layer) == 0


def test_transforms_leave_a_usable_layer() -> None:
    layer, x = dense_path()

    def silent(row: Tensor) -> Tensor:
        with torch.no_grad():
            return layer(row).sum()

    with torch.no_grad():
        want = layer(x)
    layer._dense.clear()
    torch.func.grad(silent)(x)
    with torch.no_grad():
        assert torch.equal(layer(x), want)
        layer._dense.clear()
        torch.vmap(layer)(x)
        assert torch.equal(layer(x), want)


def test_autocast_and_layout_have_weights_of_their_own() -> None:
    layer, x = dense_path("conv")
    layer, x = layer.float(), x.float()
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert torch.equal(layer(x), y)
        layer._dense.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)
        assert kept(layer) == 1
        assert torch.equal(layer(x), y)  # not the weight rounded to bfloat16
        assert layer(last).is_contiguous(memory_format=torch.channels_last)
        assert layer(x.contiguous()).is_contiguous()


def test_the_weight_property_is_free_to_be_changed() -> None:
    layer, x = dense_path()
    with torch.no_grad():
        before = layer(x)
        layer.weight.zero_()
        assert torch.equal(layer(x), before)
