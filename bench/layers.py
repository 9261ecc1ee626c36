"""What the suites of layers share: the layers of a case on each path, measured side by side.

    python -m bench.layers bench/results/cpu/conv2d.json bench/results/cpu/linear.json

prints how much of the saved arithmetic became speed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.clock import graphed
from bench.report import geometric_mean
from bench.shapes import Conv, Linear, rank_at, sample
from tensorlrf import ops
from tensorlrf.factors import Factors
from tensorlrf.nn import FactoredConv2d, FactoredLinear

ALTERNATING_SECONDS = 0.6  # a group of paths against each other
ROW_SECONDS = 0.25  # one path by itself


@dataclass(frozen=True)
class Group:
    """A layer, its input, and a run of it on each path; "dense" is the torch layer.

    `timings` are of eager calls, by the clock of the device; `graphs` of CUDA graph replays.
    """

    case: Conv | Linear
    factors: Factors
    runs: dict[str, Callable[[], Tensor]]
    timings: ops.Timings
    graphs: ops.Timings | None

    @classmethod
    def measure(
        cls,
        case: Conv | Linear,
        format: str,
        share: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Group:
        """Builds the layers and times their paths in alternating rounds."""
        rank = rank_at(format, case.shape, share)
        factors = sample(format, case.shape, rank, device, dtype)
        layer, x = _dense_layer(case, device, dtype)
        modules: dict[str, nn.Module] = {"dense": layer}
        for path in ops.paths_of(factors)[1:]:
            kind = FactoredConv2d if isinstance(layer, nn.Conv2d) else FactoredLinear
            factored = kind.from_factors(factors, like=layer)
            factored.path_table = ops.PathTable.single(path)
            modules[path] = factored
        runs = {path: _call(module, x) for path, module in modules.items()}
        timings = ops.time_calls(runs, seconds=ALTERNATING_SECONDS, device=device)
        graphs = None
        if device.type == "cuda":
            replays = {path: graphed(run).replay for path, run in runs.items()}
            graphs = ops.time_calls(replays, seconds=ALTERNATING_SECONDS, device=device)
        return cls(case, factors, runs, timings, graphs)

    def cost(self, path: str) -> ops.Cost:
        stride = (self.case.stride,) * 2 if isinstance(self.case, Conv) else (1, 1)
        return ops.path_cost(self.factors, path, self.case.rows, stride=stride, rebuild=False)

    @property
    def predicted(self) -> str:
        """The path that the cost model would take."""
        stride = (self.case.stride,) * 2 if isinstance(self.case, Conv) else (1, 1)
        return ops.best_path(self.factors, self.case.rows, stride=stride, rebuild=False)

    def speedup(self, path: str) -> float:
        return self.timings.median("dense") / self.timings.median(path)

    def info(self, path: str, format: str, share: float) -> dict[str, Any]:
        """What goes into the row of a path. `efficiency` is the speedup over the arithmetic that
        the chain saves; `chosen` and `predicted` mark the path that alternating rounds found
        fastest, and the one of the cost model."""
        cost = self.cost(path)
        saved = self.cost("dense").flops / self.cost("chain").flops
        clocks: dict[str, float] = {}
        if self.graphs is not None:
            profile = ops.profile_of(self.factors.device)
            stride = (self.case.stride,) * 2 if isinstance(self.case, Conv) else (1, 1)
            floor = ops.floor_cost(self.factors, self.case.rows, stride=stride)
            clocks = {
                "event_us": 1e6 * self.timings.median(path),
                "graph_us": 1e6 * self.graphs.median(path),
                "graph_speedup": self.graphs.median("dense") / self.graphs.median(path),
                "floor_us": 1e6 * profile.floor(floor, self.factors.dtype),
            }
        return clocks | {
            "case": f"{self.case}, {format} {share}",
            "path": path,
            "format": format,
            "rank": self.factors.rank,
            "share": share,
            "flops": cost.flops,
            "bytes": cost.bytes,
            "flops_dense_over_chain": saved,
            "alternating_speedup": self.speedup(path),
            "efficiency": self.speedup(path) / saved,
            "chosen": path == self.timings.best,
            "predicted": path == self.predicted,
        }


def bench_row(benchmark: Any, group: Group, path: str, format: str, share: float) -> None:
    """One row: the path by itself, for about ROW_SECONDS."""
    benchmark.group = f"{group.case}, {format} {share}"
    benchmark.extra_info.update(group.info(path, format, share))
    on_gpu = group.factors.device.type == "cuda"
    run = group.runs[path]

    def timed() -> None:
        with torch.inference_mode():
            run()
        if on_gpu:
            torch.cuda.synchronize()

    rounds = int(min(200, max(7, ROW_SECONDS / group.timings.median(path))))
    benchmark.pedantic(timed, rounds=rounds, iterations=1, warmup_rounds=2)


def _dense_layer(
    case: Conv | Linear, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Conv2d | nn.Linear, Tensor]:
    """The torch layer and an input, both channels_last where that applies."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(case, Linear):
        x = torch.randn(case.rows, case.inp, generator=generator).to(device, dtype)
        return nn.Linear(case.inp, case.out).to(device, dtype).eval(), x
    layer = nn.Conv2d(case.inp, case.out, case.kernel, case.stride, case.padding)
    x = torch.randn(case.batch, case.inp, case.side, case.side, generator=generator)
    last = torch.channels_last
    return layer.to(device, dtype, memory_format=last).eval(), x.to(
        device, dtype, memory_format=last
    )


def _call(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            result: Tensor = module(x)
        return result

    return run


def summary(rows: list[dict[str, Any]]) -> str:
    """By format: geometric mean of efficiency of the best factored path of each case, the worst
    chosen row against dense, and the regret of the cost model's choice."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for case in cases.values():
        time = {row["variant"]: row["median_s"] for row in case}
        info = {row["variant"]: row["info"] for row in case}
        if "dense" not in time or len(time) < 2:
            continue
        best = max(info[path]["efficiency"] for path in info if path != "dense")
        chosen = next(path for path in info if info[path]["chosen"])
        predicted = next(path for path in info if info[path]["predicted"])
        fastest = max(info[path]["alternating_speedup"] for path in info)
        regret = fastest / info[predicted]["alternating_speedup"]
        entry = (best, time[chosen] / time["dense"], regret)
        found.setdefault(info["dense"]["format"], []).append(entry)
        found.setdefault("all", []).append(entry)
    lines = ["format    cases  efficiency  worst chosen/dense  regret mean  regret max"]
    for format, entries in found.items():
        efficiency, chosen_over_dense, regrets = zip(*entries, strict=True)
        lines.append(
            f"{format:<9} {len(entries):5} {geometric_mean(efficiency):11.3f} "
            f"{max(chosen_over_dense):19.3f} {geometric_mean(regrets):12.3f} {max(regrets):11.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(
        summary(
            [row for name in sys.argv[1:] for row in json.loads(Path(name).read_text())["rows"]]
        )
    )
