"""One rank of a group: sums up the moments of its own batches, and then of all. As a script:
`python rank.py RANK WORLD STORE OUT`."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import torch.distributed as dist

import tensorlrf
from tensorlrf.compression.calibration.moments._form import Form
from tensorlrf.compression.moments._ranks import over_ranks
from tensorlrf.errors import ArgumentError


def main() -> None:
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, world), rank=rank, world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from tests.compression.moments import nets

    wide, narrow, words = nets.wide(), nets.narrow(), nets.attention(seed=rank)
    image = nets.limit_for(narrow, Form("image", 8))
    cases = {
        "plain": (nets.attention(), nets.rows(12, 6)[rank::world], None),
        "routed": (nets.routed(), nets.one_way(rank), None),
        "sketch": (wide, nets.rows(256, 6)[rank::world], nets.sketched(wide)),
        "image": (narrow, nets.rows(256, 6)[rank::world], image),
        "other": (words, nets.rows(12, 2), None),
    }
    for what, (model, batches, limit) in cases.items():
        moments = tensorlrf.calibrate(model, batches, skip=[], memory_limit=limit)
        try:
            over_ranks(moments).save(f"{out}.{what}.{rank}")
        except ArgumentError as error:
            Path(f"{out}.{what}.{rank}").write_text(str(error))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
