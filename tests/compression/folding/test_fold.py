"""A model with batch normalisations folded computes what it did, and says what it left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError
from tests.draws import seeded

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
NORMS: dict[int, Any] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode and float64, with statistics that say something."""
    draws = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for t in (*module._parameters.values(), *module._buffers.values()):
            if t is not None and t.is_floating_point():
                t.data.copy_(torch.randn(t.shape, generator=draws))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_var.abs_().add_(0.1)
    return model.double().eval()


@st.composite
def pairs(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A layer, a norm behind it, and an input."""
    axes = draw(st.integers(0, 3))
    bias, affine = draw(st.booleans()), draw(st.booleans())
    if not axes:
        layer: nn.Module = nn.Linear(5, 4, bias=bias)
        x = seeded(3, 5, seed=draw(st.integers(0, 99)))
    else:
        make = draw(st.sampled_from([CONVS, TRANSPOSED]))[axes]
        groups = draw(st.sampled_from([1, 2, 4]))
        layer = make(4, 4, draw(st.integers(1, 3)), stride=2, padding=1, groups=groups, bias=bias)
        x = seeded(2, 4, *(5, 4, 3)[:axes], seed=draw(st.integers(0, 99)))
    norm = NORMS[axes](4, affine=affine, eps=draw(st.sampled_from([1e-5, 1e-2])))
    return settled(nn.Sequential(layer, norm, nn.ReLU()), draw(st.integers(0, 99))), x


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pairs())
def test_outputs_are_the_same(pair: tuple[nn.Module, Tensor]) -> None:
    model, x = pair
    before = copy.deepcopy(model.state_dict())
    folded, left = tensorlrf.fold_batch_norms(model, x)
    assert left == {}
    assert isinstance(folded[1], nn.Identity)  # type: ignore[index]
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    flags = [p.requires_grad for p in folded.parameters()]
    assert all(flags)
    assert len(flags) == 2


class Block(nn.Module):
    """An inverted bottleneck: what it reads is added at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.project = nn.Conv2d(8, 4, 1, bias=False)
        self.last = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(self.expand(x))).relu_()
        return x + self.last(self.project(y))  # type: ignore[no-any-return]


def test_depthwise_convolutions_and_residual_blocks_too() -> None:
    model = settled(nn.Sequential(Block(), Block()))
    x = seeded(2, 4, 6, 6)
    folded, left = tensorlrf.fold_batch_norms(model, x)
    assert left == {}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-8, atol=1e-8)


class Reads(nn.Module):
    """What is said is done with the output of the convolution besides."""

    def __init__(self, besides: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.besides = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), besides

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        more = self.besides(y)
        return self.norm(y), more


OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "a function": lambda y: y.sum(),
    "a view": lambda y: y.view(-1),
    "an attribute": lambda y: y.T,
    "data": lambda y: y.data + 1,
    "detached": lambda y: y.detach(),
    "the model's own output": lambda y: {"features": [y]},
    "in place": lambda y: y.add_(1).shape,
}


@pytest.mark.filterwarnings("ignore:The use of `x.T` on tensors of dimension other than 2")
@pytest.mark.parametrize("how", OTHERS)
def test_an_output_that_somebody_else_reads_stays_what_it_is(how: str) -> None:
    model = settled(Reads(OTHERS[how]))
    folded, left = tensorlrf.fold_batch_norms(model, seeded(2, 3, 5, 5))
    assert left == {"norm": "the output of conv is also read by the model"}
    assert isinstance(folded.norm, nn.BatchNorm2d)


def test_sizes_may_be_looked_at() -> None:
    model = settled(Reads(lambda y: (y.shape, y.dtype, y.dim(), len(y), y.is_contiguous())))
    folded, left = tensorlrf.fold_batch_norms(model, seeded(2, 3, 5, 5))
    assert left == {}
    assert isinstance(folded.norm, nn.Identity)


def unseen(y: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():  # as in compiled code
        return y * 2


def test_what_no_torch_function_shows_is_told_by_the_outputs() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Reads(unseen)))
    folded, left = tensorlrf.fold_batch_norms(model, seeded(2, 3, 5, 5))
    assert left == {"2.norm": "without it the outputs of the model are others"}
    assert isinstance(folded[1], nn.Identity)  # type: ignore[index]


def shared() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    return nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm)


def twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.BatchNorm1d(4), layer, nn.BatchNorm1d(4))


def tied() -> nn.Module:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    return nn.Sequential(one, nn.BatchNorm1d(4), other)


def hooked(layer: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[layer].register_forward_hook(lambda *_: None)
    return model


def training() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    return model.train()


class Own(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Activated(nn.BatchNorm2d):
    """Modules of its own run on what it has normalised, as in BatchNormAct2d of timm."""

    def __init__(self, channels: int, act: nn.Module, drop: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity() if drop is None else drop, act

    def forward(self, x: Tensor) -> Tensor:
        # What modules give is Any to torch.
        return self.act(self.drop(super().forward(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Hardswish(), nn.PReLU(4), nn.Identity()])
def test_what_a_normalisation_runs_behind_it_stays(act: nn.Module) -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), Activated(4, act), nn.Conv2d(4, 2, 1)))
    x = seeded(2, 3, 6, 6)
    want = model(x)
    folded, left = tensorlrf.fold_batch_norms(model, x)
    assert left == {}
    rest: Any = folded[1]  # type: ignore[index]  # a Sequential, typed as a Module
    assert type(rest) is nn.Sequential
    assert [name for name, _ in rest.named_children()] == ["drop", "act"]
    assert type(rest.act) is type(act)
    assert not any(m.training for m in folded.modules())
    # Rounding of float64: the scale is in the weight now.
    torch.testing.assert_close(folded(x), want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(x), want, rtol=0, atol=0)


class Before(Activated):
    """Not behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.BatchNorm2d.forward(self, self.act(x))


class Scaled(Activated):
    """More than the modules that it holds."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Shifted(Activated):
    """A tensor more."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels, act)
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


class Masked(Activated):
    """An argument more."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x if mask is None else x * mask)


class Even(Activated):
    """Of some inputs alone."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 2:
            raise ValueError(x.shape)
        return super().forward(x)


@pytest.mark.parametrize("kind", [Before, Scaled, Shifted, Masked, Even])
def test_what_is_more_than_that_is_left(kind: Any) -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), kind(4, nn.ReLU())))
    x = seeded(2, 3, 6, 6)
    folded, left = tensorlrf.fold_batch_norms(model, x)
    assert left == {"1": f"a {kind.__name__}, which may do more than torch's"}
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=0)


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x[:, None].expand(-1, 4, -1)))  # type: ignore[no-any-return]


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shared norm": (shared, "called 2 times"),
    "shared layer": (twice, "is called 2 times"),
    "tied weight": (tied, "shares its storage"),
    "hook on the layer": (lambda: hooked(0), "has hooks"),
    "hook on the norm": (lambda: hooked(1), "has hooks"),
    "no statistics": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        "keeps no statistics",
    ),
    "subclass": (lambda: nn.Sequential(nn.Linear(4, 4), Own(4)), "a Own, which may do more"),
    "before the layer": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)),
        "reads no output of a layer",
    ),
    "an activation between": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)),
        "reads no output of a layer",
    ),
    "parametrised": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4)
        ),
        "parametrised",
    ),
    "other channels": (Middle, "has 3 dimensions"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_folded_stays_with_its_reason(case: str) -> None:
    make, why = LEFT[case]
    model = settled(make())
    x = seeded(5, 4)
    folded, left = tensorlrf.fold_batch_norms(model, x)
    assert left
    assert all(why in reason for reason in left.values()), left
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=0)


def test_in_training_mode_nothing_is_folded() -> None:
    model = settled(training()).train()
    folded, left = tensorlrf.fold_batch_norms(model, seeded(5, 4))
    assert left == {"1": "in training mode it normalises by the batch; call model.eval() first"}
    assert folded.training


def test_where_the_example_does_not_fit() -> None:
    model = settled(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    with pytest.raises(ArgumentError, match="example: the model cannot take batch 0"):
        tensorlrf.fold_batch_norms(model, seeded(5, 3))
    with pytest.raises(ArgumentError, match="model is a int; pass a"):
        tensorlrf.fold_batch_norms(3, seeded(5, 3))  # type: ignore[arg-type]
