"""What a past version wrote loads to the same bits."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorlrf
from tensorlrf import Plan, io
from tensorlrf.compression._methods import METHODS
from tensorlrf.factors import FORMATS
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import PathTable
from tests.golden.samples import Net, digest_of_numbers, methods, net_input, plan_of
from tests.golden.write import FILES, told_factors, told_file, told_model, told_plan


def files(kind: str, suffix: str) -> list[Path]:
    return [p for p in sorted((FILES / kind).glob(f"*{suffix}")) if ".told" not in p.name]


def told(path: Path) -> Any:
    return json.loads(told_file(path).read_text())


@pytest.mark.parametrize("path", files("factors", ".safetensors"), ids=lambda p: p.stem)
def test_factors(path: Path) -> None:
    found = io.load_factors_dict(path)
    assert {name: told_factors(f) for name, f in found.items()} == told(path)


@pytest.mark.parametrize("path", files("models", ".safetensors"), ids=lambda p: p.stem)
def test_models(path: Path) -> None:
    with torch.device("meta"):
        blank = Net()
    model = tensorlrf.load(path, blank)
    assert told_model(model) == told(path)
    # Whole numbers: whatever the path, the sums are the same to the bit.
    for name, layer in model.named_children():
        for taken in layer.paths if isinstance(layer, FactoredLayer) else ():
            layer.path_table = PathTable.single(taken)
            assert digest_of_numbers(layer(net_input(name))) == told(path)["layers"][name][1], taken


@pytest.mark.parametrize("path", files("plans", ".json"), ids=lambda p: p.stem)
def test_plans(path: Path) -> None:
    old = Plan.from_json(path.read_text())
    assert told_plan(old) == told(path)
    # It still is of the architecture that it was made for, and says what would be planned today.
    assert old == plan_of(methods()[path.stem])


def test_every_option_is_another_than_by_default() -> None:
    for word, method in methods().items():
        plain = METHODS[word]()
        same = [f.name for f in fields(method) if getattr(method, f.name) == getattr(plain, f.name)]
        assert set(same) <= {"rank", "error", "n_restarts", "order"}, word


def test_there_is_one_of_every_kind() -> None:
    formats = {row["format"] for p in files("factors", ".safetensors") for row in told(p).values()}
    assert formats == set(FORMATS)
    assert {p.stem for p in files("models", ".safetensors")} == set(METHODS)
    assert {p.stem for p in files("plans", ".json")} == set(methods()) == set(METHODS)
    assert sum(p.stat().st_size for p in FILES.rglob("*.*")) < 400_000
