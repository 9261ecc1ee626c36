"""A pass through a model of which one block is there.

The model runs as it is written, so that it gives each block the arguments which it gives it: masks,
positions, whatever differs from block to block. Blocks before the one that is there hand back what
they have put out before; behind it the pass ends. Only the block just before it, and the last ones
of chains that have ended, hand back what they know: the others hand back NaN, so that a model which
uses more of them than that is found out.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.scale.blocks._states import States
from tensorlrf.errors import UnsupportedError

NUMBER = "tensorlrf_batch"
"""Keyword under which a model in parts is told the number of the batch."""


class Ended(BaseException):
    """The pass has come to its end, with an output; no Exception, so that nothing stops it."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class Unreached:
    """What a pass gives that has not come to the block."""


UNREACHED = Unreached()


@dataclass
class Course:
    """Where a pass is.

    names   of all blocks
    ends    numbers of those with which a chain ends
    at      the number of the one that is there; as many as there are blocks for what is behind them
    skipped numbers of those that no batch reaches
    states  what those before have put out
    stream  of which model
    batch   the number of the batch
    seen    numbers of the blocks that were called
    gone_by whether the pass came to what the model holds behind its last block
    partial whether embeddings are put away, too
    """

    names: tuple[str, ...]
    ends: frozenset[int]
    at: int
    skipped: frozenset[int]
    states: States
    stream: str
    batch: int = -1
    seen: tuple[int, ...] = ()
    gone_by: bool = False
    partial: bool = False

    @property
    def before(self) -> int | None:
        """The last block before that one."""
        return next((k for k in range(self.at - 1, -1, -1) if k not in self.skipped), None)

    @property
    def _known(self) -> set[int]:
        """Blocks whose outputs are known, and the one that is there."""
        ends = {k for k in self.ends if k < self.at}
        return {self.at, *ends} | ({self.before} if self.before is not None else set())

    @property
    def live(self) -> bool:
        """Whether what comes now is made of what blocks have put out."""
        return self.before is None or self.before in self.seen

    def begin(self, batch: int) -> None:
        self.batch, self.seen, self.gone_by = batch, (), False

    def hand_back(self, number: int) -> Any:
        """What a block has put out that is not there."""
        if number > self.at:
            raise Ended(UNREACHED)
        self._enter(number)
        if number in self._known:
            return self.states.get((self.stream, number, self.batch))
        leaves, spec = self.states.shape_of((self.stream, self._like(number), self.batch))
        device = self.states.device
        return pytree.tree_unflatten([_poison(leaf, device) for leaf in leaves], spec)

    def check(self, args: Any) -> None:
        """What the block that is there is called with. Raises UnsupportedError."""
        self._enter(self.at)
        self.check_input(self.names[self.at], args)

    def check_input(self, name: str, value: Any) -> None:
        """What a module is called with. Raises UnsupportedError where it is made of what is not
        there."""
        away = self.partial or set(self.seen) - self._known
        if away and _has_nan(value) and not self._nan_before():
            raise UnsupportedError(
                f"{name} is given what is made of the outputs of more blocks than the last one "
                f"before it; {REMEDY}"
            )

    def _nan_before(self) -> bool:
        kept = self._known & set(self.seen) - {self.at}
        return any(_has_nan(self.states.get((self.stream, k, self.batch))) for k in kept)

    def _enter(self, number: int) -> None:
        due = [k for k in range(self.at + 1) if k not in self.skipped]
        wanted = due[len(self.seen)] if len(self.seen) < len(due) else None
        if number != wanted:
            told = "another time" if number in self.seen else "out of turn, or by some batches only"
            raise UnsupportedError(f"{self.names[number]} is called {told}; {REMEDY}")
        self.seen = (*self.seen, number)

    def _like(self, number: int) -> int:
        """A block of the same chain whose output is known."""
        before = self.before
        assert before is not None
        return min((k for k in self.ends if number <= k < before), default=before)


REMEDY = "such a model cannot be gone through block by block: use tensorlrf.compress"


def _poison(leaf: Any, device: Any) -> Any:
    """NaN of that shape, which takes no memory."""
    if not isinstance(leaf, Tensor):
        return leaf
    value = float("nan") if leaf.is_floating_point() else 0
    return torch.full((), value, dtype=leaf.dtype, device=device).expand(leaf.shape)


def _has_nan(value: Any) -> bool:
    leaves = pytree.tree_leaves(value)
    return any(
        bool(t.isnan().any()) for t in leaves if isinstance(t, Tensor) and t.is_floating_point()
    )


# ---- blocks that are not there ------------------------------------------------------------------

WHOLE = "_tensorlrf_whole"


@dataclass
class Asked:
    """What blocks are asked for that are not there. Copies of a model share it.

    blocks  of all numbers, on meta
    names   of what was asked for
    """

    blocks: Sequence[nn.Module]
    names: set[str] = field(default_factory=set)

    def of(self, number: int, name: str) -> Any:
        found = getattr(self.blocks[number], name)
        self.names.add(name)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Asked:
        return self


def hollow_type(kind: type[nn.Module]) -> type[nn.Module]:
    """A type of blocks that hold nothing, and say what they would hold to whoever asks by name: as
    nn.TransformerEncoder asks its first layer how many heads it has."""

    def get(self: nn.Module, name: str) -> Any:
        try:
            return kind.__getattr__(self, name)
        except AttributeError:
            if name.startswith("__") or WHOLE not in vars(self):
                raise
            asked, number = vars(self)[WHOLE]
            return asked.of(number, name)

    return type(kind.__name__, (kind,), {"__getattr__": get, "__module__": kind.__module__})


# ---- forwards -----------------------------------------------------------------------------------


class Own:
    """The forward that a module has by its type. A bound method would refer to the module that
    holds it: copies of the model, one for every pass, would stay until somebody collects them."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module()
        assert module is not None  # which is being called
        return type(module).forward(module, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        """That of the copy of the module, which is there before what it holds is copied."""
        module = self._module()
        assert module is not None
        return Own(memo.get(id(module), module))


@dataclass
class _Whole:
    """The forward of the model, which takes the number of the batch too and may end early."""

    course: Course
    forward: Any
    asked: Asked

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.course.begin(kwargs.pop(NUMBER))
        try:
            output = self.forward(*args, **kwargs)
        except Ended as ended:
            return ended.output
        except RuntimeError as error:  # as of tensors on meta and elsewhere
            if not self.asked.names:
                raise
            raise UnsupportedError(
                f"the pass fails, perhaps for want of {', '.join(sorted(self.asked.names))} of "
                f"blocks that are not there ({error}); {REMEDY}"
            ) from error
        return output if self.course.at == len(self.course.names) else UNREACHED


@dataclass
class _Absent:
    """The forward of a block that is not there."""

    course: Course
    number: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.course.hand_back(self.number)


@dataclass
class _Present:
    """The forward of the one that is, with which the pass ends."""

    course: Course
    forward: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.course.check((args, kwargs))
        raise Ended(self.forward(*args, **kwargs))


@dataclass
class _Later:
    """The forward of a module behind the last block, which a pass comes to that has gone by the
    one that is there."""

    course: Course

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.course.gone_by = True
        raise Ended(UNREACHED)


class Parted:
    """A model of which one block at a time is there; it is changed to be so.

    model   a pass through it gives the output of that block, or UNREACHED
    later   what it holds behind its last block and has parameters
    waits   whether that has no weights yet
    """

    def __init__(
        self, model: nn.Module, chains: Sequence[Sequence[str]], states: States, stream: str
    ) -> None:
        names = tuple(name for chain in chains for name in chain)
        lengths = [len(chain) for chain in chains]
        ends = frozenset(sum(lengths[: k + 1]) - 1 for k in range(len(lengths)))
        self.model = model
        self.course = Course(names, ends, 0, frozenset(), states, stream)
        self._blocks = [model.get_submodule(name) for name in names]
        self._asked = Asked(self._blocks)
        self._kinds = {type(block): hollow_type(type(block)) for block in self._blocks}
        self.waits = False
        self.later = [m for m in _behind(model, names[-1]) if any(True for _ in m.parameters())]
        self._hollow = [self._without(k) for k in range(len(names))]
        for k in range(len(names)):
            self._place(k, self._hollow[k])
        given = vars(model).get("forward")  # one that is not of its type
        vars(model)["forward"] = _Whole(
            self.course, Own(model) if given is None else given, self._asked
        )

    def _without(self, number: int) -> nn.Module:
        """A module with the attributes of a block, without what it holds."""
        block = self._blocks[number]
        hollow: nn.Module = object.__new__(self._kinds[type(block)])
        vars(hollow).update(
            {**vars(block), "_modules": {}, "_parameters": {}, "_buffers": {}}
        )  # fmt: skip
        vars(hollow)["forward"] = _Absent(self.course, number)
        vars(hollow)[WHOLE] = (self._asked, number)
        return hollow

    def _place(self, number: int, module: nn.Module) -> None:
        parent, _, child = self.course.names[number].rpartition(".")
        self.model.get_submodule(parent)._modules[child] = module

    def block(self, number: int) -> nn.Module:
        """One of the blocks, as the model has it."""
        return self._blocks[number]

    def enter(self, number: int) -> None:
        """Have that one there, which has its weights."""
        block = self._blocks[number]
        self._place(number, block)
        vars(block)["forward"] = _Present(self.course, Own(block))
        self.course.at = number

    def leave(self, number: int, *, reached: bool) -> None:
        """Have it go."""
        vars(self._blocks[number]).pop("forward", None)
        self._place(number, self._hollow[number])
        if not reached:
            self.course.skipped |= {number}

    def put_off(self) -> None:
        """Have a pass end where it comes to what the model holds behind its last block: that has no
        weights yet."""
        self.waits = True
        for module in self.later:
            vars(module)["forward"] = _Later(self.course)

    def complete(self) -> None:
        """What is behind has its weights."""
        self.waits = False
        for module in self.later:
            vars(module).pop("forward", None)

    def behind(self) -> None:
        """Have what is behind all blocks there."""
        self.course.at = len(self.course.names)


def _behind(model: nn.Module, last: str) -> Iterator[nn.Module]:
    """Modules that come after this one in the model, in the order in which it holds them."""
    at = last
    while at:
        parent, _, child = at.rpartition(".")
        siblings = list(model.get_submodule(parent).named_children())
        place = [name for name, _ in siblings].index(child)
        yield from (module for _, module in siblings[place + 1 :])
        at = parent


def course_of(model: nn.Module) -> Course:
    """That of a model in parts, or of a replica of one."""
    course: Course = vars(model)["forward"].course
    return course


def numbered(batch: Batch, device: torch.device) -> Batch:
    """The batch as a model in parts takes it, which is there."""
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf,
        (batch.args, dict(batch.kwargs)),
    )
    return Batch(args, {**kwargs, NUMBER: batch.index}, batch.index, batch.names)
