"""An interrupted refinement keeps the best, and goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, FileFormatError
from tests.compression.refinement.students import batches, ends, pair

QUIET: dict[str, Any] = {"progress": False}


def spread(logits: Tensor) -> Tensor:
    """A loss of one's own: how far logits are from 0."""
    return logits.square().mean()


class Interrupted:
    """`spread`, which presses Ctrl-C at its n-th call."""

    __name__ = "spread"

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, logits: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return spread(logits)


def equal(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({}, 2),
        ({}, 6),
        ({}, 14),
        ({"lora": 1}, 14),
        ({"accumulate": 2}, 14),
        ({"dtype": torch.float16}, 14),
        ({"phases": ["block"], "look_ahead": True}, 8),
    ],
    ids=str,
)
def test_a_run_that_goes_on_is_the_run_without_a_break(
    options: dict[str, Any], n: int, tmp_path: Path
) -> None:
    """In judging or in training, in any phase."""
    model, small = pair()
    given: dict[str, Any] = {"steps": 16, "patience": 3, "random_state": 5, **options, **QUIET}
    whole, told = tensorlrf.refine(small, model, batches(), loss=spread, **given)
    given |= {"journal": tmp_path / "journal"}
    part, report = tensorlrf.refine(small, model, batches(), loss=Interrupted(n), **given)
    assert report.reason == "interrupted"
    before, least = ends(report)
    assert least <= before
    with torch.no_grad():
        assert float(spread(part(batches()[5]))) == pytest.approx(least, rel=1e-5)
    again, after = tensorlrf.refine(small, model, batches(), loss=spread, **given)
    assert equal(again, whole)
    assert [(c.phase, c.step, c.held_out, c.training) for c in after.curve] == [
        (c.phase, c.step, c.held_out, c.training) for c in told.curve
    ]
    assert after.reason == told.reason


def test_a_finished_journal_gives_its_result_at_once(tmp_path: Path) -> None:
    model, small = pair()
    given: dict[str, Any] = {"steps": 6, "journal": tmp_path, "random_state": None, **QUIET}
    one, first = tensorlrf.refine(small, model, batches(), **given)
    two, second = tensorlrf.refine(small, model, batches(), **given)
    assert equal(one, two)
    assert first.curve == second.curve
    assert [path.name for path in tmp_path.iterdir()] == ["refinement.safetensors"]


def test_an_interrupt_before_the_model_is_judged_is_one() -> None:
    model, small = pair()
    with pytest.raises(KeyboardInterrupt):
        tensorlrf.refine(small, model, batches(), steps=4, loss=Interrupted(1), **QUIET)


def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    model, small = pair()
    tensorlrf.refine(small, model, batches(), steps=4, journal=tmp_path, **QUIET)
    for options, words in (
        ({"steps": 5}, "differs in steps"),
        ({"steps": 4, "lr": 0.1}, "differs in lr"),
        ({"steps": 4, "loss": "relative"}, "differs in loss"),
    ):
        with pytest.raises(ArgumentError, match=words):
            tensorlrf.refine(small, model, batches(), journal=tmp_path, **options, **QUIET)
    with pytest.raises(ArgumentError, match="differs in data"):
        tensorlrf.refine(small, model, batches(7), steps=4, journal=tmp_path, **QUIET)
    other, _ = tensorlrf.refine(small, model, batches(), steps=4, **QUIET)
    with pytest.raises(ArgumentError, match="differs in small"):
        tensorlrf.refine(other, model, batches(), steps=4, journal=tmp_path, **QUIET)


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    model, small = pair()
    tensorlrf.refine(small, model, batches(), steps=4, journal=tmp_path, **QUIET)
    file = tmp_path / "refinement.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(FileFormatError, match="damaged"):
        tensorlrf.refine(small, model, batches(), steps=4, journal=tmp_path, **QUIET)
    file.write_bytes(b"no journal")
    with pytest.raises(FileFormatError, match="damaged"):
        tensorlrf.refine(small, model, batches(), steps=4, journal=tmp_path, **QUIET)


@pytest.mark.filterwarnings("ignore:calibration is thin")  # 60 rows are enough for a journal
def test_one_at_the_end_of_compress_goes_on_in_the_folder_of_that(tmp_path: Path) -> None:
    model, _ = pair()
    asked: dict[str, Any] = {"calibration": batches(), "keep_params": 0.5, "refine": 0.1, **QUIET}
    told = [tensorlrf.compress(model, journal=tmp_path, **asked)[1].refinement for _ in range(2)]
    first, second = (() if one is None else one.curve for one in told)
    assert first
    assert second[: len(first)] == first


def test_in_data_parallel_the_course_of_one_process_is_the_same(tmp_path: Path) -> None:
    model, small = pair()
    alone, told = tensorlrf.refine(small, model, batches(), steps=12, **QUIET)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(small)
        found, report = tensorlrf.refine(
            wrapped, nn.parallel.DistributedDataParallel(model), batches(), steps=12,
            journal=tmp_path / "journal", **QUIET,
        )  # fmt: skip
    finally:
        dist.destroy_process_group()
    assert equal(found, alone)
    assert [c.held_out for c in report.curve] == [c.held_out for c in told.curve]


def _trained(rank: int, folder: str) -> None:
    """One of two processes, which has every other batch."""
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model, small = pair()
    wrapped = nn.parallel.DistributedDataParallel(small)
    # The batch that is held out is the last one of each.
    better, report = tensorlrf.refine(
        wrapped, model, batches(4)[rank::2], steps=3, phases=["global"], patience=9, **QUIET
    )
    torch.save(better.state_dict(), f"{folder}/{rank}.pt")
    Path(f"{folder}/{rank}.json").write_text(report.to_json())
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_one_model_on_the_batches_of_both(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_trained, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    reports = [
        tensorlrf.Refinement.from_json((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    ]
    assert [c.held_out for c in reports[0].curve] == [c.held_out for c in reports[1].curve]
    model, small = pair()
    data = batches(4)
    # One process takes the same course on batches of both.
    both = [torch.cat(data[:2]), torch.cat(data[2:])]
    _, alone = tensorlrf.refine(small, model, both, steps=3, phases=["global"], patience=9, **QUIET)
    for one_of, whole in zip(reports[0].curve, alone.curve, strict=True):
        assert one_of.held_out == pytest.approx(whole.held_out, rel=1e-3)
