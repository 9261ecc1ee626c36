"""What lies under an adapter, and the adapter itself, stays as it is."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import UnsupportedError
from tensorlrf.nn import FactoredLinear


class PeftLinear(nn.Module):
    """As peft's lora.Linear: the base layer, and adapters by name."""

    adapter_layer_names: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B", "lora_embedding_A")

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_dropout = nn.ModuleDict({"default": nn.Identity()})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 8, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(8, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))
        return y

    def merge(self) -> None:
        self.base_layer.weight.data += self.lora_B["default"].weight @ self.lora_A["default"].weight


class PeftIA3(nn.Module):
    """As another tuner of peft, whose names have nothing of LoRA."""

    adapter_layer_names: ClassVar[tuple[str, ...]] = ("ia3_l",)

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.ia3_l = nn.ParameterDict({"default": torch.ones(base.out_features)})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x) * self.ia3_l["default"]
        return y


class LitLinear(nn.Module):
    """As litgpt's LoRALinear: parameters beside the base layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.linear = base
        self.lora_A = nn.Parameter(torch.ones(8, base.in_features))
        self.lora_B = nn.Parameter(torch.ones(base.out_features, 8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) + x @ self.lora_A.T @ self.lora_B.T
        return y


class TuneLinear(nn.Module):
    """As torchtune's LoRALinear, in small letters, with a weight of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight = base.weight
        self.lora_a = nn.Linear(base.in_features, 8, bias=False)
        self.lora_b = nn.Linear(8, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.linear(x, self.weight) + self.lora_b(self.lora_a(x))
        return y


class Backbone(nn.Module):
    """Calls a layer base_layer, as timm's DLA does, and has no adapter."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        return y


def model_of(kind: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.Sequential(kind(nn.Linear(64, 64))))


@pytest.mark.parametrize(
    ("kind", "under", "parts"),
    [
        (PeftLinear, ["base_layer"], ["lora_A.default", "lora_B.default"]),
        (PeftIA3, ["base_layer"], []),
        (LitLinear, ["linear"], []),
        (TuneLinear, [], ["lora_a", "lora_b"]),
    ],
)
def test_adapters_and_what_they_wrap_are_left_with_their_reason(
    kind: Any, under: list[str], parts: list[str]
) -> None:
    model = model_of(kind)
    small, report = tensorlrf.compress(model, keep_params=0.5, skip=[])
    assert isinstance(small[0], FactoredLinear)
    assert [row.name for row in report.layers if row.factored] == ["0"]
    for name in under:
        reason = report.layer(f"1.0.{name}").reason
        assert reason == "lies under an adapter (1.0); merge it first (merge_and_unload of peft)"
    for name in parts:
        assert report.layer(f"1.0.{name}").reason.startswith("is part of an adapter (1.0)")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small[1](x), model[1](x))


def test_a_layer_called_base_layer_is_no_adapter() -> None:
    _, report = tensorlrf.compress(model_of(Backbone), keep_params=0.5, skip=[])
    assert report.layer("1.0.base_layer").factored


def test_a_merge_into_a_factored_base_is_refused() -> None:
    layer = tensorlrf.nn.factorize(nn.Linear(64, 64), "svd", 4)
    adapter = PeftLinear(nn.Linear(64, 64))
    adapter.register_module("base_layer", layer)  # by its name: the class says Linear
    before = layer.factors.to_dense()
    with pytest.raises(UnsupportedError, match=r"tensorlrf\.densify"):
        adapter.merge()
    assert torch.equal(layer.factors.to_dense(), before)
    adapter.register_module("base_layer", tensorlrf.densify(layer))
    adapter.merge()
