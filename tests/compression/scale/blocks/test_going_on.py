"""A run from block to block that ended early goes on, and ends with the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorlrf
from tensorlrf.compression import _working_copy
from tensorlrf.compression.scale.blocks._states import States
from tensorlrf.errors import ArgumentError, CalibrationWarning
from tensorlrf.files.job import job_folder
from tests.compression.scale.blocks.networks import contents, ids, net, on_meta, saved
from tests.failing import Failing, cut_short

# Batches are few.
pytestmark = pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")

ROOT = Path(__file__).resolve().parents[4]


def compressed(source: Path, out: Path, **more: Any) -> Any:
    call: dict[str, Any] = {
        "keep_params": 0.5, "calibration": ids(), "model": on_meta(net()), "threads": 1,
        "shard_bytes": 3000, "progress": False, **more,
    }  # fmt: skip
    return tensorlrf.compress_checkpoint(source, out, **call)


@pytest.mark.parametrize("inputs", ["original", "prefix"])
def test_ended_at_every_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: str) -> None:
    source, out = saved(net(), tmp_path / "a.safetensors"), tmp_path / "out"
    compressed(source, tmp_path / "whole", inputs=inputs)
    own = _working_copy.factor
    for last in range(1, 30):
        failing = Failing(own, last)
        monkeypatch.setattr(_working_copy, "factor", failing)
        try:
            report = compressed(source, out, inputs=inputs)
            break
        except MemoryError:
            assert [p.name for p in out.iterdir()] == [".tensorlrf.job"]
    assert contents(out) == contents(tmp_path / "whole")
    assert report.resumed > 0
    assert failing.made == len(report.layers) - report.resumed  # whole blocks are not made again


def test_what_is_damaged_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of which a part is lost, with those behind it whole."""
    source, out = saved(net(), tmp_path / "a.safetensors"), tmp_path / "out"
    compressed(source, tmp_path / "whole")
    with cut_short(monkeypatch, _working_copy, "factor", 5):
        compressed(source, out)
    parts = sorted((job_folder(out, as_folder=True) / "parts").iterdir())
    parts[0].unlink()
    parts[-1].write_bytes(b"")
    compressed(source, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_another_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = saved(net(), tmp_path / "a.safetensors"), tmp_path / "out"
    with cut_short(monkeypatch, _working_copy, "factor", 4):
        compressed(source, out)
    for more, told in (
        ({"calibration": ids(seed=3)}, "calibration was"),
        ({"inputs": "prefix"}, "inputs was 'original'"),
        ({"holdout": 0.0}, "holdout was"),
        ({"memory_limit": 1 << 30}, "memory_limit was None"),
        ({"calibration": None, "model": None}, "another one: architecture was .*; calibration"),
    ):
        with pytest.raises(ArgumentError, match=told):
            compressed(source, out, **more)
    assert compressed(source, out).resumed > 0


def test_warnings_are_of_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of layers that an earlier run has made, too."""
    source, out = saved(net(), tmp_path / "a.safetensors"), tmp_path / "out"
    few = ids(1, size=4)
    with cut_short(monkeypatch, _working_copy, "factor", 4):
        compressed(source, out, calibration=few)
    with pytest.warns(CalibrationWarning, match=r"thin for .*blocks\.0\.up.* and \d more"):
        compressed(source, out, calibration=few)


def test_the_memory_of_a_run_is_that_with_which_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that moments are of one form, whatever is free later."""
    from tensorlrf.compression.scale.blocks import _blockwise

    source, out = saved(net(), tmp_path / "a.safetensors"), tmp_path / "out"
    compressed(source, tmp_path / "whole")
    with cut_short(monkeypatch, _working_copy, "factor", 4):
        compressed(source, out)
    monkeypatch.setattr(_blockwise, "free_bytes", lambda device: 1.0)
    compressed(source, out)
    assert contents(out) == contents(tmp_path / "whole")


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from tests.compression.scale.blocks.test_going_on import *
compressed(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def _start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    paths = (ROOT, ROOT / "kernels")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", SCRIPT, str(source), str(out)]
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)


@pytest.mark.slow  # what is kept layer by layer is seen above, kills of commands in tests/abuse
def test_killed_at_some_instants(tmp_path: Path) -> None:
    source, out = saved(net(), tmp_path / "a.safetensors"), tmp_path / "out"
    compressed(source, tmp_path / "whole")
    journal = job_folder(out, as_folder=True) / "journal"
    for kill in range(2):
        run = _start(source, out)
        seen = journal.stat().st_size if journal.exists() else 0
        while run.poll() is None:
            if journal.exists() and journal.stat().st_size > seen + 700 * kill:
                break
            time.sleep(0.001)
        run.kill()
        if run.wait(60) == 0:
            break
    if not (out / "tensorlrf.safetensors").exists():
        compressed(source, out)
    assert contents(out) == contents(tmp_path / "whole")
    assert not (out / ".tensorlrf.job").exists()


def test_a_link_in_the_place_of_outputs_leads_nowhere(tmp_path: Path) -> None:
    """Of a folder that a stranger has made: what blocks put out is not written to another one."""
    away = tmp_path / "away"
    away.mkdir()
    (away / "mine.txt").write_text("mine")
    (tmp_path / "states").symlink_to(away)
    states = States(tmp_path / "states", room=0)
    states.put(("given", 0, 0), torch.ones(4, dtype=torch.float32, device="cpu"))
    assert states.spilled == 16
    states.close()
    assert contents(away) == {"mine.txt": b"mine"}
