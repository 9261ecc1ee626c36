"""By default nothing is kept; a frozen layer keeps its dense weight as long as it is told to."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

import tensorlrf
from tensorlrf.errors import UnsupportedError
from tensorlrf.nn import FactoredEmbedding, FactoredLayer, FactoredLinear, _freezable
from tensorlrf.ops import PathTable
from tests.nn.samples import KINDS, dense_conv, dense_linear, factored, input_of, of_kind
from tests.ops.samples import FORMATS, MATRIX_FORMATS, random_factors

EVERY = [
    *((format, kind) for format in FORMATS for kind in KINDS if format != "tucker_partial"),
    *((format, "linear") for format in MATRIX_FORMATS),
    *((format, "embedding") for format in ("lowrank", "cp", "tucker", "tt")),
]


def on_dense(format: str = "cp", kind: str = "linear") -> tuple[FactoredLayer, Tensor]:
    """A layer in eval mode on the path "dense", and an input."""
    if kind == "embedding":
        layer: FactoredLayer = FactoredEmbedding(random_factors(format, (6, 4)))
        layer.path_table = PathTable.single("dense")
        return layer.eval(), torch.tensor([[0, 5], [3, 3]])
    f, like = of_kind(format, kind)
    return factored(f, like, "dense").eval(), input_of(kind)


@pytest.fixture
def rebuilds(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one whenever a dense weight is made."""
    made: list[object] = []
    rebuild = _freezable.dense_weight
    monkeypatch.setattr(
        _freezable, "dense_weight", lambda factors: (made.append(1), rebuild(factors))[1]
    )
    return made


# ---- nothing is kept -----------------------------------------------------------------------------


UNCOUNTED = {
    "data mul": "p.data.mul_(2)",
    "data copy": "p.data.copy_(2 * p.data)",
    "numpy": "p.detach().numpy()[...] *= 2",
    "view": "p.data.view(-1).mul_(2)",
}
COUNTED = {
    "in place": "with torch.no_grad(): p.mul_(2)",
    "inference mode": "with torch.inference_mode(): p.mul_(2)",
    "optimiser": "p.grad = -p.detach().clone(); torch.optim.SGD([p], lr=1.0).step(); p.grad = None",
    "data": "p.data = 2 * p.data",
}
"""How a parameter p is doubled, so that torch counts it as a write, or does not."""


def double(p: nn.Parameter, how: str) -> None:
    exec((UNCOUNTED | COUNTED)[how], {"torch": torch, "p": p})


def without_bias(layer: FactoredLayer) -> FactoredLayer:
    layer.bias = None
    return layer


@pytest.mark.parametrize("how", [*UNCOUNTED, *COUNTED])
@pytest.mark.parametrize(("format", "kind"), EVERY)
def test_every_write_is_seen(format: str, kind: str, how: str) -> None:
    layer, x = on_dense(format, kind)
    for attribute in layer._names.values():
        if attribute in layer._parameters:  # without elements it is none
            with torch.no_grad():
                before = layer(x)
                double(layer.get_parameter(attribute), how)
                assert not torch.equal(layer(x), before)
                assert torch.equal(layer(x), copy.deepcopy(layer)(x))


def test_a_target_network_follows_step_by_step() -> None:
    layer, x = on_dense("lowrank")
    target = copy.deepcopy(layer)
    with torch.no_grad():
        for step in range(3):
            for p in layer.parameters():
                p.add_(0.1 * (step + 1))
            for ours, theirs in zip(target.parameters(), layer.parameters(), strict=True):
                ours.data.mul_(0.0)
                ours.data.add_(theirs.data)
            assert torch.equal(target(x), layer(x))


def test_the_weight_is_rebuilt_in_each_call_and_counted_by_the_cost_model(
    rebuilds: list[object],
) -> None:
    layer, x = on_dense()
    with torch.no_grad():
        layer(x)
        layer(x)
    assert len(rebuilds) == 2
    # A square weight of half its rank: kept it costs what the chain does, rebuilt far more.
    big = FactoredLinear(random_factors("lowrank", (512, 512), 300, dtype=torch.float32))
    assert big.path_table.lookup(1) == big.path_table.lookup(64) == "chain"
    assert big.freeze().path_table.lookup(64) == "dense"
    assert big.thaw().path_table.lookup(64) == "chain"


# ---- frozen --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "kind"), EVERY)
def test_a_frozen_layer_makes_its_weight_once(
    format: str, kind: str, rebuilds: list[object]
) -> None:
    layer, x = on_dense(format, kind)
    with torch.no_grad():
        before = layer(x)
        del rebuilds[:]
        assert layer.freeze() is layer
        for _ in range(3):
            torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-12)
    assert len(rebuilds) == 1
    assert layer.is_frozen
    assert "frozen" in repr(layer)
    with torch.no_grad():
        layer.thaw()(x)
    assert len(rebuilds) == 2
    assert not layer.is_frozen
    assert "frozen" not in repr(layer)


def test_a_forward_with_grad_rebuilds_for_that_call(rebuilds: list[object]) -> None:
    layer, x = on_dense()
    layer.freeze()
    layer(x).sum().backward()
    assert layer.get_parameter("weights").grad is not None
    assert layer.is_frozen
    assert len(rebuilds) == 2
    layer.requires_grad_(False)
    wanted = x.clone().requires_grad_()
    layer(wanted).sum().backward()  # with respect to x alone, for which the kept weight is right
    torch.testing.assert_close(wanted.grad, layer.factors.to_dense().sum(0).expand_as(x))
    assert len(rebuilds) == 2


@pytest.mark.parametrize("how", COUNTED)
def test_what_torch_counts_thaws(how: str) -> None:
    layer, x = on_dense()
    without_bias(layer).freeze()
    with torch.no_grad():
        before = layer(x)
        double(layer.get_parameter("weights"), how)
        assert torch.equal(layer(x), 2 * before)
    assert not layer.is_frozen


def test_another_view_of_the_same_memory_is_another_parameter() -> None:
    f = random_factors("lowrank", (4, 4), rank=4)
    layer = factored(f, dense_linear(f, bias=False), "dense").eval().freeze()
    x = torch.eye(4, dtype=torch.float64)
    with torch.no_grad():
        layer.left = nn.Parameter(layer.get_parameter("left").detach().T)
        assert torch.equal(layer(x), layer.factors.to_dense().T)


def test_writes_through_data_are_not_seen_while_frozen() -> None:
    layer, x = on_dense()
    without_bias(layer).freeze()
    with torch.no_grad():
        before = layer(x)
        layer.get_parameter("weights").data.mul_(2)
        assert torch.equal(layer(x), before)
        assert torch.equal(layer.thaw()(x), 2 * before)


def load_state(layer: nn.Module, assign: bool = False) -> None:
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    layer.load_state_dict(state, assign=assign)


@pytest.mark.parametrize(
    ("change", "thaws"),
    [
        (lambda m: m.train(), True),
        (lambda m: m.eval(), False),
        (load_state, True),
        (lambda m: load_state(m, assign=True), True),
        (lambda m: m.to(torch.float64), False),
        (lambda m: m.cpu(), False),
        (lambda m: m.half(), True),
        (lambda m: m.float(), True),
        (lambda m: m.to("meta"), True),
        (lambda m: m.to(memory_format=torch.channels_last), True),
        (lambda m: m.share_memory(), True),
        (lambda m: m.requires_grad_(False), False),
        (lambda m: m.zero_grad(), False),
    ],
)
@pytest.mark.parametrize("whole", [lambda layer: layer, nn.Sequential])
def test_what_thaws(
    change: Callable[[nn.Module], object], thaws: bool, whole: Callable[[nn.Module], nn.Module]
) -> None:
    layer, _ = on_dense("lowrank", "conv")
    model = whole(layer.freeze())
    change(model)
    assert layer.is_frozen is not thaws


def test_the_table_follows_unless_it_was_set_by_hand() -> None:
    f = random_factors("lowrank", (64, 64), 40, dtype=torch.float32)
    layer = FactoredLinear(f)
    free, by_hand = layer.path_table, PathTable.from_choices({4: "dense", 64: "chain"})
    layer.freeze()
    assert layer.path_table == PathTable.from_cost(f, rebuild=False) != free
    assert layer.train().path_table == free
    layer.path_table = by_hand
    assert layer.freeze().path_table is by_hand
    assert layer.thaw().path_table is by_hand


def test_measurements_of_a_frozen_layer_are_those_of_another_device() -> None:
    layer, _ = on_dense("lowrank")
    layer._choose()
    key, default = layer.device_key, layer.path_table
    layer.freeze()
    assert layer.device_key == f"{key}, frozen"
    layer.set_measured(layer.device_key, PathTable.single("dense"))
    layer.thaw()
    assert layer.path_table == default
    assert layer.freeze().path_table == PathTable.single("dense")


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_weight_is_in_no_state_and_copies_make_their_own(kind: str) -> None:
    layer, x = on_dense(kind=kind)
    bare, names = len(pickle.dumps(layer)), set(layer.state_dict())
    layer.freeze(memory_format=torch.channels_last if kind == "conv" else torch.contiguous_format)
    assert layer._frozen is not None
    assert abs(len(pickle.dumps(layer)) - bare) < 16
    assert set(layer.state_dict()) == names
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    with torch.no_grad():
        want = layer(x)
        for twin in (
            copy.deepcopy(layer),
            copy.copy(layer),
            pickle.loads(pickle.dumps(layer)),
            torch.load(file, weights_only=False),
        ):
            assert twin.is_frozen
            assert twin._frozen.weight is not layer._frozen.weight
            assert twin._frozen.weight.stride() == layer._frozen.weight.stride()
            assert torch.equal(twin(x), want)
            assert twin.path_table == layer.path_table
    twin = copy.deepcopy(layer)
    double(twin.get_parameter("weights"), "in place")
    assert layer.is_frozen
    with torch.no_grad():
        twin(x)
    assert (layer.is_frozen, twin.is_frozen) == (True, False)


def test_densify_and_export_see_the_factors_not_what_is_kept() -> None:
    layer, _ = on_dense()
    layer.freeze()
    layer.get_parameter("weights").data.mul_(2)
    with torch.no_grad():
        truth = layer.factors.to_dense()
        assert torch.equal(tensorlrf.densify(layer).weight, truth)
        assert torch.equal(tensorlrf.export(layer).weight, truth)
        assert torch.equal(layer.weight, truth)


def test_stand_ins_for_the_parameters_belong_to_one_call() -> None:
    layer, x = on_dense()
    without_bias(layer).freeze()
    doubled = {name: p.detach() for name, p in layer.named_parameters()}
    doubled["weights"] = 2 * doubled["weights"]
    with torch.no_grad():
        before = layer(x)
        assert torch.equal(functional_call(layer, doubled, (x,)), 2 * before)
        assert layer.is_frozen
        assert torch.equal(layer(x), before)


def test_transforms_leave_a_usable_layer() -> None:
    layer, x = on_dense()
    layer.freeze()

    def silent(row: Tensor) -> Tensor:
        with torch.no_grad():
            return layer(row).sum()

    with torch.no_grad():
        want = layer(x)
        torch.func.grad(silent)(x)
        torch.testing.assert_close(torch.vmap(layer)(x), want)
        assert torch.equal(layer(x), want)
    assert layer.is_frozen


def test_inference_parameters_and_computed_ones_are_not_frozen() -> None:
    f = random_factors("cp", (5, 4))
    with torch.inference_mode():
        layer = factored(f, dense_linear(f), "dense").eval()
    with pytest.raises(UnsupportedError, match="inference tensors; leave it as it is"):
        layer.freeze()

    class Half(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return t / 2

    layer, x = on_dense()
    layer.freeze()
    parametrize.register_parametrization(layer, "weights", Half())
    without_bias(layer)
    with torch.no_grad():
        assert torch.equal(layer(x), nn.functional.linear(x, layer.factors.to_dense()))
    with pytest.raises(UnsupportedError, match="parametrised"):
        layer.freeze()
    assert not copy.deepcopy(layer).thaw().is_frozen


def test_a_layer_frozen_in_inference_mode_and_under_autocast_serves_outside() -> None:
    layer, x = on_dense()
    layer, x = layer.float(), x.float()
    with torch.no_grad():
        want = layer(x)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        layer.freeze()
        layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), want)  # not the weight rounded to bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    y = layer(x.clone().requires_grad_())
    y.sum().backward()
    assert layer.get_parameter("weights").grad is not None


def test_a_captured_graph_keeps_the_weight_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = on_dense()
    layer.freeze()
    assert layer._frozen is not None
    kept = layer._frozen.weight

    class OnDevice(Tensor):
        is_cuda = True

    layer._frozen = layer._frozen._replace(weight=kept.as_subclass(OnDevice))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with torch.no_grad():
        layer(x)
    layer.thaw()
    assert [t.data_ptr() for t in layer._captured] == [kept.data_ptr()]
    assert copy.deepcopy(layer)._captured == []


def test_a_kept_kernel_lies_as_asked() -> None:
    f = random_factors("cp", (5, 4, 3, 3))
    layer = factored(f, dense_conv(f), "dense").eval()
    layer.freeze(memory_format=torch.channels_last)
    assert layer._frozen is not None
    assert layer._frozen.weight.is_contiguous(memory_format=torch.channels_last)
