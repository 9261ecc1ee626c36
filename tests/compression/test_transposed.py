"""A decoder of transposed convolutions is compressed, tuned, saved, exported and made dense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tensorlrf
from tensorlrf.nn import FactoredConvTranspose2d
from tests.compression.networks import UNIFORM
from tests.draws import seeded32


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(24, 24, 4, stride=2, padding=1)
        self.grouped = nn.ConvTranspose2d(
            24, 24, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False
        )
        self.out = nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.grouped(self.up(x).relu()).relu())  # type: ignore[no-any-return]


def decoder() -> Decoder:
    model = Decoder().eval()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=draws))
    return model


BATCHES = [seeded32(8, 24, 4, 4, seed=k) @ seeded32(4, 4, seed=9) for k in range(12)]


@pytest.mark.parametrize("method", ["svd", "tucker", "cp", "auto"])
def test_there_and_back(method: str, tmp_path: Path) -> None:
    model = decoder()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    small, report = tensorlrf.compress(
        model, keep_params=0.6, method=method, calibration=BATCHES, skip=[], **UNIFORM
    )
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert isinstance(small.up, FactoredConvTranspose2d)
    assert isinstance(small.grouped, FactoredConvTranspose2d)
    assert small.grouped.bias is None
    rows = {row.name: row for row in report.layers}
    for name in ("up", "grouped"):
        assert rows[name].kind == "ConvTranspose2d"
        assert rows[name].output_error is not None
    tensorlrf.tune(small, BATCHES[0], seconds=0.01)
    y = small(BATCHES[0])
    file = tmp_path / "small.safetensors"
    tensorlrf.save(small, file)
    again = tensorlrf.load(file, Decoder()).eval()
    for same in (again, tensorlrf.export(small), tensorlrf.densify(small)):
        torch.testing.assert_close(same(BATCHES[0]), y, rtol=1e-4, atol=1e-4)
    dense: Any = tensorlrf.densify(small)
    assert repr(dense.up) == repr(model.up)
    assert dense.up.weight.shape == model.up.weight.shape


def test_calibration_is_worth_its_inputs() -> None:
    """Of inputs in few directions the layer keeps what they see."""
    model = nn.Sequential(nn.ConvTranspose2d(16, 24, 3, stride=2)).eval()
    basis = seeded32(4, 16, seed=1)
    batches = [torch.einsum("bchw,cd->bdhw", seeded32(3, 4, 5, 5, seed=k), basis) for k in range(8)]
    errors = {}
    for given in (None, batches):
        small, _ = tensorlrf.compress(model, keep_params=0.5, calibration=given, skip=[], **UNIFORM)
        want = model(batches[0])
        errors[given is None] = float(((small(batches[0]) - want).norm() / want.norm()).detach())
    assert errors[False] < 0.9 * errors[True]


def test_flops_are_counted_where_the_layer_reads() -> None:
    model = decoder()
    _, report = tensorlrf.compress(model, keep_flops=0.6, calibration=BATCHES, skip=[], **UNIFORM)
    rows = {row.name: row.flops_before for row in report.layers if row.flops_before is not None}
    for name in ("up", "grouped"):
        flops, x = rows[name], BATCHES[0] if name == "up" else model.up(BATCHES[0])
        with FlopCounterMode(display=False) as counter:
            model.get_submodule(name)(x)
        assert flops == counter.get_total_flops()
