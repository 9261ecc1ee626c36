"""First phase: what this machine can do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

import torch

from bench import constants
from bench.harvest.serve import Tell

QUERY = (
    *("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit"),
    *("temperature.gpu", "memory.total", "memory.used", "utilization.gpu", "compute_mode"),
)
SECONDS = 0.15  # of each clock
_found: dict[str, float] = {}  # in this process


def handle(case: str, seconds: float, skip: Sequence[str], tell: Tell) -> None:
    """The constants of `bench.constants`, a row each, and what the driver says."""
    constants.SECONDS = SECONDS
    if case == "ceilings":
        tell({"row": {"kind": "driver", **driver()}})
        for name, measure in constants.ceilings().items():
            _constant(name, measure(), tell)
        _constant("rate_float16", constants.rate(torch.float16), tell)
    elif case == "shares":
        for name, share in constants.shares(torch.bfloat16, _found).items():
            _constant(name, share, tell)
        tell({"row": {"kind": "driver", **driver()}})  # the clocks under load
    else:
        _constant("barrier", constants.barrier(), tell)


def _constant(name: str, value: float, tell: Tell) -> None:
    _found[name] = value
    tell({"row": {"kind": "constant", "name": name, "value": value, "say": f"{name} {value:.4g}"}})


def driver() -> dict[str, str]:
    """What nvidia-smi says of clocks, driver, power and memory; nothing where it is missing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    asked = [tool, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=5.0)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(zip(QUERY, (word.strip() for word in done.stdout.split(",")), strict=False))
