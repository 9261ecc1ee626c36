"""Functions of `calls` on the ranks of a small group, each in a process of one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[4]
TIMEOUT = 300  # seconds, of a test that would hang; a machine may be ten times as slow as another


def environment(**more: str) -> dict[str, str]:
    """Of a process of one thread that finds both packages and the tests."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


@dataclass
class Rank:
    """A process that has been started."""

    process: subprocess.Popen[bytes]
    result: Path
    errors: Path

    def value(self) -> Any:
        """What its function has returned. Fails where it raised."""
        assert self.process.wait(TIMEOUT) == 0, self.errors.read_text()[-4000:]
        return json.loads(self.result.read_text())


def start(size: int, folder: Path, name: str, *given: Any) -> list[Rank]:
    """`calls.name(*given)` on so many ranks; what is given is JSON."""
    folder.mkdir()
    ranks = []
    for rank in range(size):
        result = folder / f"{rank}.json"
        call = json.dumps([rank, size, str(folder / "store"), str(result), name, given])
        command = [sys.executable, "-m", "tests.compression.scale.ranks.calls", call]
        errors = folder / f"{rank}.err"
        with errors.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=file)
        ranks.append(Rank(process, result, errors))
    return ranks


def values(size: int, folder: Path, name: str, *given: Any) -> list[Any]:
    """What it returns on each rank."""
    ranks = start(size, folder, name, *given)
    try:
        return [rank.value() for rank in ranks]
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.wait()


def torchrun(size: int, arguments: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
    """torchrun on this machine, with a free port."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}",
        *arguments,
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=ROOT, env=environment(**more), capture_output=True, text=True,
        timeout=TIMEOUT, check=False,
    )  # fmt: skip
