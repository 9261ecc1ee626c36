"""Models that cannot be gone through block by block, and arguments that cannot be, are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, TensorlrfError, UnsupportedError
from tests.compression.scale.blocks.networks import Block, Net, ids, net, on_meta, saved

pytestmark = pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")


class Dense(Net):
    """Each block sees the outputs of all before it."""

    def course(self, x: Tensor) -> Tensor:
        total = x
        for block in self.blocks:
            total = total + block(total)
        return total


class Backwards(Net):
    def course(self, x: Tensor) -> Tensor:
        for block in reversed(self.blocks):
            x = block(x)
        return x


class Twice(Net):
    def course(self, x: Tensor) -> Tensor:
        for block in (*self.blocks, self.blocks[0]):
            x = block(x)
        return x


class Summed(Net):
    """The head sees all of them."""

    def course(self, x: Tensor) -> Tensor:
        found = [x := block(x) for block in self.blocks]
        return sum(found[1:], found[0])


class Sometimes(Net):
    """Long batches take another way."""

    def course(self, x: Tensor) -> Tensor:
        for block in self.blocks[: 2 if x.shape[1] > 30 else 3]:
            x = block(x)
        return x


class Again(Net):
    """What comes before the blocks comes between them as well."""

    def course(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.entry(block(x))
        return x


class Peeking(Net):
    """What every block gets has to do with the weights of the first."""

    def course(self, x: Tensor) -> Tensor:
        own = self.blocks[0]
        assert isinstance(own, Block)
        for block in self.blocks:
            x = block(x + own.up.weight.mean())
        return x


class Told(Block):
    """Puts out more than numbers."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), object()


class Off(Net):
    def course(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)[0]
        return x


CASES: dict[str, tuple[Any, str]] = {
    "dense": (lambda: net(Dense), r"blocks\.2 is given .* more blocks than the last"),
    "backwards": (lambda: net(Backwards), r"blocks\.\d is called out of turn"),
    "twice": (lambda: net(Twice), "blocks.0 is called another time"),
    "summed": (lambda: net(Summed), "last is given what is made of the outputs of more blocks"),
    "again": (lambda: net(Again), r"entry is called both before .*skip=\['entry'\]"),
    "peeking": (lambda: net(Peeking), "for want of up of blocks that are not there"),
    "told": (lambda: net(Off, block=Told), "blocks.0 is no block to go on from: .* a object"),
}


@pytest.mark.parametrize("name", CASES)
def test_other_courses(tmp_path: Path, name: str) -> None:
    make, told = CASES[name]
    model = make()
    source, out = saved(model, tmp_path / "a.safetensors"), tmp_path / "out"
    before = source.read_bytes()
    with pytest.raises(UnsupportedError, match=told):
        tensorlrf.compress_checkpoint(
            source, out, keep_params=0.5, calibration=ids(), model=on_meta(make()), skip=[]
        )
    assert source.read_bytes() == before
    assert not (out / "tensorlrf.safetensors").exists()


def test_batches_that_take_different_ways(tmp_path: Path) -> None:
    source = saved(net(Sometimes), tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedError, match=r"some batches pass blocks\.2 by"):
        tensorlrf.compress_checkpoint(
            source, tmp_path / "out", keep_params=0.5, model=on_meta(net(Sometimes)),
            calibration=[*ids(2), *ids(2, size=40)],
        )  # fmt: skip


def test_arguments(tmp_path: Path) -> None:
    source, out = saved(net(), tmp_path / "a.safetensors"), tmp_path / "out"

    def call(**more: Any) -> Any:
        given: dict[str, Any] = {"keep_params": 0.5, "calibration": ids(), **more}
        return tensorlrf.compress_checkpoint(source, out, **given)

    blank = on_meta(net())
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, r"calibration needs the model, .* as model=, built under"),
        ({"model": on_meta(net(blocks=4))}, "blocks.3.* is in none of the files"),
        ({"model": on_meta(net(n=8))}, r"\(61, 16\) of .* and .* \(61, 8\)"),
        ({"model": blank, "inputs": "suffix"}, "inputs='suffix'.* original"),
        ({"model": blank, "holdout": 2}, "holdout=2"),
        ({"model": blank, "memory_limit": -1}, "memory_limit=-1"),
        ({"model": blank, "memory_limit": 100}, "memory_limit=100 is below what .* give memory"),
        ({"model": blank, "calibration": lambda m: m(ids()[0])}, "give its batches"),
        ({"model": blank, "calibration": []}, "yields nothing"),
        ({"model": blank, "calibration": [torch.ones(2, 3)]}, r"cannot take batch 0 \(\(float32"),
        ({"calibration": None, "inputs": "prefix"}, "inputs='prefix' is of a fit to inputs"),
        ({"calibration": None, "memory_limit": 10**9}, "is of a fit to inputs"),
        ({"model": 3}, "model is a int"),
    ]
    for more, told in wrong:
        with pytest.raises(TensorlrfError, match=told):
            call(**more)
    assert not (out / "tensorlrf.safetensors").exists()


def test_without_blocks(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.two(self.one(x).relu())
            return y

    source = saved(Flat(), tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedError, match="the Flat has no blocks"):
        tensorlrf.compress_checkpoint(
            source, tmp_path / "out", keep_params=0.5, model=on_meta(Flat()), skip=[],
            calibration=[torch.ones(4, 16, device="cpu", dtype=torch.float32)],
        )  # fmt: skip


def test_a_buffer_that_nobody_has(tmp_path: Path) -> None:
    class Scaled(Net):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.register_buffer("scale", torch.ones(1, device="cpu"), persistent=False)

    source, out = saved(net(Scaled), tmp_path / "a.safetensors"), tmp_path / "out"
    with pytest.raises(UnsupportedError, match=r"scale has no values .* buffers on a device"):
        tensorlrf.compress_checkpoint(
            source, out, keep_params=0.5, calibration=ids(), model=on_meta(net(Scaled))
        )


def test_a_weight_that_is_not_finite(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model.blocks[1].up.weight[0, 0] = torch.nan  # type: ignore[union-attr,operator,index]
    source = saved(model, tmp_path / "a.safetensors")
    with pytest.raises(ArgumentError, match=r"the weight of blocks\.1\.up contains NaN"):
        tensorlrf.compress_checkpoint(
            source, tmp_path / "out", keep_params=0.5, calibration=ids(), model=on_meta(net())
        )
