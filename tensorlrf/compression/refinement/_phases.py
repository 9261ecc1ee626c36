"""The three ways in which a student is compared with its teacher, from the nearest to the farthest.

Each makes gradients of one batch. "local" and "block" never hold the graph of the whole model: a
graph is made, gone back through and dropped layer by layer, or block by block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.calibration.draws import OwnDraws
from tensorlrf.compression.refinement._blocks import checkpoint_blocks, detached, hidden
from tensorlrf.compression.refinement._objective import Objective, Wanted
from tensorlrf.compression.refinement._student import within
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.copies import replica

PHASES = {"local": 0.1, "block": 0.35, "global": 0.55}
"""Name -> its share of the budget, in this order. Parts that were fitted to data gain nothing by
themselves, and are soon done with; the loss falls fastest at the end
(bench/results/cpu/refine_settings.md)."""


LEAST_ROW = 1e-3
"""Of the energy of the median row, which any row counts as having at the least."""

ROOM = 1 << 28
"""Bytes of outputs of the teacher that are kept."""


Outputs = dict[str, list[Tensor | None]]
"""Of blocks, by name, in the order of their calls."""

T = TypeVar("T")


@dataclass
class Known:
    """What the teacher has told of batches, which come again; as far as there is room."""

    told: dict[int, Any] = field(default_factory=dict)
    room: int = ROOM

    def of(self, batch: Batch, tell: Callable[[], T]) -> T:
        """What is known of a batch, or else is told."""
        if batch.index in self.told:
            known: T = self.told[batch.index]
            return known
        told = tell()
        leaves = [t for t in pytree.tree_leaves(told) if isinstance(t, Tensor)]
        size = sum(t.numel() * t.element_size() for t in leaves)
        if size <= self.room:
            self.told[batch.index], self.room = told, self.room - size
        return told


@dataclass(frozen=True)
class Passes:
    """How models are run.

    dtype          of autocast; None for none
    checkpointed   blocks that are run once more on the way back
    """

    dtype: torch.dtype | None = None
    checkpointed: Sequence[str] = ()

    def forward(self, model: nn.Module, batch: Batch, *, grad: bool = False) -> Any:
        """What a model returns for a batch."""
        with self._autocast(model):
            return call(model, batch, argument="data", grad=grad)

    def _autocast(self, model: nn.Module) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        device = next(iter(model.parameters())).device.type
        return torch.autocast(device, self.dtype, cache_enabled=False)


@dataclass
class Phase(ABC):
    """One of the three.

    teacher  the given model
    """

    teacher: nn.Module
    passes: Passes

    name = ""

    @abstractmethod
    def trains(self, parameter: str, step: int) -> bool:
        """Whether a parameter of the student gets a gradient in that step."""

    @abstractmethod
    def backward(self, twin: nn.Module, batch: Batch, step: int, scale: float) -> float:
        """Gradients of `scale` times the loss of a batch, left with the parameters of the student's
        `twin`; the loss itself."""


def back(loss: Tensor, scale: float) -> float:
    """Go back from a loss; its value. What a module draws when it is run once more is its own."""
    with without_autocast(), torch.enable_grad(), OwnDraws():
        (scale * loss).backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def apart(wanted: Tensor, got: Tensor, batch: Batch) -> Tensor:
    """Squared relative error: of (samples, tokens, features) the mean over tokens of each one's
    own, so that the few with large norms do not count for all; of anything else as a whole."""
    of = wanted.dtype if wanted.dtype == torch.float64 else torch.float32
    wanted, got = batch.tokens_of(wanted).to(of), batch.tokens_of(got).to(of)
    tiny = torch.finfo(of).tiny
    if wanted.ndim in (2, 3):
        lost, whole = (wanted - got).square().sum(-1), wanted.square().sum(-1)
        return (lost / (whole + LEAST_ROW * whole.median() + tiny)).mean()
    return (wanted - got).square().sum() / (wanted.square().sum() + tiny)


@dataclass
class Local(Phase):
    """Each factored layer beside the given one, on the given one's inputs.

    layers  names
    """

    layers: Sequence[str]

    name = "local"

    def trains(self, parameter: str, step: int) -> bool:
        return any(within(parameter, layer) for layer in self.layers)

    def backward(self, twin: nn.Module, batch: Batch, step: int, scale: float) -> float:
        own, seen = replica(self.teacher), _Losses(batch, scale)
        with ExitStack() as stack:
            for name in self.layers:
                hook = partial(seen.layer, twin.get_submodule(name))
                handle = own.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            self.passes.forward(own, batch)
        return seen.mean


@dataclass
class Block(Phase):
    """Each block beside the given one, on what the student's blocks before it deliver.

    blocks      names
    objective   of the outputs of the whole model, which is looked at through the blocks behind;
                then one block is trained at a time. None for none
    known       what the teacher's blocks give for a batch
    """

    blocks: Sequence[str]
    objective: Objective | None = None
    known: Known = field(default_factory=Known)

    name = "block"

    def trains(self, parameter: str, step: int) -> bool:
        return any(within(parameter, block) for block in self._chosen(step))

    def _chosen(self, step: int) -> Sequence[str]:
        return self.blocks if self.objective is None else [self.blocks[step % len(self.blocks)]]

    def backward(self, twin: nn.Module, batch: Batch, step: int, scale: float) -> float:
        chosen = self._chosen(step)
        tell = partial(self._wanted, batch, chosen)
        # One block at a time, another has been looked at when the batch comes again.
        found, final = self.known.of(batch, tell) if self.objective is None else tell()
        wanted = {name: list(outputs) for name, outputs in found.items()}
        seen = _Losses(batch, scale, goes_on=self.objective is not None)
        if seen.goes_on:
            checkpoint_blocks(twin, list(self.passes.checkpointed))
        with ExitStack() as stack:
            for name in chosen:
                block = twin.get_submodule(name)
                before = block.register_forward_pre_hook(_cut, with_kwargs=True)
                after = block.register_forward_hook(partial(seen.block, wanted.get(name, [])))
                stack.callback(before.remove)
                stack.callback(after.remove)
            got = self.passes.forward(twin, batch, grad=True)
        if self.objective is None:
            return seen.mean
        with without_autocast(), torch.enable_grad():
            loss = self.objective.loss(self.objective.wanted(final, batch), got, batch)
        for one in seen.held:
            loss = loss + one
        return back(loss, scale) if loss.requires_grad else float(loss.detach())

    def _wanted(self, batch: Batch, blocks: Sequence[str]) -> tuple[Outputs, Any]:
        """(outputs of the teacher's blocks, in the order of their calls; those of the teacher,
        where they are looked at)."""
        own, outputs = replica(self.teacher), _Noted()
        with ExitStack() as stack:
            for name in blocks:
                hook = partial(outputs.note, name)
                stack.callback(own.get_submodule(name).register_forward_hook(hook).remove)
            final = self.passes.forward(own, batch)
        return outputs.found, None if self.objective is None else final


@dataclass
class Global(Phase):
    """The outputs of the whole model.

    known  those of the teacher for a batch
    """

    objective: Objective
    known: Known = field(default_factory=Known)

    name = "global"

    def trains(self, parameter: str, step: int) -> bool:
        return True

    def backward(self, twin: nn.Module, batch: Batch, step: int, scale: float) -> float:
        wanted = self._wanted(batch)
        checkpoint_blocks(twin, list(self.passes.checkpointed))
        got = self.passes.forward(twin, batch, grad=True)
        with without_autocast(), torch.enable_grad():
            loss = self.objective.loss(wanted, got, batch)
        if not loss.requires_grad:
            raise ArgumentError(
                "loss has no gradient: the outputs do not depend on what is trained, or were "
                "detached on the way by the model, readout= or loss="
            )
        return back(loss, scale)

    def _wanted(self, batch: Batch) -> Wanted:
        if self.objective.distance is None:
            return []
        return self.known.of(batch, partial(self._told, batch))

    def _told(self, batch: Batch) -> Wanted:
        return self.objective.wanted(self.passes.forward(replica(self.teacher), batch), batch)


def _cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A hook before a block: its graph begins here."""
    return detached(args), detached(kwargs)


@dataclass(frozen=True)
class _Noted:
    """Outputs of the teacher's blocks."""

    found: Outputs = field(default_factory=dict)

    def note(self, name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A hook behind a block. What follows may write to its output."""
        tensor = hidden(output)
        kept = None if tensor is None else tensor.detach().clone()
        self.found.setdefault(name, []).append(kept)


@dataclass
class _Losses:
    """What the parts of a model lose on a batch.

    goes_on  whether the graph goes on behind a part; then its loss is held
    """

    batch: Batch
    scale: float
    goes_on: bool = False
    values: list[float] = field(default_factory=list)
    held: list[Tensor] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.values) / max(1, len(self.values))

    def layer(self, twin: Callable[..., Any], _: nn.Module, args: Any, kwargs: Any, y: Any) -> None:
        """A hook behind a layer of the teacher: the student's does the same."""
        if not isinstance(y, Tensor) or not y.is_floating_point():
            return
        with torch.enable_grad():
            got = twin(*detached(args), **detached(kwargs))
            with without_autocast():
                self._add(apart(y, got, self.batch))

    def block(self, wanted: list[Tensor | None], _: nn.Module, args: Any, output: Any) -> Any:
        """A hook behind a block of the student, in the order of calls."""
        one, got = wanted.pop(0) if wanted else None, hidden(output)
        if one is not None and got is not None and one.shape == got.shape:
            with without_autocast():
                self._add(apart(one, got, self.batch))
        return output if self.goes_on else detached(output)

    def _add(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            return
        if self.goes_on:
            self.held.append(loss)
        else:
            self.values.append(back(loss, self.scale))
