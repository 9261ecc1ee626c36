"""What transformers does where it finds accelerate, and sentence-transformers: run by test_slow.py
in a process of its own, which has both on its path."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import minilm
import pytest
import texts
import torch
import transformers as hf
from torch import nn

import tensorlrf
import tensorlrf.hf
from tests.hf.models import MODELS, output

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours


def rows() -> list[dict[str, Any]]:
    draws = torch.Generator(device="cpu").manual_seed(0)
    drawn = torch.randint(3, 60, (16, 12), generator=draws, device="cpu", dtype=torch.int64)
    return [{"input_ids": one, "labels": one} for one in drawn]


def trainer(model: Path, out: Path) -> Any:
    torch.manual_seed(0)
    args = hf.TrainingArguments(
        output_dir=str(out), max_steps=6, save_steps=3, per_device_train_batch_size=4,
        learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True,
        gradient_checkpointing=True,
    )  # fmt: skip
    loaded = hf.AutoModelForCausalLM.from_pretrained(model)
    return hf.Trainer(model=loaded, args=args, train_dataset=rows())


@pytest.mark.parametrize("name", ["llama", "llama with its table", "qwen2", "gpt2"])
def test_training_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    tensorlrf.save(model, tmp_path / "m")
    through = trainer(tmp_path / "m", tmp_path / "through")
    through.train()
    shutil.copytree(tmp_path / "through" / "checkpoint-3", tmp_path / "cut" / "checkpoint-3")
    resumed = trainer(tmp_path / "m", tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    expected = output(through.model.eval())
    assert not torch.equal(expected, output(model))
    assert torch.equal(output(resumed.model.eval()), expected)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "through" / "checkpoint-6")
    assert torch.equal(output(again), expected)


@pytest.mark.parametrize("name", ["llama", "llama with its table", "vit"])
@pytest.mark.parametrize("where", ["cpu", "auto", "disk"])
def test_devices(name: str, where: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    model.save_pretrained(tmp_path / "m", max_shard_size="8KB")
    more: dict[str, Any] = {"device_map": where}
    if where == "disk":  # the second half of its parts, which are read when they are called
        names = [
            n for n, m in model.base_model.named_children() if not isinstance(m, nn.ModuleList)
        ]
        whole = {f"{model.base_model_prefix}.{n}": "cpu" for n in names}
        blocks = {f"{model.base_model_prefix}.layers.{k}": "disk" for k in range(2)}
        heads = {n: "cpu" for n, _ in model.named_children() if n != model.base_model_prefix}
        more = {"device_map": {**whole, **blocks, **heads}, "offload_folder": tmp_path / "off"}
    again = type(model).from_pretrained(tmp_path / "m", **more)
    assert torch.equal(output(again), output(model))


def test_a_sentence_encoder(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    model, tokenizer = minilm.load_minilm(), minilm.load_tokenizer()
    small, _ = tensorlrf.compress(model, keep_params=0.6, skip=minilm.SKIP)
    tensorlrf.save(small, tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    body = Transformer(str(tmp_path / "encoder"))
    encoder = SentenceTransformer(modules=[body, Pooling(384, "mean")], device="cpu")
    some = list(itertools.islice(texts.documents(), 4))
    before = encoder.encode(some)
    encoder.save(str(tmp_path / "whole"))
    again = SentenceTransformer(str(tmp_path / "whole"), device="cpu")
    assert abs(again.encode(some) - before).max() == 0
