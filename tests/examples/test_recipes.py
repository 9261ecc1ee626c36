"""Each recipe says the very call that the script of its model makes."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import demo
import efficientnet
import minilm
import own_cnn
import pytest
import smollm2
import torch
from torch import nn

import tensorlrf
from tensorlrf import Recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MODEL = nn.Linear(2, 2)
BATCHES = [torch.zeros(1, 3, 8, 8)]
TEXTS = {"load_tokenizer": None}
SCRIPTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "own_cnn": (own_cnn, {"train": MODEL, "digits": (torch.zeros(512, 1, 8, 8), None)}),
    "minilm": (minilm, {"load_minilm": MODEL, "calibration_batches": BATCHES, **TEXTS}),
    "efficientnet": (efficientnet, {"load_efficientnet": MODEL, "calibration_batches": BATCHES}),
    "smollm2": (smollm2, {"load_smollm2": MODEL, "mixed_batches": BATCHES, **TEXTS}),
    "craft": (demo, {"load_detector": MODEL, "calibration_batches": BATCHES}),
}  # fmt: skip
"""A recipe -> the script, and what its functions give in the place of data and weights."""


DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(tensorlrf.compress).parameters.items()
    if name not in ("model", "calibration", "readout")
}


class Called(Exception):  # it is how the script ends
    """What `compress` was called with."""


def compress(model: nn.Module, **given: Any) -> None:
    raise Called(given)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recipe_is_the_call_of_its_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, stand_ins = SCRIPTS[name]
    for function, gives in stand_ins.items():
        monkeypatch.setattr(script, function, lambda *_, gives=gives, **__: gives)
    monkeypatch.setattr(tensorlrf, "frontier", lambda *_, **__: "no frontier")
    monkeypatch.setattr(tensorlrf, "compress", compress)
    monkeypatch.setattr(sys, "argv", [name, "--output", str(tmp_path / "out")])
    with pytest.raises(Called) as ended:
        script.main()
    (given,) = ended.value.args
    beside = {key: given.pop(key) for key in ("calibration", "readout") if key in given}
    assert beside["calibration"] is not None
    found = Recipe.read(RECIPES / f"{name}.yaml").arguments
    assert told(DEFAULTS | found) == told(DEFAULTS | given)


def told(arguments: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists: `compress` takes either."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}


def test_there_is_one_for_each_demo_model() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(SCRIPTS)
