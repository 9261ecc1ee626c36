"""refine: what cannot be is told, with the remedy, before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tensorlrf
from tensorlrf.errors import ArgumentError
from tests.compression.refinement.students import Tower, batches, cnn, pair

QUIET: dict[str, Any] = {"progress": False}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give one budget"),
        ({"steps": 2, "seconds": 1.0}, "give one budget"),
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"seconds": float("inf")}, "seconds=inf"),
        ({"seconds": -1}, "seconds=-1"),
        ({"steps": 2, "lr": 0.0}, "lr=0.0"),
        ({"steps": 2, "lr": float("nan")}, "lr=nan"),
        ({"steps": 2, "patience": 0}, "patience=0"),
        ({"steps": 2, "accumulate": 1.5}, "accumulate=1.5"),
        ({"steps": 2, "lora": 0}, "lora=0"),
        ({"steps": 2, "dtype": torch.float64}, "dtype=torch.float64"),
        ({"steps": 2, "holdout": 0.0}, "holdout=0.0"),
        ({"steps": 2, "phases": []}, r"phases=\[\]"),
        ({"steps": 2, "phases": "local"}, "phases='local'"),
        ({"steps": 2, "phases": ["locally"]}, "locally"),
        ({"steps": 2, "phases": ["local"], "look_ahead": True}, "look_ahead"),
        ({"steps": 2, "loss": "mse"}, "mse"),
        ({"steps": 2, "loss": 3}, "loss"),
        ({"steps": 2, "loss": ("kl", "cosine")}, "one of each"),
        ({"steps": 2, "labels": [1] * 6}, "labels are for a function"),
        ({"steps": 2, "labels": [1] * 5, "loss": F.cross_entropy}, "labels has 5 entries"),
        ({"steps": 2, "loss": lambda y: y}, "one number"),
        ({"steps": 2, "loss": lambda y: y.detach().sum()}, "loss has no gradient"),
        ({"steps": 2, "readout": lambda y: None}, "readout"),
        ({"steps": 2, "readout": lambda y: y / 0}, r"batch \d+ contains NaN or Inf"),
        ({"steps": 2, "random_state": "a"}, "random_state"),
        ({"steps": 2, "journal": 3}, "journal=3"),
    ],
)
def test_a_wrong_argument_is_named(options: dict[str, Any], words: str) -> None:
    model, small = pair()
    with pytest.raises(ArgumentError, match=words):
        tensorlrf.refine(small, model, batches(), **options, **QUIET)


def test_models_of_different_architectures() -> None:
    _, small = pair()
    with pytest.raises(ArgumentError, match="different architectures: 'embedding'"):
        tensorlrf.refine(small, Tower(width=8), batches(), steps=1, **QUIET)
    with pytest.raises(ArgumentError, match=r"different architectures: 'blocks\.2' is missing"):
        tensorlrf.refine(small, Tower(depth=3), batches(), steps=1, **QUIET)
    with pytest.raises(ArgumentError, match="model is a str"):
        tensorlrf.refine(small, "model", batches(), steps=1, **QUIET)  # type: ignore[arg-type]


def test_nothing_to_train() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    with pytest.raises(ArgumentError, match="nothing to train"):
        tensorlrf.refine(model, model, [torch.rand(2, 4)] * 3, steps=1, **QUIET)


def test_no_batch_to_hold_out() -> None:
    model, small = pair()
    with pytest.raises(ArgumentError, match="data has 1 batch, and none can be held out"):
        tensorlrf.refine(small, model, batches(1), steps=1, **QUIET)
    with pytest.raises(ArgumentError, match=r"data is a Tensor.*data=\[batch\]"):
        tensorlrf.refine(small, model, batches(1)[0], steps=1, **QUIET)


def test_labels_that_do_not_fit_are_told_before_anything_is_trained() -> None:
    """Those of a batch that comes late in the course too."""
    model, small = pair()
    labels = [torch.zeros(4 if k < 3 else 5, 3, dtype=torch.long) for k in range(6)]
    calls = []

    def own(logits: Tensor, wanted: Tensor) -> Tensor:
        calls.append(logits.requires_grad)
        return F.cross_entropy(logits.flatten(0, -2), wanted.flatten())

    with pytest.raises(ArgumentError, match=r"loss: the function fails on batch 3: .*labels="):
        tensorlrf.refine(small, model, batches(), labels=labels, loss=own, steps=50, **QUIET)
    assert not any(calls)


def test_a_phase_that_was_asked_for_and_has_no_parts() -> None:
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    small, _ = tensorlrf.compress(plain, keep_params=0.5, skip=[])
    data = [torch.rand(4, 8) for _ in range(3)]
    with pytest.raises(ArgumentError, match="phases has 'block'"):
        tensorlrf.refine(small, plain, data, steps=3, phases=["block"], **QUIET)
    with pytest.raises(ArgumentError, match="checkpointing=True"):
        tensorlrf.refine(small, plain, data, steps=3, checkpointing=True, **QUIET)
    _, report = tensorlrf.refine(small, plain, data, steps=10, **QUIET)
    assert {one.phase for one in report.curve} == {"given", "local", "global"}


def test_batches_that_the_model_cannot_take_are_named() -> None:
    model, small = cnn()
    data = [torch.rand(2, 3, 8, 8), torch.rand(2, 4, 8, 8)]
    with pytest.raises(ArgumentError, match="data: the model cannot take batch 1"):
        tensorlrf.refine(small, model, data, steps=1, **QUIET)
