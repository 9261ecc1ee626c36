"""`compress(model, method="modular")`: convolutional networks with fewer channels inside of their
blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf import compress, compress_, fold_batch_norms
from tests.compression.modular.convnets import (
    HEADS,
    LARGE,
    LARGEST,
    NETS,
    ConvGate,
    Net,
    drawn,
    logits,
    modular,
    of,
    pictures,
)
from tests.compression.networks import Snapshot, relative

# Pictures are small, and late blocks see few positions of them.
pytestmark = pytest.mark.filterwarnings("ignore:calibration is thin")


@pytest.mark.parametrize("name", NETS)
def test_blocks_become_narrower_inside_within_the_budget(name: str) -> None:
    model = drawn(name)
    before = Snapshot(model)
    small, report = modular(model, allocation="uniform", skip=HEADS.get(name, ["head"]))
    before.check()
    cut = [row for row in report.layers if row.factored]
    assert cut
    assert all(row.params_after < row.params_before for row in cut)
    assert 0.4 < report.eligible.share <= 0.6
    assert report.model.params_after == sum(p.numel() for p in small.parameters())
    assert report.model.params_after == sum(p.numel() for p in model.parameters()) - sum(
        row.params_before - row.params_after for row in report.layers
    ) - _biases(model, small)
    assert [type(m) for m in small.modules()] == [type(m) for m in model.modules()]
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (
                module.out_channels, module.in_channels // module.groups
            )  # fmt: skip
    batch = pictures(1, seed=9)[0]
    assert logits(small, batch).shape == logits(model, batch).shape
    assert torch.isfinite(logits(small, batch)).all()


def _biases(model: nn.Module, small: nn.Module) -> int:
    """Numbers of biases that went with their outputs, which rows of weights leave out."""
    gone = 0
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            gone += module.bias.numel() - small.get_submodule(name).bias.numel()
    return gone


@pytest.mark.parametrize("name", ["plain", "gated", "linear_gates"])
def test_outer_channels_stay_and_inner_ones_agree(name: str) -> None:
    model = drawn(name)
    small, report = of(name, allocation="uniform")
    for block, whole in zip(small.blocks, model.blocks, strict=True):
        k = block.expand.out_channels
        assert k < 24
        assert block.depthwise.groups == block.depthwise.in_channels == k
        assert block.norm1.num_features == block.norm2.num_features == k
        assert block.project.in_channels == k
        assert block.expand.in_channels == whole.expand.in_channels
        assert block.project.out_channels == whole.project.out_channels
        assert block.norm3.weight.shape == whole.norm3.weight.shape
        if name != "plain":
            assert block.gate.reduce.weight.shape[:2] == (6, k)
            assert block.gate.expand.weight.shape[:2] == (k, 6)
    norm = report.layer("blocks.0.norm1")
    assert norm.params_after == 2 * small.blocks[0].norm1.num_features
    assert not norm.eligible
    assert report.layer("blocks.0.depthwise").factored
    assert report.layer("blocks.0.depthwise").rank == small.blocks[0].expand.out_channels


@pytest.mark.parametrize("name", ["plain", "gated", LARGE])
def test_it_is_nearer_than_what_is_cut_by_size(name: str) -> None:
    """With the same channels and the weights that they have in the given model."""
    model = drawn(name)
    small, _ = modular(model, 0.7, allocation="uniform", skip=HEADS.get(name, ["head"]))
    cut = copy.deepcopy(small)
    for key, module in cut.named_modules():
        for own, tensor in {**dict(module.named_parameters(recurse=False)),
                            **dict(module.named_buffers(recurse=False))}.items():  # fmt: skip
            whole = getattr(model.get_submodule(key), own)
            tensor.data.copy_(whole[tuple(slice(n) for n in tensor.shape)])
    batch = pictures(1, seed=9)[0]
    wanted = logits(model, batch)
    far, near = ((logits(m, batch) - wanted).norm() for m in (cut, small))
    assert near < 0.7 * far


@pytest.mark.parametrize("name", [pytest.param("plain", marks=pytest.mark.slow), "gated"])
def test_the_error_falls_with_the_width(name: str) -> None:
    errors = [of(name, keep, allocation="uniform")[1].model_error for keep in (0.3, 0.6, 0.9, 1.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0
    assert errors[0] > 2 * errors[-2]


@pytest.mark.parametrize("name", [LARGEST if name == "mobilenet" else name for name in NETS])
def test_at_full_width_the_model_is_the_same(name: str) -> None:
    small, report = of(name, 1.0)
    assert report.eligible.share == 1
    model = drawn(name)
    for (key, one), (_, other) in zip(
        small.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), key


# ---- closed forms -----------------------------------------------------------------------------


def twice(model: Any) -> Any:
    """Every channel of every block is there two times, scaled; so half of them tell all."""
    with torch.no_grad():
        for block in model.blocks:
            n = block.expand.out_channels // 2
            for module in (block.expand, block.norm1, block.depthwise, block.norm2):
                for key, t in module.state_dict().items():
                    if t.ndim and key != "num_batches_tracked":
                        t[n:] = t[:n]
            block.norm2.weight[n:] *= 1.5
            block.norm2.bias[n:] *= 1.5
            if isinstance(block.gate, ConvGate):
                block.gate.expand.weight[n:] = block.gate.expand.weight[:n]
                block.gate.expand.bias[n:] = block.gate.expand.bias[:n]
    return model


@pytest.mark.parametrize("gate", [nn.Identity, ConvGate])
def test_channels_that_others_tell_go_without_loss(gate: Callable[[int], nn.Module]) -> None:
    """A squeeze-excite reads those that went out of the others, too."""

    def make() -> nn.Module:
        return Net(gate=lambda n: nn.Identity() if gate is nn.Identity else gate(n), act=F.relu)

    model = twice(drawn(make)).double()
    data = [x.double() for x in pictures()]
    small, report = modular(
        model, 0.5, calibration=data, allocation="uniform", target="independent",
        metric="outputs", batch_norm=False,
    )  # fmt: skip
    assert small.blocks[0].expand.out_channels == 12
    batch = pictures(1, seed=9)[0].double()
    # Moments have the rounding of float32 on their diagonals.
    assert relative(logits(small, batch), logits(model, batch)) < 1e-3
    assert report.model_error < 1e-3


def test_on_linear_channels_it_is_the_regression_on_those_that_stay() -> None:
    """W' = cov(y, a_S) cov(a_S)^-1, and the normalisation behind takes what the means are off."""
    model: Any = drawn(lambda: Net(act=lambda x: x))
    model, data = model.double(), [x.double() for x in pictures()]
    small, _ = modular(
        model, 0.6, calibration=data, holdout=0, allocation="uniform", target="independent",
        metric="outputs", batch_norm=False,
    )  # fmt: skip
    block, own = model.blocks[0], small.blocks[0]
    a = _inputs(model, block.project, data)
    rows = torch.cdist(own.depthwise.weight.flatten(1), block.depthwise.weight.flatten(1)).argmin(1)
    y = a @ block.project.weight.flatten(1).T
    centred, targets = a[:, rows] - a[:, rows].mean(0), y - y.mean(0)
    best = torch.linalg.lstsq(centred, targets).solution.T
    got = own.project.weight.flatten(1)
    lost = [(targets - centred @ w.T).norm() for w in (got, best)]
    # Moments have the rounding of float32 on their diagonals.
    assert lost[0] <= lost[1] * (1 + 1e-3) + 1e-3 * targets.norm()
    wanted, found = (_inputs(m, b.norm3, data).mean(0) - b.norm3.running_mean
                     for m, b in ((model, block), (small, own)))  # fmt: skip
    assert torch.allclose(wanted, found, atol=1e-4)


def _inputs(model: nn.Module, layer: nn.Module, data: list[Tensor]) -> Tensor:
    """(N, channels) of a layer."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    with torch.no_grad():
        for batch in data:
            model(batch)
    handle.remove()
    return torch.cat(found).movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize(
    "target", [pytest.param("independent", marks=pytest.mark.slow), "original"]
)
def test_dead_channels_and_constant_inputs_do_no_harm(target: str) -> None:
    model: Any = drawn("gated")
    with torch.no_grad():
        model.blocks[0].norm2.weight[3:9] = 0
        model.blocks[0].norm2.bias[3:9] = -20
        model.blocks[1].norm1.weight.zero_()
        model.blocks[2].norm3.weight[:4] = 0
    small, _ = modular(model, 0.5, target=target)
    assert torch.isfinite(logits(small, pictures(1)[0])).all()
    small, _ = modular(model, 0.5, target=target, calibration=[torch.ones(16, 3, 32, 32)] * 2)
    assert torch.isfinite(logits(small, pictures(1)[0])).all()


def test_one_channel_may_be_left() -> None:
    small, report = of("gated", 0.043, allocation="uniform")
    assert {block.depthwise.groups for block in small.blocks} == {1}
    assert {row.rank for row in report.layers if row.factored} == {1}
    assert torch.isfinite(logits(small, pictures(1)[0])).all()


def test_what_is_left_is_fitted_in_order() -> None:
    """The error falls by it, the means of what a block puts out are those of the given model."""
    model = drawn("plain")
    options = {"allocation": "uniform", "metric": "outputs", "batch_norm": False,
               "holdout": 0.25, "calibration": pictures(8)}  # fmt: skip
    _, plain = modular(model, 0.5, target="independent", **options)
    small, report = modular(model, 0.5, **options)
    assert report.target == "original"
    assert report.model_error < plain.model_error
    row = report.layer("blocks.1.project")
    assert row.held_out
    assert row.bias == "corrected"
    assert small.blocks[1].project.bias is None


# ---- where channels go ------------------------------------------------------------------------


def test_blocks_without_a_say_give_all_they_can() -> None:
    model: Any = drawn("plain")
    with torch.no_grad():
        model.blocks[0].norm3.weight.mul_(1e-4)
        model.blocks[0].norm3.bias.zero_()
    small, report = modular(model, 0.6, allocation="fisher")
    widths = [block.expand.out_channels for block in small.blocks]
    assert widths[0] < min(widths[1:])
    assert report.metric == "loss"
    assert report.allotment.predicted_loss is not None


def test_widths_are_multiples_of_eight_where_there_are_many() -> None:
    small, _ = modular(drawn(lambda: Net(n=64)), 0.61)
    assert all(block.expand.out_channels % 8 == 0 for block in small.blocks)


# ---- normalisations ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gated", LARGEST])
def test_folded_before_it_is_the_same(name: str) -> None:
    skip = HEADS.get(name, ["head"])
    model = drawn(name)
    one, _ = modular(model, skip=skip, batch_norm=False)
    folded = fold_batch_norms(model, pictures(1)[0])[0]
    other, _ = modular(folded, skip=skip)
    both, report = modular(model, skip=skip, fold_batch_norms=True)
    assert report.folded is not None
    batch = pictures(1, seed=9)[0]
    for small in (other, both):
        # Sums in float32 in two orders, through as many layers as there are.
        assert relative(logits(small, batch), logits(one, batch)) < 1e-3


def test_normalisations_stay_what_they_are() -> None:
    """Those of channels that stay have the numbers that these had, but for the mean."""
    model: Any = drawn("plain")
    small, _ = modular(model, 0.5, batch_norm=False)
    for block, whole in zip(small.blocks, model.blocks, strict=True):
        rows = (block.norm1.running_var[:, None] == whole.norm1.running_var).float().argmax(1)
        assert torch.equal(block.norm1.weight, whole.norm1.weight[rows])
        assert torch.equal(block.norm1.bias, whole.norm1.bias[rows])
        assert torch.equal(block.norm3.weight, whole.norm3.weight)
        assert torch.equal(block.norm3.running_var, whole.norm3.running_var)
        assert block.expand.bias is None


def test_a_model_that_trains_goes_on_training() -> None:
    model = drawn("gated").train()
    small, _ = modular(model)
    assert all(module.training for module in small.modules())
    other, _ = modular(model.eval())
    assert relative(logits(small.eval(), pictures(1)[0]), logits(other, pictures(1)[0])) < 1e-5
    loss = small.train()(pictures(1)[0]).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("name", ["gated", LARGE])
def test_in_place_it_is_the_same(name: str) -> None:
    model, skip = drawn(name), HEADS.get(name, ["head"])
    small, _ = modular(model, skip=skip)
    report = compress_(
        model, method="modular", keep_params=0.6, calibration=pictures(), progress=False, skip=skip
    )
    assert report.eligible.share <= 0.6
    batch = pictures(1)[0]
    assert torch.equal(logits(model, batch), logits(small, batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_what_they_are(dtype: torch.dtype) -> None:
    model = drawn("plain").to(dtype)
    small, report = modular(model, calibration=[x.to(dtype) for x in pictures()])
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert report.eligible.share <= 0.6


def test_the_layout_in_memory_stays() -> None:
    model = drawn("plain").to(memory_format=torch.channels_last)
    small, _ = modular(model)
    weight = small.blocks[0].expand.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert small.blocks[0].expand.weight.shape[0] < 24


def test_smaller_once_more() -> None:
    small, _ = of("gated", 0.7, allocation="uniform")
    less, report = modular(small, 0.5, allocation="uniform")
    assert 0.4 < report.eligible.share <= 0.5
    assert less.blocks[0].depthwise.groups < small.blocks[0].depthwise.groups


@pytest.mark.slow
def test_passes_that_wait_and_passes_anew_agree() -> None:
    found = [of("gated", rerun=rerun, batch_norm=False) for rerun in (False, True)]
    assert found[0][1].layers == found[1][1].layers
    for one, other in zip(*(model.parameters() for model, _ in found), strict=True):
        assert torch.equal(one, other)


def test_a_smaller_one_gets_factors_as_any_other() -> None:
    small, _ = of("gated")
    less, report = compress(small, keep_params=0.7, calibration=pictures(), progress=False)
    assert any(row.factored for row in report.layers)
    assert torch.isfinite(logits(less, pictures(1)[0])).all()
