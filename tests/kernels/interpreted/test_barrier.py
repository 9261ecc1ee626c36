"""The grid barrier: in a debug run it gives up, with a word, where it would wait for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import python

pytestmark = pytest.mark.interpreter

SCRIPT = """
import torch, triton
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder
from tensorlrf_kernels._grid import wait

# The interpreter takes no options; those of `Call` say debug in such a run.
object.__setattr__(interpreter_builder.options, "debug", True)

@triton.jit
def waiting(counters, y, blocks):
    wait(counters, blocks)
    tl.store(y, 1)

def run(ready, blocks):
    counters, y = torch.tensor([ready, 0]).int(), torch.zeros(1)
    waiting[(1,)](counters, y, blocks)
    print("passed", y.item())

run(3, 3)
run(2, 3)
"""


def test_a_debug_run_bounds_the_wait(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(SCRIPT)
    run = python("waiting.py", cwd=tmp_path, TRITON_INTERPRET="1", TENSORLRF_POLLS="50")
    assert run.stdout.splitlines() == ["passed 1.0"]
    assert run.returncode != 0
    assert "grid barrier: the other programs have not come" in run.stderr
