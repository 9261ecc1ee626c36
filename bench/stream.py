"""A checkpoint in shards compressed a layer at a time: memory, and time over the decompositions.

    python bench/stream.py --gigabytes 6

Makes shards of bfloat16 with the shapes of a Llama of width 2048 in a folder that goes afterwards,
and compresses them in a process of its own. Its anonymous memory is looked at a hundred times a
second, above what there is once tensorlrf is imported. The decompositions alone are those of every
fourth weight, one after the other in another process, times four.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import tensorlrf  # noqa: E402
from bench.anonymous import Peak  # noqa: E402
from bench.own_process import measured  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402

WIDTH, INNER, WORDS = 2048, 5632, 32000
KEEP = 0.5
SHARD = 1_000_000_000
NOTE = (
    "Shards of bfloat16 with the shapes of a Llama of width 2048 (values random, of a decaying "
    "spectrum), keep_params=0.5, SVD. Memory is anonymous, above interpreter, torch and tensorlrf; "
    "its bound is three times the largest factored matrix in float32 and 200 MB."
)


def tensors(n_bytes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of about so many bytes."""
    yield "model.embed_tokens.weight", (WORDS, WIDTH)
    size, k = 2 * WORDS * WIDTH, 0
    while size < n_bytes:
        at = f"model.layers.{k}"
        for name in "qkvo":
            yield f"{at}.self_attn.{name}_proj.weight", (WIDTH, WIDTH)
        yield f"{at}.mlp.gate_proj.weight", (INNER, WIDTH)
        yield f"{at}.mlp.up_proj.weight", (INNER, WIDTH)
        yield f"{at}.mlp.down_proj.weight", (WIDTH, INNER)
        yield f"{at}.input_layernorm.weight", (WIDTH,)
        size, k = size + 2 * (4 * WIDTH**2 + 3 * WIDTH * INNER), k + 1


def make(
    folder: Path,
    wanted: Iterable[tuple[str, tuple[int, ...]]],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Shards of these tensors and their index. Vectors are ones, as the scales of norms are."""
    draws = torch.Generator().manual_seed(0)
    held: dict[str, torch.Tensor] = {}
    shards: list[list[str]] = []

    def flush() -> None:
        shards.append(list(held))
        save_file(held, folder / f"model-{len(shards):05}.safetensors")
        held.clear()

    for name, shape in wanted:
        weight = torch.ones(shape)
        if len(shape) == 2:
            # As many in each row come out as go in, whatever the width.
            scales = torch.arange(1, shape[1] + 1) ** -0.5
            weight = torch.randn(shape, generator=draws) * scales
        held[name] = weight.to(dtype)
        if sum(2 * t.numel() for t in held.values()) > SHARD:
            flush()
    if held:
        flush()
    where = {n: f"model-{k + 1:05}.safetensors" for k, own in enumerate(shards) for n in own}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )


def run(source: Path, target: Path) -> dict[str, Any]:
    """Compress, and the peak."""
    begun = time.perf_counter()
    with Peak() as peak:
        report = tensorlrf.compress_checkpoint(source, target, keep_params=KEEP, progress=False)
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds, "peak": peak.n_bytes, "layers": len(report.layers),
        "read": report.bytes_before, "written": report.bytes_after,
    }  # fmt: skip


def alone(source: Path) -> dict[str, Any]:
    """Decompositions of every fourth weight, with what they work on at hand."""
    from tensorlrf.compression.scale.architecture import Architecture
    from tensorlrf.compression.scale.planned import checkpoint_plan
    from tensorlrf.compression.scale.stored import StoredTensors

    stored = StoredTensors.of(source)
    plan = checkpoint_plan(Architecture.of(stored), keep_params=KEEP)
    rows, seconds = [row for row in plan.layers if row.factored], 0.0
    for row in rows[::4]:
        weight = stored.read(f"{row.name}.weight")
        begun = time.perf_counter()
        tensorlrf.svd(weight, row.rank)  # type: ignore[arg-type]  # a rank of svd is an int
        seconds += time.perf_counter() - begun
    return {"seconds": seconds * len(rows) / len(rows[::4])}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--folder", type=Path, help="with room for one and a half times as much")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        what, *paths = given.measure
        print(json.dumps({"run": run, "alone": alone}[what](*map(Path, paths))))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        source = Path(made) / "in"
        source.mkdir()
        make(source, tensors(int(given.gigabytes * 1e9)))
        ran = measured(__file__, "run", source, Path(made) / "out")
        apart = measured(__file__, "alone", source)
    bound = 3 * 4 * WIDTH * INNER + 200e6
    info = {
        "layers": ran["layers"], "peak MB": round(ran["peak"] / 1e6),
        "bound MB": round(bound / 1e6), "over decompositions": round(
            ran["seconds"] / apart["seconds"], 3
        ),
        "bytes read": ran["read"], "bytes written": ran["written"],
        "decompositions s": round(apart["seconds"], 1),
    }  # fmt: skip
    row = Row(
        f"{given.gigabytes:g} GB in shards", "by layers", ran["seconds"], ran["seconds"], 1, info
    )
    write_results(given.results, "stream", [row], machine("cpu"), NOTE)
    print(row)


if __name__ == "__main__":
    main()
