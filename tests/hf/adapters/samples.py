"""Models with adapters of peft, and what is compared of them. What is here and the laws beside run
in a process that finds peft: test_adapters.py starts it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import tensorlrf.hf  # noqa: F401  which has peft know factored layers
from tensorlrf.nn import FactoredLinear

ATTENTION = ["q_proj", "v_proj"]


def drawn(adapted: Any, name: str = "") -> Any:
    """With adapters that say something, in eval mode; those whose name is this, where given."""
    for own, parameter in adapted.named_parameters():
        if "lora_" in own and (not name or f".{name}." in own):
            nn.init.normal_(parameter, std=0.2)
    return adapted.eval()


def adapted(model: Any, targets: Any = ATTENTION, **more: Any) -> Any:
    asked = {"r": 3, "lora_alpha": 6, "target_modules": targets, **more}
    return drawn(get_peft_model(model, LoraConfig(**asked)))


def held(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def near(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-5 * max(1.0, float(b.abs().max()))


def base_of(model: Any) -> Any:
    return model.base_model.model


def factored(model: nn.Module) -> Iterator[tuple[str, FactoredLinear]]:
    return ((n, m) for n, m in model.named_modules() if isinstance(m, FactoredLinear))
