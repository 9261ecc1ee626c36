"""What the passes of a refinement hold, in what precision they run, what gradients they make."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tensorlrf
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.compression.refinement._objective import Objective
from tensorlrf.compression.refinement._phases import Block, Passes, apart
from tensorlrf.compression.refinement._student import Student, within
from tests.compression.refinement.students import Tower, batches, pair

QUIET: dict[str, Any] = {"progress": False}


class Saved:
    """A tensor that a graph holds."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@dataclass
class Held:
    """Bytes of tensors that graphs hold: now, and at most."""

    now: int = 0
    most: int = 0

    def pack(self, tensor: Tensor) -> Saved:
        saved, size = Saved(tensor), tensor.numel() * tensor.element_size()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(saved, self.release, size)
        return saved

    def release(self, size: int) -> None:
        self.now -= size


@contextmanager
def counted() -> Iterator[Held]:
    held = Held()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda saved: saved.tensor):
        yield held


def most_bytes(model: nn.Module, small: nn.Module, **options: Any) -> int:
    with counted() as held:
        tensorlrf.refine(small, model, batches(3, size=32), steps=2, **options, **QUIET)
    return held.most


def test_nearer_comparisons_hold_less() -> None:
    """A layer at a time, a block at a time, or the whole model; or the whole one by its blocks."""
    model = Tower(depth=6)
    small, _ = tensorlrf.compress(model, keep_params=0.4, skip=["embedding", "head"])
    layer, block, whole = (
        most_bytes(model, small, phases=[name]) for name in ("local", "block", "global")
    )
    assert layer < block < whole / 3
    assert most_bytes(model, small, phases=["global"], checkpointing=True) < whole / 2
    ahead = most_bytes(model, small, phases=["block"], look_ahead=True)
    again = most_bytes(model, small, phases=["block"], look_ahead=True, checkpointing=True)
    assert again < ahead / 2


class Noted(nn.Module):
    """Notes whether it runs in autocast, and with a graph."""

    seen: ClassVar[list[tuple[bool, bool]]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return x


@pytest.mark.parametrize("phase", ["local", "global"])
def test_training_passes_run_in_autocast_and_judgements_do_not(phase: str) -> None:
    model = nn.Sequential(Noted(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    small, _ = tensorlrf.compress(model, keep_params=0.5, skip=[])
    Noted.seen.clear()
    data = [torch.rand(4, 8) for _ in range(4)]
    _, report = tensorlrf.refine(
        small, model, data, steps=6, dtype=torch.bfloat16, phases=[phase], patience=99, **QUIET
    )
    cast = [grad for autocast, grad in Noted.seen if autocast]
    # In "global" the student runs with a graph, and what the given model says of each of three
    # batches is kept.
    assert cast.count(True) == (6 if phase == "global" else 0)
    assert cast.count(False) == (3 if phase == "global" else 6)
    judged = [grad for autocast, grad in Noted.seen if not autocast]
    assert not any(judged)
    assert len(judged) >= len(report.curve)


class Output:
    """What a module returned last."""

    def __init__(self, module: nn.Module) -> None:
        module.register_forward_hook(self.take)

    def take(self, _: nn.Module, args: Any, output: Tensor) -> None:
        self.value = output


def ahead(model: nn.Module, twin: nn.Module, block: str, x: Tensor) -> Tensor:
    """The loss of the outputs and of one block, without a phase."""
    model = copy.deepcopy(model)
    wanted, got = (Output(one.get_submodule(block)) for one in (model, twin))
    logs, others = (one(x).log_softmax(-1) for one in (model, twin))
    rows = F.kl_div(others, logs.detach(), log_target=True, reduction="none").sum(-1)
    return rows.mean() + apart(wanted.value.detach(), got.value, Batch.of(x))


def test_look_ahead_goes_back_from_the_outputs_to_one_block() -> None:
    """Its gradients are those of the loss of the outputs and of the block's own error together."""
    model, small = pair()
    student, x = Student(small, None, torch.Generator()), batches(1)[0]
    phase = Block(model, Passes(), ["blocks.0", "blocks.1"], Objective(OutputLoss("kl")))
    for step, name in ((0, "blocks.0"), (1, "blocks.1"), (2, "blocks.0")):
        twin, own = (student.twin(partial(phase.trains, step=step)) for _ in range(2))
        told = phase.backward(twin, Batch.of(x), step, 1.0)
        loss = ahead(model, own, name, x)
        loss.backward()  # type: ignore[no-untyped-call]
        assert told == pytest.approx(float(loss.detach()), rel=1e-4)
        wanted = {n: p.grad for n, p in own.named_parameters() if p.grad is not None}
        got = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
        assert got.keys() == wanted.keys()
        assert all(within(n, name) for n in got)
        for n, grad in got.items():
            torch.testing.assert_close(grad, wanted[n], rtol=1e-3, atol=1e-6)
