"""Adapters on the models of the examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

import tensorlrf
from tensorlrf.nn import factorize
from tests.hf.adapters.samples import factored, held, same

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours


def test_minilm(tmp_path: Path) -> None:
    import minilm

    model, tokenizer = minilm.load_minilm(), minilm.load_tokenizer()
    small, _ = tensorlrf.compress(model, keep_params=0.6, skip=minilm.SKIP, progress=False)
    batch = tokenizer(["factors of a weight", "rank"], padding=True, return_tensors="pt")
    _goes_and_comes(small, dict(batch), ["query", "value"], tmp_path)


def test_smollm2(tmp_path: Path) -> None:
    """In float64. Without calibration the model is so badly conditioned that float32 alone moves
    its logits by 1e-4 of themselves; its layers, on inputs that they see, it does not."""
    import smollm2

    model, tokenizer = smollm2.load_smollm2(), smollm2.load_tokenizer()
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and name not in smollm2.SKIP:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, factorize(layer, "svd", 0.8))
    batch = {"input_ids": tokenizer("A rank is a number of terms.", return_tensors="pt").input_ids}
    _layers_agree(model, batch)
    _goes_and_comes(model.double(), batch, "all-linear", tmp_path)


def test_smollm2_fitted_to_its_inputs(tmp_path: Path) -> None:
    """In float32, as people have it."""
    import smollm2

    model, tokenizer = smollm2.load_smollm2(), smollm2.load_tokenizer()
    small, _ = tensorlrf.compress(
        model, keep_params=0.9, calibration=smollm2.mixed_batches(tokenizer, 8), skip=smollm2.SKIP,
        target="independent", allocation="uniform", metric="outputs", progress=False,
    )  # fmt: skip
    _goes_and_comes(small, smollm2.example(tokenizer), "all-linear", tmp_path, relative=True)


@torch.no_grad()
def _layers_agree(small: Any, batch: Any) -> None:
    model = _adapted_as_trained(small, "all-linear")
    seen: dict[Linear, tuple[Tensor, Tensor]] = {}
    put = [
        m.register_forward_hook(lambda m, given, out: seen.update({m: (given[0], out)}))
        for m in small.modules()
        if isinstance(m, Linear)
    ]
    small(**batch)
    for hook in put:
        hook.remove()
    assert len(seen) == 210
    model.merge_adapter()
    off = max(float((m(x) - y).norm() / y.norm()) for m, (x, y) in seen.items())
    print(f"layers differ by {off:.1e} at most")
    assert off <= 1e-5
    model.unload()


def _adapted_as_trained(small: Any, targets: Any) -> Any:
    """With an adapter of the size that training leaves."""
    model = get_peft_model(small, LoraConfig(r=8, lora_alpha=16, target_modules=targets)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


@torch.no_grad()
def _goes_and_comes(
    small: Any, batch: Any, targets: Any, path: Path, *, relative: bool = False
) -> None:
    """An adapter merged, unmerged, merged and saved. Outputs agree to 1e-5, or to 1e-5 of the
    largest of them."""
    plain, names = small(**batch)[0], {n for n, _ in factored(small)}
    model = _adapted_as_trained(small, targets)
    before, beside = held(small), small(**batch)[0]
    assert float((beside - plain).abs().max()) > 1e-2
    most = 1e-5 * (float(beside.abs().max()) if relative else 1.0)
    model.merge_adapter()
    off = float((small(**batch)[0] - beside).abs().max())
    print(f"outputs differ by {off:.1e}, of {float(beside.abs().max()):.3g}")
    assert off <= most
    model.unmerge_adapter()
    assert same(held(small), before)
    assert torch.equal(small(**batch)[0], beside)
    merged = model.merge_and_unload()
    expected = merged(**batch)[0]
    assert float((expected - beside).abs().max()) <= most
    merged.save_pretrained(path)
    again = type(merged).from_pretrained(path, dtype=merged.dtype)
    assert torch.equal(again(**batch)[0], expected)
    assert {n for n, _ in factored(again)} == names
