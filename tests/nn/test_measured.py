"""What was measured belongs to a device, and travels with the layer."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tensorlrf
from tensorlrf import ops
from tensorlrf.errors import ArgumentError
from tensorlrf.ops import PathTable
from tests.compression.tuning.tuned import linear

ROOT = Path(__file__).resolve().parents[2]


def test_the_key_of_a_device_is_one_stable_line() -> None:
    key = ops.device_key("cpu")
    assert "\n" not in key
    assert f"torch {torch.__version__}" in key
    assert f"tensorlrf {tensorlrf.__version__}" in key
    code = (
        "import torch, tensorlrf; n = torch.get_num_threads(); "
        "print(tensorlrf.ops.device_key('cpu')); torch.set_num_threads(n + 1); "
        "print(tensorlrf.ops.device_key('cpu'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
    )
    same, other = run.stdout.splitlines()
    assert same == key
    assert other != key
    assert ops.device_key("meta") != key


def test_measurements_belong_to_a_device_and_a_dtype() -> None:
    layer = linear()
    default, key = layer.path_table, layer.device_key
    tables = [
        PathTable.from_choices({8: a, 64: b}) for a, b in (("dense", "chain"), ("chain", "dense"))
    ]
    layer.set_measured(key, tables[0])
    layer.set_measured("another machine", tables[1])
    assert layer.path_table is tables[0]
    layer.to(torch.float64)
    assert layer.device_key != key
    assert layer.path_table == layer._default_path_table()
    layer.set_measured(layer.device_key, tables[1])
    layer.to(torch.float32)
    assert layer.path_table is tables[0]
    layer.to("meta")
    assert layer.path_table == default  # meta tensors are planned for the CPU
    layer.to_empty(device="cpu")
    assert layer.path_table is tables[0]
    assert list(layer.measured) == [key, "another machine", key.replace("float32", "float64")]


def test_what_was_measured_survives_copies_and_stays_out_of_the_state_dict() -> None:
    layer = linear()
    table = PathTable.from_choices({8: "dense", 64: "chain"})
    layer.set_measured(layer.device_key, table)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.measured == layer.measured
        assert twin.measured is not layer.measured
        assert twin.path_table == table
        twin.set_measured("elsewhere", table)
    assert "elsewhere" not in layer.measured
    assert sorted(layer.state_dict()) == ["bias", "left", "right"]
    fresh = linear()
    fresh.load_state_dict(layer.state_dict())
    assert fresh.measured == {}


def test_tables_that_a_layer_cannot_take_are_refused_here_and_kept_for_elsewhere() -> None:
    layer = linear()
    before = layer.path_table
    with pytest.raises(ArgumentError, match=r"table='chain' is a str"):
        layer.set_measured("key", "chain")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="fold"):
        layer.set_measured(layer.device_key, PathTable.single("fold"))
    assert layer.measured == {}
    layer.set_measured("a GPU", PathTable.single("fused"))
    assert layer.path_table is before
    layer.measured[layer.device_key] = PathTable.single("fold")  # as of another version
    assert layer._known_path_table() == layer._default_path_table()
