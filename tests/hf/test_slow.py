"""Models of the examples, and what needs more packages than transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import tensorlrf
import tensorlrf.hf
from tests.processes import PYTHONPATH, ROOT, python

pytestmark = pytest.mark.slow

FOLDER = Path(sys.prefix) / "hf"
"""`make .venv/hf` fills it."""

LAWS = Path(__file__).with_name("laws_of_accelerate.py")


def test_minilm(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    import minilm  # reads the packages of requirements-examples.txt

    model, tokenizer = minilm.load_minilm(), minilm.load_tokenizer()
    small, _ = tensorlrf.compress(model, keep_params=0.6, skip=minilm.SKIP)
    batch: Any = tokenizer(["factors of a weight", "rank"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = small(**batch).last_hidden_state
        tensorlrf.save(small, tmp_path / "a")
        small.save_pretrained(tmp_path / "b", max_shard_size="8MB")
        for name in "ab":
            again: Any = hf.AutoModel.from_pretrained(tmp_path / name)
            assert torch.equal(again(**batch).last_hidden_state, expected)
            loaded = tensorlrf.load(tmp_path / name)
            assert torch.equal(loaded(**batch).last_hidden_state, expected)
    tokenizer.save_pretrained(tmp_path / "a")
    features = hf.pipeline("feature-extraction", str(tmp_path / "a"), device="cpu")
    with torch.no_grad():
        alone = small(**tokenizer(["rank"], return_tensors="pt")).last_hidden_state
    assert torch.equal(torch.as_tensor(features("rank"), dtype=torch.float32, device="cpu"), alone)


def test_trainer_devices_and_sentences() -> None:
    assert FOLDER.is_dir(), "make .venv/hf"
    path = ":".join([str(FOLDER), PYTHONPATH, str(ROOT / "examples")])
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", LAWS, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "14 passed" in done.stdout
