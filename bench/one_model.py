"""One row of `bench/models.py`, in a process of its own: time, memory, latency, round trip."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import VARIANTS, Batch, call, compress, parameters, tensor_of
from torch import nn

import tensorlrf
from bench.resident import MB, Resident
from bench.subjects import Subject, subject
from tensorlrf.ops import Timings, time_calls

SECONDS = 12.0  # of timing, dense and compressed in turn


def parse(spec: str) -> tuple[str, str, float]:
    """ "minilm:prefix:.6" -> (model, variant, share); the dense model is "minilm:dense:1".

    Raises:
        ValueError: it is no such triple.
    """
    parts = spec.split(":")
    try:
        name, variant, keep = parts[0], parts[1], float(parts[2])
    except (IndexError, ValueError):
        raise ValueError(
            f"a row is MODEL:VARIANT:SHARE such as minilm:prefix:.6, got {spec!r}"
        ) from None
    if variant != "dense" and variant not in VARIANTS:
        raise ValueError(f"variant must be dense or one of {', '.join(VARIANTS)}, got {variant!r}")
    if not 0 < keep <= 1 or len(parts) != 3:
        raise ValueError(f"a row is MODEL:VARIANT:SHARE with a share in (0, 1], got {spec!r}")
    return name, variant, keep


def measure(spec: str) -> dict[str, Any]:
    """Figures of a row: "samples", seconds of each round of "dense" and "ours", and "info"."""
    name, variant, keep = parse(spec)
    about = subject(name)
    dense = about.load()
    example = about.example()
    if variant == "dense":
        samples = _timed({"dense": dense}, example).samples
        info = about.judge(dense)(dense) | {"parameters": parameters(dense)}
        return {"samples": dict(samples), "info": info}

    batches = about.calibration()
    resident = Resident()
    start = time.perf_counter()
    small, report = compress(dense, keep, variant, batches, about.skip, progress=False)
    took = time.perf_counter() - start
    peak = resident.peak_mb()

    start = time.perf_counter()
    tensorlrf.tune(small, example, progress=False)
    tuned = time.perf_counter() - start
    samples = _timed({"dense": dense, "ours": small}, example).samples
    info = about.judge(dense)(small) | {
        "kept": report.eligible.share,
        "parameters": parameters(small),
        "compress s": took,
        "peak MB": peak,
        "tune s": tuned,
    }
    return {"samples": dict(samples), "info": info | _round_trip(name, small, example)}


def check(name: str, folder: Path) -> str:
    """In a new process: load into the bare architecture, and compare with the saved outputs."""
    about: Subject = subject(name)
    saved = torch.load(folder / "outputs.pt", weights_only=True)
    model = about.ready(tensorlrf.load(folder / "small.safetensors", about.architecture()))
    got = tensor_of(call(model, saved["example"]))
    if torch.equal(got, saved["output"]):
        return "equal"
    return f"differs by {float((got - saved['output']).abs().max()):.1e}"


def _round_trip(name: str, small: nn.Module, example: Batch) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tensorlrf.save(small, folder / "small.safetensors")
        output = tensor_of(call(small, example)).clone()
        torch.save({"example": example, "output": output}, folder / "outputs.pt")
        harness = Path(__file__).with_name("models.py")
        run = subprocess.run(
            [sys.executable, str(harness), "--check", name, "--folder", made],
            capture_output=True,
            text=True,
            check=False,
        )
        said = run.stdout.strip().splitlines()
        if run.returncode or not said:
            raise RuntimeError(f"the round trip of {name} failed:\n{run.stderr}")
        size = (folder / "small.safetensors").stat().st_size
    return {"file MB": size / MB, "round trip": json.loads(said[-1])}


def _timed(models: dict[str, nn.Module], example: Batch) -> Timings:
    def run(model: nn.Module) -> Callable[[], object]:
        return lambda: call(model, example)

    return time_calls({name: run(model) for name, model in models.items()}, seconds=SECONDS)
