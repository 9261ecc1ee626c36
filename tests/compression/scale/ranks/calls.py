"""What ranks do in tests: functions that return JSON, started by `processes`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import tensorlrf
from bench.parts import Put
from tensorlrf.compression import _working_copy
from tensorlrf.compression.group import _board
from tensorlrf.compression.group._group import ALONE, ranks_here
from tensorlrf.compression.journal._kept import Kept
from tensorlrf.compression.scale import _run
from tensorlrf.errors import ArgumentError, TensorlrfError
from tests.compression.moments import nets
from tests.compression.scale.blocks import networks

_board.LOST = 4.0


def primitives() -> Any:
    """Sums, what ranks have, and what becomes of those that do not agree, fail, or are alone."""
    rank = distributed.get_rank()
    large = torch.full((1 << 17,), float(rank), dtype=torch.float64, device="cpu")
    small = torch.full((2, 3), rank + 1.0, dtype=torch.float32, device="cpu")
    with ranks_here() as group:
        group.agree({"same": [1, "a"]})
        group.total([large, small])
        found = {
            "total": [float(large[-1]), small.tolist()],
            "totals": group.totals([1.0, rank]),
            "least": group.least(5.0 - rank),
            "gathered": group.gathered({"rank": rank}),
            "of": group.of(1, torch.full((2,), rank, device="cpu")).tolist(),
            "beside": group.beside,
        }
    with tensorlrf.on_one_rank(), ranks_here() as group:
        found["alone"] = group is ALONE
    with ranks_here(shared=False) as group:
        found["not shared"] = group is ALONE
    found["disagree"] = raised(lambda: _together(lambda group: group.agree({"a": 1, "b": rank})))

    def fails(group: Any) -> None:
        if rank == 1:
            raise ValueError("no such thing")
        group.total([small])

    found["fails"] = raised(lambda: _together(fails))
    return found


def _together(function: Callable[[Any], None]) -> None:
    with ranks_here() as group:
        function(group)


def raised(function: Callable[[], Any]) -> list[Any]:
    """(type, message, seconds) of what it raises."""
    begun = time.monotonic()
    try:
        function()
    except (TensorlrfError, ValueError) as error:
        return [type(error).__name__, str(error), time.monotonic() - begun]
    return []


def checkpoint(source: str, target: str, given: list[dict[str, Any]]) -> Any:
    """`compress_checkpoint`, with arguments of each rank; what it says, or raises."""
    own = {"keep_params": 0.5, "progress": False, **given[distributed.get_rank()]}
    source = own.pop("source", source)
    report: Any = None

    def call() -> None:
        nonlocal report
        report = tensorlrf.compress_checkpoint(source, target, **own)

    error = raised(call)
    if error:
        return error
    return {
        "layers": [row.name for row in report.layers],
        "resumed": report.resumed,
        **_size(report),
    }


def by_blocks(source: str, target: str, counts: list[int], given: list[dict[str, Any]]) -> Any:
    """The same fitted to inputs from block to block, of which each rank has so many batches; with
    `fails` in what is given, it does so at that layer."""
    rank = distributed.get_rank()
    first, own = sum(counts[:rank]), {"calibration": [], **given[rank]}
    if own["calibration"] is not None:
        own["calibration"] = networks.ids(sum(counts))[first : first + counts[rank]]
    model = networks.on_meta(networks.net(blocks=2))
    factor, left = _working_copy.factor, own.pop("fails", 1000)

    def failing(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ArgumentError("it fails")
        return factor(*args)

    own |= {"model": model, "threads": 1}
    _working_copy.factor = failing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tensorlrf.errors.CalibrationWarning)
            return checkpoint(source, target, [own, own])
    finally:
        _working_copy.factor = factor


def killed_in_blocks(source: str, target: str, counts: list[int], victim: int) -> Any:
    """The same, on which one rank is killed in its fourth layer."""
    factor, calls = _working_copy.factor, 0

    def fatal(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4 and distributed.get_rank() == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return factor(*args)

    _working_copy.factor = fatal
    return by_blocks(source, target, counts, [{}, {}])


def _size(report: Any) -> dict[str, Any]:
    return {"tensors": report.tensors, "bytes": report.bytes_after, "text": str(report)}


def several(calls: list[list[Any]]) -> Any:
    """What one after the other of these calls gives: name, and what is given."""
    return [globals()[name](*given) for name, *given in calls]


def killed(source: str, target: str, victim: int) -> Any:
    """The same, on which one rank is killed in its second layer; how the other ends."""
    kill_in_second_layer(distributed.get_rank() == victim)
    return checkpoint(source, target, [{}, {}])


def kill_in_second_layer(this: bool) -> None:
    """Have `this` process do so; another one takes its time, so that there are layers for both."""
    own, calls = _run.factor, 0

    def factor(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and this:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return own(*args)

    _run.factor = factor


class Mixture(nn.Module):
    """Experts, of which rows reach one each: some many, some few."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gate = nn.Linear(n, 4)
        self.experts = nn.ModuleList(nn.Linear(n, n) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = (self.gate(x) + torch.arange(4, device=x.device)).argmax(-1)
        y = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            if (chosen == k).any():
                y[chosen == k] = expert(x[chosen == k])
        return x + y


class Block(nn.Module):
    """A perceptron beside which its input goes on."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.down(self.up(x).relu())
        return y


def network(kind: str) -> nn.Module:
    """A perceptron, one with a batch normalisation, a small transformer, ..."""
    torch.manual_seed(0)
    if kind in ("routed", "convolutions", "wide"):
        made: nn.Module = getattr(nets, kind)()
        return made
    if kind == "mixture":
        return nn.Sequential(Mixture(12), nn.Linear(12, 6))
    if kind == "blocks":
        return nn.Sequential(nn.Linear(12, 12), *(Block(12) for _ in range(2)), nn.Linear(12, 6))
    if kind == "encoder":
        layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.1)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    norm = [nn.BatchNorm1d(24)] if kind == "norm" else []
    model = nn.Sequential(nn.Linear(12, 24), *norm, nn.ReLU(), nn.Linear(24, 12), nn.ReLU())
    return model.append(nn.Linear(12, 6))


def batches(kind: str, n: int) -> list[torch.Tensor]:
    """So many for a network; they differ in size."""
    if kind == "convolutions":
        return nets.images(n)
    if kind == "routed":
        return [*nets.one_way(0), *nets.one_way(1)][:n]
    if kind == "wide":
        return nets.rows(256, n)
    draws = torch.Generator("cpu").manual_seed(3)
    mixed = torch.randn(12, 12, generator=draws, dtype=torch.float32, device="cpu")
    like: Any = {"generator": draws, "dtype": torch.float32, "device": "cpu"}
    return [torch.randn(40 + 4 * k, 12, **like) @ mixed for k in range(n)]


CASES: dict[str, dict[str, Any]] = {
    "original": {"keep_params": 0.5},
    "uniform": {"keep_params": 0.5, "metric": "outputs", "allocation": "uniform", "affine": True},
    "prefix": {"error": 0.3, "target": "prefix", "rerun": True},
    "independent": {"keep_params": 0.6, "target": "independent", "holdout": 0.0},
    "measured": {"keep_params": 0.5, "allocation": "measured", "metric": "loss"},
    "sketched": {
        "keep_params": 0.5,
        "memory_limit": nets.sketched(nets.wide()),
        "holdout": 0.0,
        "target": "prefix",
        "metric": "outputs",
        "allocation": "uniform",
    },
}


def sharded(kind: str, wrap: str) -> nn.Module:
    """A network under fully_shard, by layers or blocks, or blocks with tensor parallelism."""
    model, mesh = network(kind), init_device_mesh("cpu", (distributed.get_world_size(),))
    if wrap == "tp":
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        for block in [m for m in model.modules() if isinstance(m, Block)]:
            parallelize_module(block, mesh, plan)
        return model
    kinds = nn.Linear if kind == "mlp" else (nn.TransformerEncoderLayer, Block)
    for child in [m for m in model.modules() if isinstance(m, kinds)]:
        fully_shard(child, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fitted(case: str, kind: str, own: Sequence[torch.Tensor], wrap: str = "") -> dict[str, Any]:
    """What compress makes of a network on these batches, as lists of numbers."""
    model = sharded(kind, wrap) if wrap in ("fsdp", "tp") else network(kind)
    if wrap == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    before = {name: type(p).__name__ for name, p in model.named_parameters()}
    with Put() as put:
        small, report = tensorlrf.compress(
            model, calibration=list(own), skip=[], progress=False, **CASES[case]
        )
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    assert before == {name: type(p).__name__ for name, p in model.named_parameters()}
    values = {name: t.double().flatten().tolist() for name, t in small.state_dict().items()}
    return {
        "values": values,
        "ranks": [[row.name, row.rank, row.samples] for row in report.layers],
        "error": report.model_error,
        "interval": report.model_error_interval,
        "batches": [report.batches, report.held_out],
        "metric": report.metric,
        "put": put.most / max(sizes),
    }


def calibrated(cases: list[list[Any]]) -> Any:
    """Of each case: which, of which network, how many batches each rank has, and the wrapper."""
    found = []
    rank = distributed.get_rank()
    for case, kind, counts, wrap in cases:
        before = sum(counts[:rank])
        own = batches(kind, sum(counts))[before : before + counts[rank]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tensorlrf.errors.CalibrationWarning)
            found.append(fitted(case, kind, own, wrap))
    return found


class Stopped(BaseException):
    """In the place of a kill of all ranks."""


def gone_on(folder: str) -> Any:
    """A sharded model, compressed: undisturbed, and by ranks that were stopped at the second value
    and went on from the journal of the first; and what ranks with other batches are told."""
    rank = distributed.get_rank()
    own = batches("mlp", 4)[2 * rank : 2 * rank + 2]
    asked: dict[str, Any] = {"keep_params": 0.5, "metric": "loss", "skip": [], "progress": False}

    def made(journal: str | None, own: Any = own) -> dict[str, list[float]]:
        model = sharded("mlp", "fsdp")
        small, _ = tensorlrf.compress(model, calibration=own, journal=journal, **asked)
        return {name: t.flatten().tolist() for name, t in small.state_dict().items()}

    whole, put, left = made(None), Kept.put, 2

    def stopping(self: Kept, values: Any) -> None:
        nonlocal left
        put(self, values)
        left -= 1
        if not left:
            raise Stopped

    Kept.put = stopping  # type: ignore[method-assign]  # for this process alone
    try:
        made(folder)
    except Stopped:
        whole["stopped"] = []
    again = made(folder)
    other = raised(lambda: made(folder, own[:1] if rank else own))
    return {"whole": whole, "again": again | {"stopped": []}, "left": left, "other": other}


def refused() -> Any:
    """What each rank is told of models, arguments and batches that cannot be, of what is not shared
    out; and what a plan and sensitivities are on all."""
    rank, found = distributed.get_rank(), {}
    model, own = network("mlp"), batches("mlp", 4)[2 * rank : 2 * rank + 2]

    def told(what: str, model: nn.Module, own: Any, **given: Any) -> None:
        call = {"skip": [], "progress": False, "calibration": own, **given}
        found[what] = raised(lambda: tensorlrf.compress(model, **call))

    half = {"keep_params": 0.5}
    other = network("mlp")
    with torch.no_grad():
        other[2].weight[0, 0] += rank
    told("values", other, own, **half)
    told("layers", network("norm" if rank else "mlp"), own, **half)
    told("arguments", model, own, keep_params=0.5 + rank / 10)
    plan, target = tensorlrf.plan(model, skip=[], **half), "prefix" if rank else "original"
    found["target"] = raised(
        lambda: tensorlrf.apply(model, plan, calibration=own, target=target, progress=False)
    )
    told("latency", model, own, keep_latency=0.5)
    told("refine", model, own, refine=1.0, **half)
    told("nothing", model, [], **half)
    one = nn.parallel.DistributedDataParallel(network("mlp"))
    found["in place"] = raised(lambda: tensorlrf.compress_(one, keep_params=0.5))
    made = tensorlrf.plan(model, calibration=own, skip=[], progress=False, **half)
    seen = tensorlrf.sensitivity(model, own, skip=[], progress=False)
    found["plan"], found["sensitivity"] = made.to_json(), seen.to_json()
    with tensorlrf.on_one_rank():
        small, _ = tensorlrf.compress(model, calibration=own, skip=[], progress=False, **half)
    found["alone"] = float(sum(p.double().sum() for p in small.parameters()))
    told("batch", model, [torch.rand(3, 5)] if rank else own, **half)
    return found


def main() -> None:
    rank, size, store, result, name, given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(store, size), rank=rank, world_size=size,
        timeout=timedelta(seconds=40),
    )  # fmt: skip
    value = globals()[name](*given)
    Path(result).write_text(json.dumps(value))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
