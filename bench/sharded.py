"""What a rank has in memory of a sharded model that is calibrated and compressed.

    python bench/sharded.py

Blocks of one wide layer each, under `fully_shard` on two ranks that meet over gloo, each with half
of the batches. "whole" is what it was compared with: each rank gathers the model and takes all
batches by itself. "put together" are the bytes of matrices that a rank has whole at a time, at the
most, over those of the largest one; "memory" the most that no file backs, above what the rank had
with its shards, in MB of 10^6 bytes; both of the rank with more. Of "calibrate" the sums are part
of it, of the others the moments of a layer, the parts of the copy that is compressed and the
result. "difference" is the largest from "whole", over the largest number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402

import tensorlrf  # noqa: E402
from bench.anonymous import Peak  # noqa: E402
from bench.parts import Put  # noqa: E402
from bench.report import machine  # noqa: E402

RANKS = 2
SHARDED, WHOLE = "sharded", "whole"


class Block(nn.Module):
    """Means of four positive features beside which the input goes on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.up(x).relu().unflatten(-1, (4, -1)).mean(-2)
        return y


def calibrate(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    moments = tensorlrf.calibrate(model, batches, skip=[], progress=False)
    return {
        f"{row.name}/{name}": tensor.triu() if name == "products" else tensor
        for row in moments.layers
        for name, tensor in moments.kept.read(row)[0].tensors().items()
    }


def compress(target: str) -> Callable[[nn.Module, list[Tensor]], dict[str, Tensor]]:
    def compressed(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
        small, _ = tensorlrf.compress(
            model, keep_params=0.25, calibration=batches, skip=[], target=target, progress=False,
            allocation="uniform", metric="outputs",
        )  # fmt: skip
        return {
            name: layer.weight.detach() + 0
            for name, layer in small.named_modules()
            if isinstance(layer, tensorlrf.nn.FactoredLinear)
        }

    return compressed


CASES = {
    "calibrate": calibrate,
    "compress, independent": compress("independent"),
    "compress, original": compress("original"),
}


def measure(case: str, way: str, blocks: int, width: int) -> tuple[dict[str, float], Any]:
    """On this rank, and what comes of it."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(width) for _ in range(blocks))).eval()
    mesh = init_device_mesh("cpu", (RANKS,))
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    draws = torch.Generator().manual_seed(1)
    batches = [torch.randn(256, width, generator=draws) for _ in range(8)]
    own = batches if way == WHOLE else batches[4 * rank : 4 * rank + 4]
    with ExitStack() as stack:
        if way == WHOLE:
            stack.enter_context(tensorlrf.on_one_rank())
        put, peak = stack.enter_context(Put()), stack.enter_context(Peak())
        found = CASES[case](model, own)
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    together = put.most if way == SHARDED else sum(sizes)
    return {"put together": together / max(sizes), "memory": peak.n_bytes / 1e6}, found


def rows(blocks: int, width: int) -> list[dict[str, Any]]:
    """Of this rank."""
    found = []
    for case in CASES:
        ways = {way: measure(case, way, blocks, width) for way in (SHARDED, WHOLE)}
        one, other = (made for _, made in ways.values())
        largest = max(float(t.abs().max()) for t in other.values())
        gap = max(float((one[name] - t).abs().max()) for name, t in other.items()) / largest
        for way, (values, _) in ways.items():
            found.append({"case": case, "way": way, **values, "difference": gap})
    return found


def on_rank(rank: int, folder: Path, blocks: int, width: int) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=600)
    )
    found = rows(blocks, width)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def measured(blocks: int, width: int) -> list[dict[str, Any]]:
    """Of the rank with more, in processes of their own, in which freed memory goes back at once."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    sizes = ["--blocks", str(blocks), "--width", str(width)]
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, __file__, *sizes, "--rank", made]
        started = [subprocess.Popen([*command, str(rank)], env=env) for rank in range(RANKS)]
        try:
            ended = [process.wait(1800) for process in started]
        finally:
            for process in started:
                process.kill()
        if any(ended):
            raise RuntimeError(f"ranks ended with {ended}")
        found = [json.loads((Path(made) / f"{rank}.json").read_text()) for rank in range(RANKS)]
    return [
        {key: max(one[key] for one in same) for key in same[0]} for same in zip(*found, strict=True)
    ]


def table(found: list[dict[str, Any]], about: dict[str, Any], blocks: int, width: int) -> str:
    """As Markdown."""
    size = blocks * 4 * width * (width + 1) * 4 / 1e6
    lines = [
        "# sharded", "", ", ".join(f"{key} {value}" for key, value in about.items()), "",
        (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip(), "",
        f"{blocks} layers of {width} inputs and {4 * width} outputs, {size:.0f} MB in float32, a "
        "quarter of the parameters kept.", "",
        "| case | way | put together | memory | difference |", "| --- | --- | ---: | ---: | ---: |",
    ]  # fmt: skip
    for one in found:
        difference = f"{one['difference']:.1e}" if one["way"] == SHARDED else ""
        lines.append(
            f"| {one['case']} | {one['way']} | {one['put together']:.1f} | {one['memory']:.0f} | "
            f"{difference} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--rank", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        folder, rank = given.rank
        on_rank(int(rank), Path(folder), given.blocks, given.width)
        return
    found = measured(given.blocks, given.width)
    about = {**machine("cpu"), "threads": 1, "ranks": RANKS}
    (given.results / "sharded.json").write_text(
        json.dumps({"machine": about, "rows": found}, indent=1) + "\n"
    )
    (given.results / "sharded.md").write_text(table(found, about, given.blocks, given.width))


if __name__ == "__main__":
    main()
