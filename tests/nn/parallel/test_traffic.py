"""What ranks exchange is what docs/parallel.md says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import parallelize_module

from bench.parallel import CASES, rows
from bench.traffic import Traffic
from tensorlrf.nn import factorize
from tensorlrf.nn.parallel import FactoredColwise, FactoredRowwise
from tests.nn.parallel.ranks import checks_of

INPUTS, OUT, RANK, ROWS = 32, 48, 8, 6

# (style, numbers a row: forward, backward; numbers a step), all in units of (p - 1) / p.
CLAIMS: dict[str, tuple[Any, int, int, int]] = {
    "colwise": (FactoredColwise(), 0, 2 * RANK, 0),
    "rowwise": (FactoredRowwise(), 2 * RANK, 0, 0),
    "colwise, sharded": (FactoredColwise(inner="sharded"), RANK, RANK + 2 * INPUTS, 0),
    "rowwise, sharded": (FactoredRowwise(inner="sharded"), 2 * RANK + OUT, 2 * RANK, 0),
    "colwise of shared rows": (
        FactoredColwise(input_layouts=Shard(0)), RANK, RANK, 2 * RANK * INPUTS,
    ),
    "rowwise to shared rows": (
        FactoredRowwise(output_layouts=Shard(0)), RANK, RANK, 2 * (RANK * OUT + OUT),
    ),
}  # fmt: skip


def counted(layer: nn.Module, style: Any, mesh: DeviceMesh) -> tuple[float, float]:
    parallelize_module(layer, mesh, style)
    before, after = style.input_layouts[0], style.output_layouts[0]
    rows = ROWS // mesh.size() if before == Shard(0) else ROWS
    columns = INPUTS // mesh.size() if before == Shard(-1) else INPUTS
    x = torch.randn(rows, columns, requires_grad=True)
    with Traffic(mesh.size()) as there:
        y = layer(x)
    with Traffic(mesh.size()) as back:
        y.sum().backward()
    with CommDebugMode() as again, torch.no_grad():
        layer(x)
    assert again.get_total_counts() == there.calls  # a forward without grad exchanges the same
    assert after == style.output_layouts[0]
    return there.counted(), back.counted()


def check_low_rank(mesh: DeviceMesh) -> None:
    unit = (mesh.size() - 1) / mesh.size()
    for name, (style, forward, backward, step) in CLAIMS.items():
        layer = factorize(nn.Linear(INPUTS, OUT), "svd", RANK)
        wanted = unit * ROWS * forward, unit * (ROWS * backward + step)
        assert counted(layer, style, mesh) == wanted, name


def check_other_formats(mesh: DeviceMesh) -> None:
    """As of a dense layer; the `b` of a KroneckerSum is whole, and its gradient added up."""
    unit = (mesh.size() - 1) / mesh.size()
    b = 2 * 4 * 4
    kron: Any = {"shapes": ((12, 8), (4, 4))}
    for style, forward, backward in (
        (FactoredColwise(), 0, 2 * INPUTS),
        (FactoredRowwise(), 2 * OUT, 0),
    ):
        layer = factorize(nn.Linear(INPUTS, OUT), "kron", 1, **kron)
        wanted = unit * ROWS * forward, unit * (ROWS * backward + b)
        assert counted(layer, style, mesh) == wanted
        layer = factorize(nn.Linear(INPUTS, OUT), "blr", 0.5, block=8)
        assert counted(layer, style, mesh) == (unit * ROWS * forward, unit * ROWS * backward)


def check_rows_of_the_bench(mesh: DeviceMesh) -> None:
    """A MLP and an attention are those of one rank, and send less than dense ones do."""
    found = list(rows(mesh))
    sent = {(one["case"], one["way"]): one for one in found}
    for one in found:
        # Sums of up to 704 products in another order, through three layers.
        rounding = 1e-5 if one["dtype"] == "float32" else 1e-13
        assert max(one["outputs"], one["gradients"]) <= rounding, one
    for case in CASES:
        for there in ("sent forward", "sent backward"):
            assert sent[case, "whole"][there] < 0.5 * sent[case, "dense"][there]
            assert sent[case, "whole, rows"][there] < 0.5 * sent[case, "dense, rows"][there]


@pytest.mark.parametrize("name", [*checks_of(__name__), "all"])
def test_on_two_ranks(found: dict[str, str], name: str) -> None:
    wrong = found.get(name, f"not reached: {found['all']}")
    assert not wrong, wrong
