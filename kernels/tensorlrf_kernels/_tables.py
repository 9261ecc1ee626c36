"""Launches that were tuned by measurement, kept as JSON: one file a device and Triton version."""

from __future__ import annotations

import importlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tensorlrf_kernels import _bound
from tensorlrf_kernels.chips import Chip, chip_of
from tensorlrf_kernels.launches import LaunchConfig, Workload

SHIPPED = Path(__file__).parent / "tables"
VARIABLE = "TENSORLRF_TABLES"  # a folder that is looked into first


Tuner = Callable[[str, str, Workload, torch.device], None]
"""(op, direction, problem, device): leaves a launch in the tables, or nothing."""

_tuner: Tuner | None = None


@contextmanager
def tuning_by(tuner: Tuner) -> Iterator[None]:
    """Inside, `tuner` is called with every problem before its launch is chosen."""
    global _tuner
    before, _tuner = _tuner, tuner
    _bound.pause(True)
    try:
        yield
    finally:
        _tuner = before
        _bound.pause(before is not None)


def launch_for(
    op: str, direction: str, problem: Workload, device: torch.device
) -> LaunchConfig | None:
    """As `choose`, after tuning where a tuner is installed."""
    if _tuner is not None:
        _tuner(op, direction, problem, device)
    return choose(op, direction, problem, device)


@lru_cache(maxsize=4096)
def choose(op: str, direction: str, problem: Workload, device: torch.device) -> LaunchConfig | None:
    """The launch for a problem: tuned where a table has one for this device and Triton, else by
    the op's heuristic; None where no kernel of the op serves."""
    chip = chip_of(device)
    heuristic = getattr(importlib.import_module(f"tensorlrf_kernels.{op}.launch"), direction)
    config: LaunchConfig | None = heuristic(problem, chip)
    if config is None:
        return None
    return tuned(chip, op, direction, problem) or config


def tuned(chip: Chip, op: str, direction: str, problem: Workload) -> LaunchConfig | None:
    """What the tables of this chip have for the problem's bucket."""
    return _entries(chip.name).get((op, direction, dtype_key(problem), bucket(problem)))


def remember(chip: Chip, op: str, direction: str, problem: Workload, config: LaunchConfig) -> None:
    """Use `config` for the problem's bucket from now on, in this process."""
    _entries(chip.name)[op, direction, dtype_key(problem), bucket(problem)] = config
    choose.cache_clear()
    _bound.forget()


def bucket(problem: Workload) -> str:
    """Problems of one bucket share a launch."""
    return problem.bucket


def dtype_key(problem: Workload) -> str:
    """The dtype by name, "tf32" for float32 in TF32."""
    if problem.dtype is torch.float32 and problem.tf32:
        return "tf32"
    return str(problem.dtype).removeprefix("torch.")


def table_name(device: str, triton: str) -> str:
    """The file's name for a device and a Triton version, whose patch number does not count."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return f"{slug}-triton-{'.'.join(triton.split('.')[:2])}.json"


def write_table(
    folder: Path,
    chip: Chip,
    entries: dict[tuple[str, str, str, str], LaunchConfig],
    *,
    triton: str | None = None,
) -> Path:
    """Add entries to the table of a chip in `folder`, in one step; returns the file.

    triton  the version that they were tuned with, this one by default
    """
    triton = triton or triton_version()
    path = folder / table_name(chip.name, triton)
    old = _read(path) if path.exists() else {}
    nested: dict[str, Any] = {}
    for key, config in sorted({**old, **entries}.items()):
        op, direction, dtype, problem = key
        of_op = nested.setdefault(f"{op}.{direction}", {})
        of_op.setdefault(dtype, {})[problem] = config.to_json()
    content = {"device": chip.name, "triton": triton, "launches": nested}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # of this writer alone
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@cache
def triton_version() -> str:
    """Triton's version, without importing it; "none" where there is none."""
    for name in ("triton", "pytorch-triton"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "none"


@cache
def _entries(device: str) -> dict[tuple[str, str, str, str], LaunchConfig]:
    name = table_name(device, triton_version())
    found: dict[tuple[str, str, str, str], LaunchConfig] = {}
    for folder in (SHIPPED, os.environ.get(VARIABLE)):
        path = Path(folder, name) if folder else None
        if path is not None and path.is_file():
            found |= _read(path)
    return found


def _read(path: Path) -> dict[tuple[str, str, str, str], LaunchConfig]:
    try:
        launches = json.loads(path.read_text(encoding="utf-8"))["launches"]
        return {
            (*key.split("."), dtype, problem): LaunchConfig.from_json(config)
            for key, of_dtype in launches.items()
            for dtype, of_problem in of_dtype.items()
            for problem, config in of_problem.items()
        }
    except (
        ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is not a table of launches ({error}); remove it") from None
