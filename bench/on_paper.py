"""What Llamas of 70 and of 405 billion parameters would take, counted before anybody runs them.

    python bench/on_paper.py

Bytes and operations follow from the shapes. Seconds are those at rates measured here, on one
thread: decompositions by the model of costs that chooses the solver, times what three of them take
over it; files by reading one with its checksums. Of GPUs the one rate is used that was measured,
of large products in bfloat16: a forward has a floor, and nothing else a time. The same counts stand
beside the runs in bench/results/cpu/stream.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import machine  # noqa: E402
from bench.stream import tensors  # noqa: E402
from tensorlrf.compression.scale._parts import CHUNK  # noqa: E402
from tensorlrf.compression.scale.stored import StoredTensors  # noqa: E402
from tensorlrf.decomposition.linalg._solver import PEAK, exact_seconds  # noqa: E402
from tensorlrf.files.sealed import checksum_of  # noqa: E402
from tensorlrf_kernels.chips import H200  # noqa: E402

KEEP = 0.5
TOKENS = 128 * 2048
"""Of calibration."""
HALF, FULL = 2, 8
"""Bytes of a number of a checkpoint (bfloat16), and of a moment (float64)."""
NOTE = (
    f"Llamas on paper, at {KEEP:.0%} of the numbers of every linear layer, with {TOKENS:,} tokens "
    "of calibration. Moments are counted in float64 and whole, those of q, k, v and of gate, up "
    "once; a ring adds them up over the ranks."
)
TIMED = ((2048, 2048), (5632, 2048), (4096, 4096))


@dataclass(frozen=True)
class Llama:
    """Its shapes, and the GPUs and machines it would be compressed on."""

    name: str
    hidden: int
    inner: int
    keys: int  # outputs of the products for keys, and for values
    blocks: int
    words: int
    gpus: int

    def matrices(self) -> Iterator[tuple[int, int]]:
        """(out, in) of the linear layers of a block."""
        yield from ((self.hidden, self.hidden), (self.keys, self.hidden), (self.keys, self.hidden))
        yield (self.hidden, self.hidden)
        yield from ((self.inner, self.hidden), (self.inner, self.hidden), (self.hidden, self.inner))

    def inputs(self) -> tuple[int, ...]:
        """Widths of what has moments: before q, k, v; before o; before gate, up; before down."""
        return self.hidden, self.hidden, self.hidden, self.inner


LLAMAS = (
    Llama("70B on 8 GPUs", 8192, 28672, 1024, 80, 128_256, 8),
    Llama("405B on 64 GPUs", 16384, 53248, 1024, 126, 128_256, 64),
)


def rank_of(shape: tuple[int, int]) -> int:
    """Of a matrix that keeps a share of its numbers."""
    m, n = shape
    return int(KEEP * m * n / (m + n))


def predicted(shape: tuple[int, int]) -> float:
    """Seconds on one thread of the way that a half of the numbers takes, by the model of costs."""
    return exact_seconds(shape, torch.float32)


def with_moments(shape: tuple[int, int]) -> float:
    """The same in the metric of the inputs: W G and W G W^T in float64 in place of W W^T."""
    m, n = shape
    return predicted(shape) + 2.0 * m * n * n / PEAK[torch.float64]


def counted(llama: Llama) -> dict[str, float]:
    """Bytes and operations."""
    block = list(llama.matrices())
    numbers = sum(m * n for m, n in block)
    kept = sum(rank_of(s) * sum(s) for s in block)
    rest = 2 * llama.words * llama.hidden + (2 * llama.blocks + 1) * llama.hidden
    moments = sum(n * n for n in llama.inputs())
    whole = llama.blocks * numbers + rest
    return {
        "parameters": whole,
        "bytes read": HALF * whole,
        "bytes written": HALF * (llama.blocks * kept + rest),
        # What `bench/stream.py` holds a run to.
        "peak": 3 * 4.0 * max(m * n for m, n in block) + 200e6,
        "bytes of a block": HALF * numbers,
        "moments of a block": FULL * moments,
        "hidden states": HALF * TOKENS * llama.hidden,
        # A ring passes every number but a 1 / N of them twice.
        "sent": 2 * (llama.gpus - 1) / llama.gpus * llama.blocks * FULL * moments,
        "forward": 2.0 * TOKENS * llama.blocks * numbers,
        "moments": 2.0 * TOKENS * llama.blocks * moments,
        "decompositions": llama.blocks * sum(map(predicted, block)),
        "with moments": llama.blocks * sum(map(with_moments, block)),
        "longest": max(map(with_moments, block)),
    }


def timed(shape: tuple[int, int]) -> float:
    """Seconds of a decomposition, over those that the model of costs has."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=draws) * torch.arange(1, shape[1] + 1) ** -0.5
    begun = time.perf_counter()
    tensorlrf.svd(weight, rank_of(shape))
    return (time.perf_counter() - begun) / predicted(shape)


def read_rate() -> float:
    """Bytes a second of a file that is read with the checksums of its tensors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({"weight": torch.randn(1 << 13, 1 << 14).bfloat16()}, path)
        stored = StoredTensors.of(path)
        begun = time.perf_counter()
        for chunk in stored.chunks("weight", CHUNK):
            checksum_of(chunk)
        return stored.n_bytes / (time.perf_counter() - begun)


def of_shapes(n_bytes: float) -> dict[str, float]:
    """What is counted of a checkpoint that `bench/stream.py` makes."""
    shapes = dict(tensors(int(n_bytes)))
    matrices = [(s[0], s[1]) for n, s in shapes.items() if n.endswith("proj.weight")]
    numbers = sum(math.prod(s) for s in shapes.values())
    kept = sum(rank_of(s) * sum(s) - math.prod(s) for s in matrices)
    return {
        "bytes read": HALF * numbers,
        "bytes written": HALF * (numbers + kept),
        "decompositions s": sum(map(predicted, matrices)),
    }


UNITS = (
    ("parameters", "parameters", 1e9, "billion"),
    ("bytes read", "files read", 1e9, "GB"),
    ("bytes written", "files written", 1e9, "GB"),
    ("peak", "memory of a process, by weights", 1e9, "GB"),
    ("bytes of a block", "a block in bfloat16", 1e9, "GB"),
    ("moments of a block", "its moments, whole", 1e9, "GB"),
    ("hidden states", f"hidden states of {TOKENS:,} tokens", 1e9, "GB"),
    ("sent", "sent by a rank, moments once", 1e9, "GB"),
    ("forward", "a forward of all tokens", 1e15, "PFLOP"),
    ("moments", "sums of the moments", 1e15, "PFLOP"),
    ("reading", "reading with checksums, one thread", 60, "min"),
    ("floor", "the forward at the rate of large products, on all GPUs", 1, "s"),
    ("decompositions", "decompositions by weights, hours of one core", 3600, "h"),
    ("with moments", "decompositions by moments, hours of one core", 3600, "h"),
    ("longest", "the longest of these", 60, "min"),
)


def lines_of(found: dict[str, Any]) -> list[str]:
    """The tables."""
    over, rate = found["over"], found["read_rate"]
    columns = []
    for llama in LLAMAS:
        own = counted(llama)
        own["reading"] = own["bytes read"] / rate
        own["floor"] = own["forward"] / llama.gpus / H200.rate[torch.bfloat16]
        for key in ("decompositions", "with moments", "longest"):
            own[key] *= over
        columns.append(own)
    lines = [f"| | {' | '.join(llama.name for llama in LLAMAS)} |", "| --- | ---: | ---: |"]
    for key, words, unit, name in UNITS:
        cells = " | ".join(f"{own[key] / unit:,.3g} {name}" for own in columns)
        lines.append(f"| {words} | {cells} |")
    lines += [
        "",
        "| counted against a run | on paper | counted | ratio |",
        "| --- | ---: | ---: | ---: |",
    ]
    for case, both in found["runs"].items():
        for key, (paper, run) in both.items():
            lines.append(f"| {case}, {key} | {paper:,.0f} | {run:,.0f} | {run / paper:.4f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ratios = {f"{m} x {n}": timed((m, n)) for m, n in TIMED}
    runs = {}
    for row in json.loads((given.results / "stream.json").read_text())["rows"]:
        paper = of_shapes(1e9 * float(row["case"].split()[0]))
        runs[row["case"]] = {key: (value, row["info"][key]) for key, value in paper.items()}
    found = {
        "machine": machine("cpu"), "keep": KEEP, "tokens": TOKENS, "over_model": ratios,
        "over": max(ratios.values()), "read_rate": read_rate(), "runs": runs,
    }  # fmt: skip
    told = ", ".join(f"{key} {value:.2f}" for key, value in ratios.items())
    text = [
        "# on_paper", "", NOTE, "",
        f"Decompositions over the model of costs: {told}; the largest is taken. Read with "
        f"checksums: {found['read_rate'] / 1e9:.2f} GB/s.", "", *lines_of(found),
    ]  # fmt: skip
    (given.results / "on_paper.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.results / "on_paper.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
