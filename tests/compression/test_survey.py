"""Which layers are replaced; every other one is listed, once, with its reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tensorlrf.compression import _survey, apply, compress, plan
from tensorlrf.compression._survey import survey
from tensorlrf.compression._unpacked import unpacked_model
from tensorlrf.errors import ArgumentError, BudgetWarning
from tensorlrf.nn import FactoredConv2d, FactoredLinear
from tests.compression.wrapped import Wrapped


class MyLinear(nn.Linear):
    """A subclass that does more."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def wrapped(name: str) -> nn.Module:
    """A layer with a parameter of a class that wraps other tensors, and has no storage itself."""
    layer = nn.Linear(32, 32)
    inner = getattr(layer, name).detach()
    layer.register_parameter(name, nn.Parameter(Wrapped(inner), requires_grad=False))
    return layer


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


def patched(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "subclass": (lambda: MyLinear(32, 32), "subclass of Linear"),
    "depthwise": (lambda: nn.Conv2d(32, 32, 3, groups=32), "groups=32"),
    "depthwise transposed": (lambda: nn.ConvTranspose2d(32, 32, 3, groups=32), "groups=32"),
    "parametrised": (lambda: parametrizations.weight_norm(nn.Linear(32, 32)), "parametrised"),
    "old spectral norm": (lambda: nn.utils.spectral_norm(nn.Linear(32, 32)), "hook"),
    "hooks": (lambda: hooked(nn.Linear(32, 32)), "hooks"),
    "patched": (lambda: patched(nn.Linear(32, 32)), "forward"),
    "lazy": (lambda: nn.LazyLinear(32), "lazy"),
    "lazy conv": (lambda: nn.LazyConv2d(32, 3), "lazy"),
    "tensor subclass": (lambda: wrapped("weight"), "its weight is a Wrapped, no ordinary tensor"),
    "subclass bias": (lambda: wrapped("bias"), "its bias is a Wrapped, no ordinary tensor"),
    "complex": (lambda: nn.Linear(32, 32, dtype=torch.complex64), "complex64"),
    "one row": (lambda: nn.Linear(32, 1), "no factored form is smaller"),
    "norm": (lambda: nn.BatchNorm2d(32), "neither"),
    "embedding": (lambda: nn.Embedding(10, 32), "stays by default; include=['embeddings']"),
    "multihead": (lambda: hooked(nn.MultiheadAttention(32, 4)), "hooks"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_stays_says_why(case: str) -> None:
    make, reason = CASES[case]
    odd = make()
    model = nn.Sequential(nn.Linear(64, 64), odd)
    small, report = compress(model, keep_params=0.5)
    assert reason in report.layer("1").reason
    assert not report.layer("1").factored
    assert type(small[1]) is type(odd)
    assert type(small[0]) is FactoredLinear
    # Alone it is no model to compress, and the error says why.
    with pytest.raises(ArgumentError, match="no eligible layer") as caught:
        compress(nn.Sequential(odd), keep_params=0.5)
    assert reason in str(caught.value)


def test_every_owner_of_parameters_is_listed_once() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 32, 3, groups=2)),
        nn.TransformerEncoderLayer(16, 2, 32),
    )
    _, report = compress(model, keep_params=0.6)
    own = unpacked_model(model)  # with a layer for each projection
    owners = [
        n for n, m in own.named_modules() if next(m.parameters(recurse=False), None) is not None
    ]
    assert [row.name for row in report.layers] == owners
    biases = sum(own.get_submodule(row.name).bias.numel() for row in report.layers if row.eligible)
    listed = sum(row.params_before for row in report.layers) + biases
    assert listed == sum(p.numel() for p in model.parameters())
    for row in report.layers:
        assert row.factored != bool(row.reason)


def test_transformer_layer_keeps_what_its_fast_path_reads() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.TransformerEncoderLayer(32, 2, 64))
    hooked(model[1].self_attn)  # so that it stays packed
    with pytest.warns(BudgetWarning, match=r"1.self_attn \(MultiheadAttention"):
        _, report = compress(model, keep_params=0.5)
    for name in ("1.linear1", "1.linear2"):
        assert "fast path" in report.layer(name).reason


def test_tied_weights_stay_and_name_each_other() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(64, 32)
            self.body = nn.Linear(32, 32)
            self.head = nn.Linear(32, 64, bias=False)
            self.head.weight = self.embed.weight

    _, report = compress(Tied(), keep_params=0.6)
    assert "embed.weight" in report.layer("head").reason
    assert report.layer("body").factored
    # Two parameters on one storage, without being one object.
    first, second = nn.Linear(32, 32), nn.Linear(32, 32)
    second.weight = nn.Parameter(first.weight.detach()[:])
    reasons = [one.reason for one in survey(nn.Sequential(first, second))]
    assert ["1.weight" in reasons[0], "0.weight" in reasons[1]] == [True, True]
    # Neighbours in one storage share nothing.
    flat = torch.randn(2, 32, 32)
    first.weight, second.weight = nn.Parameter(flat[0]), nn.Parameter(flat[1])
    assert all(one.eligible for one in survey(nn.Sequential(first, second)))


def test_module_used_twice_is_one_layer_in_two_places() -> None:
    shared = nn.Linear(32, 32)
    block = nn.Sequential(shared)
    model = nn.Sequential(shared, nn.ReLU(), block, block)
    small, report = compress(model, keep_params=0.5)
    (row,) = report.layers
    assert row.places == ("0", "2.0", "3.0")
    assert isinstance(small[0], FactoredLinear)
    assert small[0] is small[2][0]
    assert small[2] is small[3]
    assert sum(p.numel() for p in small.parameters()) == report.model.params_after


def test_module_held_outside_the_tree_stays() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(32, 32) for _ in range(3))
            self.order = [self.a]
            object.__setattr__(self, "best", self.b)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.order[0](x)))

    _, report = compress(Holds(), keep_params=0.5)
    assert "order" in report.layer("a").reason
    assert "best" in report.layer("b").reason
    assert report.layer("c").factored


def test_skip_covers_what_a_module_holds() -> None:
    model = nn.ModuleDict(
        {
            "body": nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)),
            "head1": nn.Sequential(nn.Linear(32, 32)),
            "head2": nn.Linear(32, 32),
        }
    )
    for globs, left in [
        (["head*"], {"head1.0", "head2"}),
        ("head1", {"head1.0"}),
        (["body.1", "*2"], {"body.1", "head2"}),
    ]:
        _, report = compress(model, keep_params=0.5, skip=globs)
        assert {row.name for row in report.layers if "skipped" in row.reason} == left
    with pytest.raises(ArgumentError, match=r"skip: 'tail\*' matches no module.*body\.0"):
        compress(model, keep_params=0.5, skip=["tail*"])


def test_the_model_itself_may_be_a_layer() -> None:
    layer = nn.Conv2d(16, 16, 3, stride=2, padding=1)
    small, report = compress(layer, keep_params=0.5)
    assert isinstance(small, FactoredConv2d)
    assert report.model.params_after == sum(p.numel() for p in small.parameters())
    small, report = compress(
        layer, keep_params=0.5, calibration=[torch.randn(30, 16, 9, 9)], progress=False
    )
    assert report.layers[0].data_aware
    assert isinstance(small, FactoredConv2d)


def test_a_compressed_model_is_left_alone_the_second_time() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 64))
    small, _ = compress(model, keep_params=0.5, skip=["1"])
    _, report = compress(small, keep_params=0.5)
    assert "already" in report.layer("0").reason
    assert report.layer("1").factored


def test_a_model_is_surveyed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    surveyed = []
    look = _survey._tied

    def counted(owners: dict[nn.Module, list[str]]) -> dict[nn.Module, list[str]]:
        surveyed.append(len(owners))
        return look(owners)

    monkeypatch.setattr(_survey, "_tied", counted)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    batches = [torch.randn(256, 32, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    compress(model, keep_params=0.5, calibration=batches, skip=[])
    assert surveyed == [2]
    made = plan(model, keep_params=0.5, skip=["2"])
    assert surveyed == [2, 2]
    apply(model, made)
    assert surveyed == [2, 2, 2]


def test_one_parameter_in_two_layers_is_shared_without_values_too() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    reasons = [one.reason for one in survey(model)]
    assert reasons == ["shares its storage with 1.weight", "shares its storage with 0.weight", ""]
