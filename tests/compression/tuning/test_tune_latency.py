"""objective="latency": torch's dense layers where they are fastest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import tensorlrf
from tensorlrf.compression.tuning._tune import tune
from tensorlrf.nn import FactoredLinear
from tensorlrf.nn._hf_conv1d import FactoredHFConv1D
from tests.compression.tuning.tuned import CHAIN, DENSE, Start, conv, linear
from tests.draws import seeded32


def test_latency_puts_torch_layers_where_dense_is_fastest(clock: Start) -> None:
    shared = linear()
    model = nn.Sequential(shared, linear(), nn.Sequential(shared), linear()).double().train()
    model[3].requires_grad_(False)
    x = seeded32(4, 16).double()
    before = model(x)
    clock(DENSE, CHAIN, DENSE)
    tuning = tune(model, x, objective="latency")
    assert tuning.replaced == ("0", "3")
    assert tuning.layer("2.0").replaced
    assert type(model[0]) is nn.Linear
    assert model[2][0] is model[0]
    assert type(model[1]) is FactoredLinear
    assert [p.requires_grad for p in model[3].parameters()] == [False, False]
    assert all(m.training for m in model.modules())
    torch.testing.assert_close(model(x), before)
    assert tuning.layer("0").chosen_seconds == tuning.layer("0").dense_seconds
    assert "torch's dense layers again: 0, 3" in str(tuning)


def test_latency_keeps_a_layer_that_gains_in_one_bucket(clock: Start) -> None:
    model = nn.Sequential(linear())
    clock(DENSE, CHAIN)
    tuning = tune(model, [seeded32(4, 16), seeded32(64, 16)], objective="latency")
    assert tuning.replaced == ()
    assert [model[0].path_table.lookup(rows) for rows in (4, 64)] == ["dense", "chain"]


def test_latency_prefers_torch_to_the_cost_of_our_own_call(clock: Start) -> None:
    # Both factored ways are slower than torch's layer, if only by what they do around it.
    times = {"torch": 1.0, "dense": 1.3, "chain": 1.2}
    model = nn.Sequential(linear())
    clock(times)
    assert tune(model, seeded32(4, 16)).layer("0").timings[0].chosen == "chain"
    assert tune(model, seeded32(4, 16), objective="latency").replaced == ("0",)
    assert type(model[0]) is nn.Linear


def test_latency_says_what_it_cannot_replace(clock: Start) -> None:
    hooked, patched, tied, alone = linear(), linear(), linear(), linear()
    hooked.register_forward_hook(lambda *_: None)
    patched.forward = patched.forward  # type: ignore[method-assign]
    holder = nn.Identity()
    holder.left = tied.left
    model = nn.Sequential(hooked, patched, tied, holder)
    clock(DENSE)
    tuning = tune(model, seeded32(4, 16), objective="latency")
    assert tuning.replaced == ()
    notes = [layer.note for layer in tuning.layers]
    for note, words in zip(notes, ("has hooks", "on the instance", "shares"), strict=True):
        assert words in note
    root = tune(alone, seeded32(4, 16), objective="latency")
    assert "the model itself" in root.layers[0].note
    assert "(model): is fastest dense" in str(root)
    assert alone.path_table.lookup(4) == "dense"


@pytest.mark.parametrize(
    ("dense", "size"),
    [
        (nn.Conv1d(8, 8, 3, groups=2), (3, 8, 9)),
        (nn.Conv2d(8, 8, 3, groups=2, padding=1), (3, 8, 5, 5)),
        (nn.Conv3d(8, 8, 3), (2, 8, 4, 4, 4)),
        (nn.Conv3d(8, 8, 3), (8, 4, 4, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
@pytest.mark.parametrize("last", [False, True])
def test_convolutions_of_all_kinds(
    dense: nn.Module, size: tuple[int, ...], last: bool, clock: Start
) -> None:
    model = nn.Sequential(tensorlrf.nn.factorize(dense, "svd", 2)).double()
    x = seeded32(*size).double()
    if last and x.ndim > 3:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    truth = model(x)
    asked = clock(DENSE)
    tuning = tune(model, x)
    for y in asked.outputs[0].values():
        torch.testing.assert_close(y, truth)
    assert tuning.layers[0].timings[0].rows == truth.numel() // 8
    tune(model, x, objective="latency")
    assert type(model[0]) is type(dense)
    torch.testing.assert_close(model(x), truth)


def test_the_conv1d_of_transformers(clock: Start) -> None:
    from transformers.pytorch_utils import Conv1D

    dense = Conv1D(24, 16)
    factors = tensorlrf.svd(dense.weight.T, rank=3)
    model = nn.Sequential(FactoredHFConv1D.from_factors(factors, dense)).double()
    x = seeded32(5, 16).double()
    truth = model(x)
    asked = clock(DENSE)
    assert tune(model, x, objective="latency").layers[0].kind == "Conv1D"
    for y in asked.outputs[0].values():
        torch.testing.assert_close(y, truth)
    assert type(model[0]) is Conv1D
    torch.testing.assert_close(model(x), truth)


def test_channels_last_inputs_get_a_kernel_that_lies_so(clock: Start) -> None:
    model = nn.Sequential(conv())
    clock(DENSE)
    x = seeded32(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    tune(model, x, objective="latency")
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_parametrised_factors_are_timed_without_torch(clock: Start) -> None:
    class Half(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return t / 2

    layer = linear()
    parametrize.register_parametrization(layer, "left", Half())
    asked = clock(DENSE)
    tuning = tune(nn.Sequential(layer), seeded32(4, 16), objective="latency")
    assert list(asked.outputs[0]) == ["dense", "chain"]
    torch.testing.assert_close(asked.outputs[0]["dense"], asked.outputs[0]["chain"])
    assert tuning.layers[0].note.startswith("is fastest dense, but its factors are parametrised")
