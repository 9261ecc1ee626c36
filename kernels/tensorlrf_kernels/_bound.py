"""Launches bound once: a call like one before is made without choosing, building and looking up.

What a launch is follows from the shapes, strides, dtypes and alignment of its operands and from the
op's flags. The first call of a kind leaves its compiled kernels with their arguments, in which only
tensors are to be put in; no tensor is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._counters import counters
from tensorlrf_kernels.chips import tf32_allowed

Given = tuple[Tensor | None, ...]
Key = tuple[Hashable, ...]  # what kind of call it is
NOTHING: Any = object()  # returned where no such call has been bound
MOST = 4096  # kinds of calls; past that all are forgotten


@dataclass(frozen=True)
class Ready:
    """One launch: its kernel's launcher, and its arguments in their order.

    tensors   which argument is which of the call's tensors
    """

    run: Callable[..., None]
    function: Any
    metadata: Any
    told: Callable[..., Any]
    grid: int
    arguments: tuple[Any, ...]
    tensors: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Bound:
    """A kind of call: what it makes, its launches, and what it returns.

    made      shape and dtype of the tensors that are filled or written to between
    counted   whether counters are the last of its tensors
    returns   which of its tensors are returned, -1 for None
    """

    made: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    counted: bool
    launches: tuple[Ready, ...]
    returns: tuple[int, ...]
    alone: bool  # not as a tuple

    def __call__(self, given: Given) -> Any:
        """Make the launches on these operands."""
        first = given[0]
        assert first is not None
        device = first.device
        tensors: list[Tensor | None] = [*given]
        tensors += [torch.empty(size, dtype=dtype, device=device) for size, dtype in self.made]
        if self.counted:
            tensors.append(counters(device))
        index = device.index or 0
        elsewhere = device.type == "cuda" and torch.cuda.current_device() != index
        with torch.cuda.device(device) if elsewhere else _HERE:
            hooks, driver = _triton()
            stream = driver.active.get_current_stream(index)
            enter = hooks.launch_enter_hook
            listens = enter is not None and getattr(enter, "calls", True)  # a profiler, say
            for each in self.launches:
                arguments = list(each.arguments)
                for place, k in each.tensors:
                    arguments[place] = tensors[k]
                told = each.told((each.grid,), stream, *arguments) if listens else None
                each.run(
                    each.grid, 1, 1, stream, each.function, each.metadata, told,
                    enter, hooks.launch_exit_hook, *arguments,
                )  # fmt: skip
        found = tuple(None if k < 0 else tensors[k] for k in self.returns)
        return found[0] if self.alone else found


def again(op: str, given: Given, flags: Hashable) -> Any:
    """What a call returns, where one of its kind was bound before, else NOTHING."""
    if not _bound or _paused:
        return NOTHING
    key = _key(op, given, flags)
    bound = _bound.get(key)
    if bound is None:
        return NOTHING
    try:
        return bound(given)
    except Exception as error:
        if "cooperative" not in str(error):
            raise
        del _bound[key]  # refused where it was not before: the way round that leads elsewhere
        return NOTHING


def _key(op: str, given: Given, flags: Hashable) -> Key:
    """Of a call; the first operand is there, and says the device and the dtype."""
    first = given[0]
    assert first is not None
    operands = [
        None if t is None else (t.shape, t.stride(), t.dtype, t.data_ptr() % 16) for t in given
    ]
    tf32 = first.dtype is torch.float32 and tf32_allowed()
    return (op, flags, tf32, first.device, *operands)


def binder(
    op: str, given: Given, flags: Hashable, makes: Collection[str]
) -> Callable[[Sequence[Any], Sequence[Any], Any], None]:
    """What keeps the launches of a call for others of its kind, once it is told of them, of their
    compiled kernels, and of what the call returns.

    Of their tensors those named in `makes` are new in each call, "counters" come from the pool, and
    all others are among the operands; where that is not so, nothing is kept.
    """

    def bound(calls: Sequence[Any], kernels: Sequence[Any], result: Any) -> None:
        if not _paused:
            _bind(
                _key(op, given, flags), list(zip(calls, kernels, strict=True)), given, result, makes
            )

    return bound


def _bind(
    key: Key, launched: Sequence[tuple[Any, Any]], given: Given, result: Any,
    makes: Collection[str],
) -> None:  # fmt: skip
    if any(_place(t, given[:k]) >= 0 for k, t in enumerate(given) if t is not None):
        return  # of an operand that is there twice nobody can tell which argument is which
    made: list[Tensor] = []
    for call, _ in launched:
        for name, value in call.args.items():
            new = isinstance(value, Tensor) and name in makes and _place(value, given) < 0
            if new and _place(value, made) < 0:
                made.append(value)
    whole = [t.is_contiguous() and not t.storage_offset() for t in made]
    ready = [_ready(call, kernel, given, made) for call, kernel in launched]
    alone = isinstance(result, Tensor)
    returned = (result,) if alone else tuple(result)
    returns = tuple(-1 if t is None else _place(t, (*given, *made)) for t in returned)
    known = all(k >= 0 or t is None for k, t in zip(returns, returned, strict=True))
    if all(whole) and known and all(each is not None for each in ready):
        if len(_bound) >= MOST:
            _bound.clear()
        _bound[key] = Bound(
            tuple((tuple(t.shape), t.dtype) for t in made),
            any("counters" in call.args for call, _ in launched),
            tuple(each for each in ready if each is not None),
            returns,
            alone,
        )


def forget() -> None:
    """All that was bound: other launches were chosen since."""
    _bound.clear()


def pause(paused: bool) -> None:
    """Bind nothing and repeat nothing, while every call is to be looked at."""
    global _paused
    _paused = paused


def _ready(call: Any, kernel: Any, given: Given, made: Sequence[Tensor]) -> Ready | None:
    # Other kernels than Triton's compiled ones, such as the interpreter's, cannot be bound.
    if not hasattr(kernel, "packed_metadata") or call.function.pre_run_hooks:
        return None
    arguments = [call.arguments[name] for name in call.function.arg_names]
    tensors = []
    for place, name in enumerate(call.function.arg_names):
        if isinstance(value := arguments[place], Tensor):
            last = len(given) + len(made)
            k = last if name == "counters" else _place(value, (*given, *made))
            if k < 0:
                return None
            tensors.append((place, k))
            arguments[place] = None
    return Ready(
        kernel.run, kernel.function, kernel.packed_metadata, kernel.launch_metadata, call.grid,
        tuple(arguments), tuple(tensors),
    )  # fmt: skip


def _place(tensor: Tensor, among: Sequence[Tensor | None]) -> int:
    return next((k for k, other in enumerate(among) if other is tensor), -1)


@cache
def _triton() -> tuple[Any, Any]:
    """Its knobs of a launch, and its driver; imports triton."""
    from triton import knobs
    from triton.runtime import driver

    return knobs.runtime, driver


_bound: dict[Key, Bound] = {}
_paused = False
_HERE = nullcontext()
