"""One rank of a group, with its own batches. As a script: `python rank.py RANK WORLD STORE OUT`."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tensorlrf
from tensorlrf.compression.calibration.moments._form import Form
from tensorlrf.compression.moments import _passes
from tensorlrf.errors import ArgumentError, GroupError


def main() -> None:
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, world), rank=rank, world_size=world,
        timeout=datetime.timedelta(seconds=120),
    )  # fmt: skip
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from bench.parts import Put
    from tests.compression.moments import nets

    wide, narrow, words = nets.wide(), nets.narrow(), nets.attention(seed=rank)
    image = nets.limit_for(narrow, Form("image", 8))
    cases = {
        "plain": (nets.attention(), nets.rows(12, 6)[rank::world], None),
        "routed": (nets.routed(), nets.one_way(rank), None),
        "sketch": (wide, nets.rows(256, 6)[rank::world], nets.sketched(wide)),
        "image": (narrow, nets.rows(256, 6)[rank::world], image),
        "uneven": (nets.convolutions(), nets.images(4) if rank else [], None),
        "other": (words, nets.rows(12, 2), None),
    }
    for what, (model, batches, limit) in cases.items():
        try:
            moments = tensorlrf.calibrate(model, batches, skip=[], memory_limit=limit)
            moments.save(f"{out}.{what}.{rank}")
        except GroupError as error:
            Path(f"{out}.{what}.{rank}").write_text(str(error))
    with tensorlrf.on_one_rank():
        tensorlrf.calibrate(wide, nets.rows(256, 1), skip=[]).save(f"{out}.alone.{rank}")

    blocks = nets.blocks()
    for block in blocks:
        fully_shard(block, mesh=init_device_mesh("cpu", (world,)))
    fully_shard(blocks, mesh=init_device_mesh("cpu", (world,)))
    own = nets.rows(12, 4)[:3] if rank else nets.rows(12, 4)[3:]
    with Put() as put:
        tensorlrf.calibrate(blocks, own, skip=[]).save(f"{out}.sharded.{rank}")
    largest = max(p.numel() * p.element_size() for p in blocks.parameters())
    Path(f"{out}.put.{rank}").write_text(json.dumps(put.most / largest))
    into_files(rank, world, out)
    dist.destroy_process_group()


class Failing:
    """A function that fails after so many calls."""

    def __init__(self, left: int, own: Any) -> None:
        self.left, self.own = left, own

    def __call__(self, *given: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError("no more")
        self.own(*given)


def into_files(rank: int, world: int, out: str) -> None:
    """A file that is summed up undisturbed, and one by ranks that fail on the way and go on; what
    is told of these, of a run of another number of ranks, of a file that is there, and of one rank
    that fails by itself."""
    from tests.compression.moments import nets

    told: list[str] = []

    def call(name: str, **more: Any) -> None:
        path, own = Path(f"{out}.{name}"), nets.rows(12, 9)[rank::world]
        try:
            tensorlrf.calibrate(nets.attention(), own, path, skip=[], threads=1, **more)
        except (ArgumentError, GroupError, OSError) as error:
            told.append(f"{type(error).__name__}: {error}")

    call("undisturbed")
    run_to = _passes.run_to
    _passes.run_to = Failing(1 if rank else 3, run_to)
    call("disturbed")
    _passes.run_to = run_to
    with tensorlrf.on_one_rank():
        call("disturbed")  # the folders of two ranks are there
    call("disturbed")
    call("disturbed")  # which is there by now
    _passes.run_to = Failing(1, run_to) if rank else run_to
    call("failed")
    Path(f"{out}.told.{rank}").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
