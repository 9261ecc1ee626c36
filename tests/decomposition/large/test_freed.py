"""What malloc keeps of what was freed."""

from __future__ import annotations

import json

from tests.processes import python

COUNT = """
import json
import torch
from bench.anonymous import anonymous
from tensorlrf.decomposition.large.freed import map_large
def kept():
    torch.ones(3 << 20, dtype=torch.float64)  # 24 MB, whose size malloc remembers
    before = anonymous()
    for _ in range(3):
        some = [torch.ones(1 << 20, dtype=torch.float64) for _ in range(5)]
        del some
    return anonymous() - before
print(json.dumps([kept(), map_large(), kept()]))
"""


def test_large_pieces_go_back_when_they_are_freed() -> None:
    done = python("-c", COUNT, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    by_itself, mapped, after = json.loads(done.stdout.splitlines()[-1])
    if mapped:
        assert after <= 1 << 20  # none of five pieces of 8 MB
        assert by_itself > 1 << 23
