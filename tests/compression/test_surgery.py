"""Compression of the structures that vision models have, and of what hangs on layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tensorlrf import apply, compress, densify, plan
from tensorlrf.errors import BudgetWarning
from tensorlrf.nn import FactoredLayer
from tests.compression.networks import UNIFORM, Snapshot, check_report, relative, set_weights
from tests.draws import seeded32


class Block(nn.Module):
    """A residual block as torchvision has them."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 24, 2))
        self.fc = nn.Linear(24, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.conv1(x)).mean((2, 3)))


def mobile() -> nn.Module:
    model = nn.Sequential()
    model.expand = nn.Conv2d(3, 24, 1, bias=False)
    model.depthwise = nn.Sequential(
        nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.BatchNorm2d(24), nn.ReLU6()
    )
    model.project = nn.Conv2d(24, 16, 1)
    model.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 16))
    return model


def vgg() -> nn.Module:
    model = nn.Sequential()
    model.features = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(True), nn.MaxPool2d(2))
    model.flat = nn.Flatten()
    model.classifier = nn.Sequential(
        nn.Linear(400, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(True),
        nn.Linear(32, 16),
    )  # fmt: skip
    return model


class Attention(nn.Module):
    """As timm has it: one linear layer for q, k and v, fused attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind()
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 32, 4, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 9, 32))
        self.blocks = nn.ModuleList([Attention(32), Attention(32)])
        self.norm = nn.LayerNorm(32)
        self.tail = nn.Linear(32, 24)

    def get_classifier(self) -> nn.Module:
        return self.tail

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = x + block(x)
        return self.tail(self.norm(x).mean(1))


class Encoder(nn.Module):
    """nn.TransformerEncoder, whose layers have a fast path that takes packed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, 4)
        layer = nn.TransformerEncoderLayer(32, 2, 48, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


HEAD = "a head"
STRUCTURES: dict[str, tuple[Callable[[], nn.Module], dict[str, str], set[str]]] = {
    "resnet": (
        ResNet,
        {"fc": HEAD, "layer1.0.bn1": "neither"},
        {"conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2",
         "layer1.1.downsample.0"},
    ),
    "mobile": (
        mobile,
        {"depthwise.0": "depthwise convolution (groups=24)", "classifier.1": HEAD},
        {"expand", "project"},
    ),
    "vgg": (vgg, {"classifier.5": HEAD}, {"features.0", "classifier.0", "classifier.3"}),
    "vit": (
        ViT,
        {"tail": HEAD, "norm": "neither", "(model)": "neither"},
        {"patch_embed", "blocks.0.qkv", "blocks.0.proj", "blocks.1.qkv", "blocks.1.proj"},
    ),
    "encoder": (
        Encoder,
        {"encoder.layers.0.norm1": "neither"},
        {"embed", "out",
         *(f"encoder.layers.{k}.{layer}" for k in range(2) for layer in (
             "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
             "linear1", "linear2"))},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:calibration is thin")
@pytest.mark.filterwarnings("ignore:keep_params=0.8 was asked for")
@pytest.mark.parametrize("method", ["svd", "tucker"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures(structure: str, method: str) -> None:
    make, left, factored = STRUCTURES[structure]
    model = set_weights(make())
    before = Snapshot(model)
    x = seeded32(40, 3, 12, 12)
    with torch.no_grad():
        wanted = model(x)
    small, report = compress(model, keep_params=0.8, method=method, calibration=[x], **UNIFORM)
    before.check()
    check_report(model, small, report)
    for name, reason in left.items():
        assert reason in report.layer(name).reason
    assert {row.name for row in report.layers if row.factored} == factored
    # In training mode, too, where TransformerEncoder takes another path.
    assert small.train()(x[:4]).shape == wanted[:4].shape
    exact, _ = apply(model, at_full_rank(model))
    with torch.no_grad():
        loss = relative(small.eval()(x), wanted)
        # Rounding in float32, a few layers deep.
        assert relative(exact(x), wanted) < 1e-4
    assert loss < 0.5
    # skip=[] takes the heads, too.
    heads = {row.name for row in report.layers if row.reason.startswith(HEAD)}
    assert heads <= {row.name for row in plan(model, keep_params=0.8, skip=[]).factored}


def at_full_rank(model: nn.Module) -> Any:
    made = plan(model, keep_params=0.8)
    for row in made.factored:
        rank = min(row.shape[0] // row.groups, row.params // row.shape[0])
        made = made.edit(row.name, method="svd", rank=rank)
    return made


class Reads(nn.Module):
    """Computes with the weight of a child that it never calls, and of one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.read, self.both = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        assert self.read.weight.dtype == x.dtype  # a look is no reading
        x = F.linear(torch.relu(self.body(x)), self.read.weight, self.read.bias)
        return self.both(x) + self.both.weight.sum()


@pytest.mark.parametrize("rerun", [False, True])
@pytest.mark.parametrize("target", ["prefix", "original", "independent"])
def test_weights_that_a_parent_computes_with(target: str, rerun: bool) -> None:
    model = nn.Sequential(nn.Linear(32, 32), set_weights(Reads()))
    x = seeded32(200, 32)
    small, report = compress(
        model, keep_params=0.9, calibration=[x], target=target, rerun=rerun, affine=True, **UNIFORM
    )
    for name in ("1.read", "1.both"):
        assert report.layer(name).reason == "its weight is read by 1, which does not call it"
        assert not report.layer(name).eligible
    assert report.layer("1.body").data_aware
    assert relative(small(x), model(x)) < 0.5
    # Without calibration nobody runs the model, and the factored layer offers its weight.
    blind, second = compress(model, keep_params=0.9)
    assert second.layer("1.read").factored
    assert isinstance(blind[1].read, FactoredLayer)
    assert torch.isfinite(blind(x)).all()


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it says to use the new one
        return nn.utils.weight_norm(layer)


def with_int(layer: nn.Linear) -> nn.Module:
    weight = torch.ones(32, 32, dtype=torch.int8)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*quant.* deprecated")
        whole = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(32, 32)))
    return whole[0]


ODD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(32, 32)), "parametrised"),
    "old weight_norm": (lambda: old_weight_norm(nn.Linear(32, 32)), "computed by a hook"),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(32, 32)), "parametrised"),
    "old spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(32, 32)), "by a hook"),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(32, 32), "weight", 9), "by a hook"),
    "lazy": (lambda: nn.LazyLinear(32), "lazy: run the model once"),
    "complex": (lambda: nn.Linear(32, 32, dtype=torch.complex64), "complex64"),
    "int": (lambda: with_int(nn.Linear(32, 32)), "int8, not floating point"),
    "meta": (lambda: nn.Linear(32, 32, device="meta"), "meta device"),
    "quantised": (quantised, "quantised; compress the float model"),
}


class Beside(nn.Module):
    """Runs its body; what is odd stands beside it and may be unable to run."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.body = set_weights(nn.Linear(32, 32))
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("calibrated", [False, True])
def test_odd_layers_stay_with_their_reason(odd: str, calibrated: bool) -> None:
    make, reason = ODD[odd]
    model = Beside(make()).eval()
    x = seeded32(200, 32)
    small, report = compress(model, keep_params=0.9, calibration=[x] if calibrated else None)
    assert reason in report.layer("odd").reason
    assert report.layer("body").factored
    assert relative(small(x), model(x)) < 0.4
    assert [row.name for row in report.layers].count("odd") == 1
    if odd not in ("meta", "lazy", "complex", "int"):
        # In grad mode the hooks leave weights with a graph behind, which deepcopy would refuse.
        assert torch.equal(small.odd(x), model.odd(x))
        dense = densify(small)
        assert torch.equal(dense.odd(x), model.odd(x))


class Keeps(nn.Module):
    """Holds layers in plain containers and by a bound method as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(32, 32) for _ in range(4))
        self.table = {"first": [self.a], "rest": {"x": (self.b,)}}
        self.call = self.c.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.call(self.table["rest"]["x"][0](self.table["first"][0](x))))


def test_layers_in_nested_lists_dicts_and_bound_methods_stay() -> None:
    model = set_weights(Keeps())
    x = seeded32(200, 32)
    with pytest.warns(BudgetWarning, match="the model keeps 87"):
        small, report = compress(model, keep_params=0.5, calibration=[x])
    assert "table" in report.layer("a").reason
    assert "table" in report.layer("b").reason
    assert "call" in report.layer("c").reason
    assert report.layer("d").factored
    assert relative(small(x), model(x)) < 0.8


def test_a_module_list_and_dict_of_layers() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])
            self.named = nn.ModuleDict({"x": nn.Linear(32, 32)})

        def forward(self, x: Tensor) -> Tensor:
            for part in [*self.parts, *self.named.values()]:
                x = part(x)
            return x

    small, report = compress(set_weights(Lists()), keep_params=0.5, calibration=[seeded32(200, 32)])
    assert [row.name for row in report.layers if row.factored] == ["parts.0", "parts.1", "named.x"]
    assert all(isinstance(m, FactoredLayer) for m in [*small.parts, small.named["x"]])


def test_a_model_that_is_partly_on_meta() -> None:
    """As an offloaded model is: what has no values stays, by name; the rest is factored."""
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32, device="meta"))
    small, report = compress(model, keep_params=0.5)
    assert report.layer("0").factored
    assert "meta device" in report.layer("1").reason
    assert small[1].weight.is_meta
    assert report.model.params_before == 2 * (32 * 32 + 32)


def test_hooks_of_other_modules_stay() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    model.register_forward_pre_hook(lambda *_: None)
    small, report = compress(model, keep_params=0.5, calibration=[seeded32(200, 32)])
    seen.clear()
    small(seeded32(2, 32))
    assert seen == [1]
    assert len(small._forward_pre_hooks) == 1
    assert all(row.factored for row in report.layers)
