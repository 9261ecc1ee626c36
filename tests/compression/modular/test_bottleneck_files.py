"""Convolutional networks with narrower blocks, in files and without this library."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensorlrf import densify, export, inspect, load, save
from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.errors import FileFormatError
from tests.compression.modular.convnets import LARGE, LARGEST, drawn, logits, pictures
from tests.compression.modular.test_bottlenecks import of

# Pictures are small, and late blocks see few positions of them.
pytestmark = pytest.mark.filterwarnings("ignore:calibration is thin")

NAMES = ("gated", "linear_gates", "fused", LARGE, LARGEST)


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_the_same_model_from_the_architecture_it_came_from(
    name: str, folds: bool, tmp_path: Path
) -> None:
    small, _ = of(name, fold_batch_norms=folds)
    path, batch = tmp_path / "small.safetensors", pictures(1)[0]
    save(small, path)
    given = drawn(name, seed=3).train()
    before = {key: value.clone() for key, value in given.state_dict().items()}
    again = load(path, given)
    assert again.training
    assert torch.equal(logits(again.eval(), batch), logits(small, batch))
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    assert torch.equal(logits(load(path, small), batch), logits(small, batch))
    about = inspect(path, verify=True)
    numbers = [sum(t.numel() for t in m.state_dict().values()) for m in (given, small)]
    assert about.params_after == numbers[1]
    if not folds:
        assert fingerprint(small) == fingerprint(given)
        assert about.params_before == numbers[0]


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    small, _ = of("gated")
    save(small, tmp_path / "small.safetensors")
    for name in ("plain", "linear_gates", "mobilenet"):
        with pytest.raises(FileFormatError):
            load(tmp_path / "small.safetensors", drawn(name))
    other: Any = drawn("gated")
    other.blocks[0].depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=12, bias=False)
    with pytest.raises(FileFormatError):
        load(tmp_path / "small.safetensors", other)


def test_a_header_that_cannot_be_is_refused(tmp_path: Path) -> None:
    from tensorlrf.compression.checkpoint._store import pack
    from tensorlrf.compression.checkpoint.header import KEY
    from tensorlrf.files.sealed import seal, write_sealed

    small, _ = of("plain")
    tensors, header = pack(small)
    good = json.loads(header.to_text())
    wrong = [
        ("sizes", {"groups": 0}), ("sizes", {"no_such": 4}),
        ("shapes", {"running_mean": [10**9]}), ("places", ["blocks.0.nowhere"]),
    ]  # fmt: skip
    for key, value in wrong:
        values = json.loads(json.dumps(good))
        values["resized"][0][key] = value
        values.pop("checksum", None)
        path = tmp_path / "wrong.safetensors"
        write_sealed(path, KEY, seal(values), tensors, overwrite=True)
        with pytest.raises(FileFormatError):
            load(path, drawn("plain"))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_made_of_stock_modules_alone(name: str) -> None:
    small, report = of(name)
    batch = pictures(1)[0]
    wanted = logits(small, batch)
    for made in (export(small), densify(small)):
        assert torch.equal(logits(made, batch), wanted)
        assert sum(p.numel() for p in made.parameters()) == report.model.params_after
    assert not any(
        "tensorlrf" in type(value).__module__
        for module in export(small).modules()
        for value in vars(module).values()
    )
    again = pickle.loads(pickle.dumps(copy.deepcopy(small)))
    assert torch.equal(logits(again, batch), wanted)
