"""Tensor parallelism of layers on factors: what two ranks compute and exchange.

    python bench/parallel.py

A gated MLP and an attention of grouped queries, with the shapes of a small Llama, shared out over
ranks that meet over gloo: q, k, v, gate and up by outputs, o and down by inputs. "dense" has
torch's ColwiseParallel and RowwiseParallel; LowRank keeps half of the parameters. "rows" has the
tokens shared out between the layers (sequence parallel). Differences are the largest, over the
largest output and over the largest of all gradients, from the same module on one rank. "sent" is
what a rank sends for a token, by a ring, counted as collectives are called; the gradients of
factors that are whole on every rank come once a step and stand apart. "held" is a rank's share of
the parameters of the dense module.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh  # noqa: E402
from torch.distributed.tensor import DTensor, Replicate, Shard  # noqa: E402
from torch.distributed.tensor.parallel import (  # noqa: E402
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import functional as F  # noqa: E402

from bench.report import machine  # noqa: E402
from bench.traffic import Traffic  # noqa: E402
from tensorlrf.nn import factorize  # noqa: E402
from tensorlrf.nn.parallel import styles  # noqa: E402

WIDTH, INNER, HEADS, SHARED = 256, 704, 8, 4
BATCH, TOKENS = 2, 64
KEEP = 0.5


class MLP(nn.Module):
    """Gated."""

    plan = {"gate": "colwise", "up": "colwise", "down": "rowwise"}  # noqa: RUF012  # not written to

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Attention(nn.Module):
    """Causal, of as many heads as its projections give it."""

    plan = {"[qkv]": "colwise", "o": "rowwise"}  # noqa: RUF012  # not written to

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = WIDTH // HEADS
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, SHARED * self.head_dim) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o(y.transpose(1, 2).flatten(2))
        return out


CASES: dict[str, Any] = {"MLP": MLP, "attention": Attention}
WAYS = ("dense", "dense, rows", "whole", "sharded", "whole, rows")


def plan_of(module: Any, mesh: DeviceMesh, way: str) -> Any:
    """The styles of a way."""
    plan = dict(module.plan)
    if way.endswith("rows"):
        colwise = ColwiseParallel(input_layouts=Shard(1))
        rowwise = RowwiseParallel(output_layouts=Shard(1))
        plan = {name: colwise if word == "colwise" else rowwise for name, word in plan.items()}
    return styles(module, plan, mesh, inner="sharded" if way == "sharded" else "whole")


def gap(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The largest difference over the largest number of all."""
    apart = max(float((a - b).detach().abs().max()) for a, b in pairs)
    return apart / max(float(b.detach().abs().max()) for _, b in pairs)


def row(case: str, way: str, dtype: torch.dtype, mesh: DeviceMesh) -> dict[str, Any]:
    """One module in one way."""
    torch.manual_seed(0)
    alone = CASES[case]().to(dtype)
    dense = sum(p.numel() for p in alone.parameters())
    if not way.startswith("dense"):
        for name, layer in [*alone.named_children()]:
            setattr(alone, name, factorize(layer, "svd", KEEP))
    many = copy.deepcopy(alone)
    parallelize_module(many, mesh, plan_of(many, mesh, way))
    x = torch.randn(BATCH, TOKENS, WIDTH, dtype=dtype)
    towards = torch.randn_like(x)
    k, ranks = mesh.get_local_rank(), mesh.size()
    own, aim = x, towards
    if way.endswith("rows"):
        own, aim = (t.chunk(ranks, 1)[k].contiguous() for t in (x, towards))
    one, mine = x.clone().requires_grad_(), own.clone().requires_grad_()
    expected = alone(one)
    (expected * towards).sum().backward()
    with Traffic(ranks) as forward:
        y = many(mine)
    with Traffic(ranks) as backward:
        (y * aim).sum().backward()
    want = expected.chunk(ranks, 1)[k] if way.endswith("rows") else expected
    grads = [(mine.grad, one.grad.chunk(ranks, 1)[k] if way.endswith("rows") else one.grad)]
    step = 0.0
    for p, q in zip(many.parameters(), alone.parameters(), strict=True):
        assert isinstance(p, DTensor)
        assert isinstance(p.grad, DTensor)
        grads.append((p.grad.full_tensor(), q.grad))
        if way == "whole, rows" and p.placements[0] == Replicate():
            step += 2 * (ranks - 1) / ranks * p.numel()
    tokens = BATCH * TOKENS
    return {
        "case": case,
        "way": way,
        "dtype": str(dtype).removeprefix("torch."),
        "outputs": gap([(y, want)]),
        "gradients": gap(grads),
        "sent forward": forward.counted() / tokens,
        "sent backward": (backward.counted() - step) / tokens,
        "sent a step": step,
        "held": sum(p.to_local().numel() for p in many.parameters()) / dense,
    }


def rows(mesh: DeviceMesh) -> Iterator[dict[str, Any]]:
    for case in CASES:
        for way in WAYS:
            for dtype in (torch.float32, torch.float64):
                yield row(case, way, dtype, mesh)


def rank(folder: Path, k: int, ranks: int) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group(
        "gloo", store=store, rank=k, world_size=ranks, timeout=timedelta(seconds=60)
    )
    found = list(rows(init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))))
    (folder / f"{k}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def worst(found: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of all ranks."""
    return [
        {key: max(one[key] for one in same) if isinstance(value, float) else value
         for key, value in same[0].items()}
        for same in zip(*found, strict=True)
    ]  # fmt: skip


def measured(ranks: int) -> list[dict[str, Any]]:
    """In processes of their own."""
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, __file__, "--rank", made]
        started = [subprocess.Popen([*command, str(k), str(ranks)]) for k in range(ranks)]
        try:
            ended = [process.wait(600) for process in started]
        finally:
            for process in started:
                process.kill()
        if any(ended):
            raise RuntimeError(f"ranks ended with {ended}")
        found = [json.loads((Path(made) / f"{k}.json").read_text()) for k in range(ranks)]
    return worst(found)


def table(found: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """As Markdown."""
    head = [key for key in found[0] if key != "dtype"]
    lines = [
        "# parallel", "", ", ".join(f"{key} {value}" for key, value in about.items()), "",
        (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip(), "",
        f"Width {WIDTH}, inner width {INNER}, {HEADS} heads and {SHARED} of keys and values; "
        f"{BATCH * TOKENS} tokens.", "",
        f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |",
    ]  # fmt: skip
    for one in found:
        if one["dtype"] == "float64":
            single = next(
                other for other in found
                if other["dtype"] == "float32" and all(other[k] == one[k] for k in ("case", "way"))
            )  # fmt: skip
            cells = [one["case"], one["way"]]
            cells += [f"{single[k]:.1e}, {one[k]:.1e}" for k in ("outputs", "gradients")]
            cells += [f"{one[k]:,.0f}" for k in head[4:7]]
            lines.append(f"| {' | '.join([*cells, format(one['held'], '.3f')])} |")
    return "\n".join([*lines, "", "Differences are of float32 and of float64.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        folder, k, ranks = given.rank
        rank(Path(folder), int(k), int(ranks))
        return
    found = measured(given.ranks)
    about = {**machine("cpu"), "ranks": given.ranks}
    (given.results / "parallel.json").write_text(
        json.dumps({"machine": about, "rows": found}, indent=1) + "\n"
    )
    (given.results / "parallel.md").write_text(table(found, about))
    print(table(found, about))


if __name__ == "__main__":
    main()
