"""Checks that several ranks run together, in processes of their own: one start for all files.

A file has functions `check_...(mesh)`; `results` runs all of them, one after the other, on ranks
that meet over gloo. A rank that fails or waits too long ends the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tests.processes import PYTHONPATH, ROOT

SECONDS = 400
"""Until ranks that have not ended are ended."""

MEETING = timedelta(seconds=100)
"""Until a rank gives up waiting for another."""

Check = Callable[[DeviceMesh], None]


def checks_of(module: ModuleType | str) -> list[str]:
    found = sys.modules[module] if isinstance(module, str) else module
    return [name for name in vars(found) if name.startswith("check_")]


def results(modules: list[str], folder: Path, ranks: int = 2) -> dict[str, dict[str, str]]:
    """Module -> check -> what went wrong on any rank, empty where nothing did."""
    command = [sys.executable, "-W", "error", "-m", "tests.nn.parallel.ranks", str(folder)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{PYTHONPATH}"}
    started = [
        subprocess.Popen(
            [*command, str(k), str(ranks), *modules],
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in range(ranks)
    ]
    end = time.monotonic() + SECONDS
    while any(p.poll() is None for p in started) and time.monotonic() < end:
        if any(p.poll() not in (None, 0) for p in started):
            break
        time.sleep(0.05)
    said = []
    for process in started:
        if process.poll() is None:
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
        said.append(process.communicate()[0][-3000:])
    ended = "" if all(p.returncode == 0 for p in started) else "\n".join(said)
    found: dict[str, dict[str, str]] = {module: {"all": ended} for module in modules}
    for k in range(ranks):
        path = folder / f"{k}.json"
        for line in path.read_text().splitlines() if path.exists() else ():
            module, name, wrong = json.loads(line)
            own = found[module]
            own[name] = own.get(name, "") + (f"rank {k}: {wrong}" if wrong else "")
    return found


def main(folder: str, rank: str, ranks: str, *modules: str) -> None:
    """One rank: a line of JSON for each check, up to the first that fails."""
    torch.set_num_threads(1)
    os.environ["TENSORLRF_RANKS"] = folder
    store = dist.FileStore(f"{folder}/store", int(ranks))
    dist.init_process_group(
        "gloo", store=store, rank=int(rank), world_size=int(ranks), timeout=MEETING
    )
    mesh = init_device_mesh("cpu", (int(ranks),), mesh_dim_names=("tp",))
    with open(f"{folder}/{rank}.json", "w") as out:
        for module in modules:
            found: Any = import_module(module)
            for name in checks_of(found):
                wrong = ""
                torch.manual_seed(0)
                try:
                    getattr(found, name)(mesh)
                    dist.barrier()
                except Exception:
                    wrong = traceback.format_exc()
                out.write(json.dumps([module, name, wrong]) + "\n")
                out.flush()
                if wrong:
                    os._exit(1)  # the others wait for this rank in vain
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
