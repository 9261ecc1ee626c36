"""A device that no machine has: its tensors are kept by the CPU, and meet none of the CPU's.

As on a GPU, an operation on tensors of both is an error, but for copies from one to the other and
for numbers of no dimension. What torch makes on it by its name is made there while `there` is
entered, and in threads that begin then: so a test tells whether all that a run makes on the way is
on the device that it was asked for. Its generators are the CPU's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("lazy:0")
"""A type that torch knows by name, and that nothing has to be started for."""

COPIES = (
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten.index.Tensor,  # rows may be told by the CPU
)


class Elsewhere(Tensor):
    """One of its tensors."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # not declared
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made  # type: ignore[no-any-return]  # of Any

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _There(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Kind(type):
    def __instancecheck__(cls, one: object) -> bool:
        return isinstance(one, _GENERATOR)

    def __call__(cls, device: Any = "cpu") -> Any:
        return _GENERATOR("cpu" if torch.device(device).type == DEVICE.type else device)


class _Generator(metaclass=_Kind):
    """A torch.Generator, of any device."""


_GENERATOR = torch.Generator


_RUN = threading.Thread.run


def _run_there(thread: threading.Thread) -> None:
    with _There():
        _RUN(thread)


@contextmanager
def there() -> Iterator[torch.device]:
    """The device."""
    with (
        mock.patch.object(torch, "Generator", _Generator),
        mock.patch.object(threading.Thread, "run", _run_there),
        _There(),
    ):
        yield DEVICE


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    own = [leaf for leaf in leaves if isinstance(leaf, Elsewhere)]
    others = [leaf for leaf in leaves if not isinstance(leaf, Elsewhere) and leaf.ndim]
    if own and others and func not in COPIES:
        raise RuntimeError(f"{func} is given tensors of {DEVICE} and of {others[0].device}")
    asked = kwargs.get("device")
    at_home = not own if asked is None else torch.device(asked).type != DEVICE.type
    if func is torch.ops.aten.copy_.default:
        at_home = not isinstance(args[0], Elsewhere)
    given, named = pytree.tree_map(_held, (args, kwargs))
    if asked is not None and not at_home:
        named["device"] = torch.device("cpu")
    made = func(*given, **named)
    if at_home:
        return made
    known = {id(leaf.held): leaf for leaf in own}  # what it was written into

    def wrapped(leaf: Any) -> Any:
        if type(leaf) is not Tensor:
            return leaf
        return known[id(leaf)] if id(leaf) in known else Elsewhere(leaf)

    return pytree.tree_map(wrapped, made)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Elsewhere) else leaf
