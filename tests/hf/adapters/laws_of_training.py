"""Adapters are trained, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.hf.adapters.samples import ATTENTION, base_of, held, same
from tests.hf.models import IDS, llama, on_factors, output

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twenty_steps_train_the_adapter_alone(checkpointing: bool, dtype: torch.dtype) -> None:
    base = on_factors(llama())
    nn.init.normal_(base.lm_head.weight)  # so that logits can be far apart
    base, before = base.to(dtype), held(base.to(dtype))
    asked = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", lora_dropout=0.05)
    model = get_peft_model(base, asked).train()
    if checkpointing:
        base.gradient_checkpointing_enable()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    steps = torch.optim.AdamW(trained.values(), lr=2e-2)
    losses = []
    for _ in range(20):
        loss = model(input_ids=IDS, labels=IDS).loss
        steps.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in trained.values())
        assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)
        steps.step()
        losses.append(float(loss))
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    beside = output(base.eval()).float()
    assert same(held(model.unload()), before)
    assert bool(beside.isfinite().all())


def test_the_trainer(tmp_path: Path) -> None:
    rows = [{"input_ids": one, "labels": one} for one in IDS.repeat(8, 1)]
    args = hf.TrainingArguments(
        output_dir=str(tmp_path), max_steps=20, save_steps=20, per_device_train_batch_size=4,
        learning_rate=2e-2, report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=1,
        gradient_checkpointing=True,
    )  # fmt: skip
    model = get_peft_model(on_factors(llama()), LoraConfig(target_modules=ATTENTION))
    trainer = hf.Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    assert losses[-1] < losses[0]
    model.eval()
    expected = output(base_of(model))
    loaded = PeftModel.from_pretrained(model.unload(), tmp_path / "checkpoint-20")
    assert torch.equal(output(base_of(loaded)), expected)
