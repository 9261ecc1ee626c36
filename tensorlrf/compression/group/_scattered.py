"""Parameters of which each rank of a group holds a part, put together where an operation takes one.

A model on such parameters runs as it is written, and code that reads a weight reads it: for as long
as that takes, the rank has this one tensor whole, and never the model. Which rank is where in which
pass does not matter (`Group.borrow`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from tensorlrf.compression.group._group import Group
from tensorlrf.nn.tensors import register_tensor

AXES = 2
"""Of parameters that are scattered, at the least: biases and gains are small, and whole."""


class Parts(ABC):
    """The parts of a tensor that the ranks hold.

    like   a tensor on meta: shape, strides and dtype
    own    the part of this rank
    """

    def __init__(self, group: Group, like: Tensor, own: Tensor) -> None:
        self.group, self.own = group, own
        self.like = torch.empty(like.shape, dtype=like.dtype, device="meta")
        self.needs_grad = like.requires_grad
        # By the memory of this, which no other tensor has, it is seen who shares a parameter.
        self.mark = torch.empty(1, dtype=torch.uint8, device="cpu")
        self._number = group.lend(self._together)

    def whole(self) -> Tensor:
        """On this rank, for as long as it is held."""
        return self.group.borrow(self._number)

    @abstractmethod
    def _together(self) -> Tensor:
        """By collectives of all ranks."""

    def write(self, values: Tensor) -> None:
        """Have the ranks, all of which make this call, hold the parts of other numbers."""
        raise RuntimeError("the parameters of the given model are not written to")


class Given(Parts):
    """Of a DTensor of the given model, which goes on holding them."""

    def __init__(self, group: Group, tensor: Any) -> None:
        self._tensor = tensor.detach()
        super().__init__(group, tensor, tensor.to_local().detach())

    def _together(self) -> Tensor:
        whole: Tensor = self._tensor.full_tensor()
        return whole


class Owned(Parts):
    """Of the numbers in a row, cut into as many pieces of one size as there are ranks."""

    def __init__(self, group: Group, values: Tensor) -> None:
        super().__init__(group, values, _piece(group, values))

    def _together(self) -> Tensor:
        flat = self.own.new_empty(len(self.own) * self.group.size)
        self.group.put_together(flat, self.own)
        return flat[: self.like.numel()].view(self.like.shape)

    def write(self, values: Tensor) -> None:
        self.group.every(True)  # nobody reads what was there before any more
        self.own.copy_(_piece(self.group, values))


def _piece(group: Group, values: Tensor) -> Tensor:
    """On memory of its own; the last one is filled up with zeros."""
    flat = values.detach().reshape(-1)
    size = math.ceil(flat.numel() / group.size)
    piece = flat.new_zeros(size)
    part = flat[group.rank * size : (group.rank + 1) * size]
    piece[: len(part)] = part
    return piece


class Scattered(Tensor):
    """A tensor whose parts are on the ranks of a group.

    parts  those
    turns  what makes this tensor of the whole one: views that were asked for
    """

    parts: Parts
    turns: tuple[Callable[[Tensor], Tensor], ...]

    # Results are ordinary tensors; torch tells this of a type by its function, not by a method.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, parts: Parts, turns: tuple[Callable[[Tensor], Tensor], ...] = ()) -> Scattered:
        like = parts.like
        for turn in turns:
            like = turn(like)
        made: Scattered = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, like.stride(), dtype=like.dtype, device=parts.own.device
        )
        made.parts, made.turns = parts, turns
        return made

    def full_tensor(self) -> Tensor:
        """An ordinary tensor on this rank."""
        values = self.parts.whole()
        for turn in self.turns:
            values = turn(values)
        return values

    def __deepcopy__(self, memo: dict[int, Any]) -> Scattered:
        """A copy of the parts, in each of the ranks, which make this call together."""
        if id(self) in memo:
            found: Scattered = memo[id(self)]
            return found
        made: Scattered = scattered(self.full_tensor(), self.parts.group, self.parts.needs_grad)
        memo[id(self)] = made
        return made

    def __repr__(self) -> str:  # type: ignore[override]  # that of Tensor takes the contents
        return f"Scattered{tuple(self.shape)}"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """What others look for memory that is shared in."""
        return ["mark"], None

    @staticmethod
    def __tensor_unflatten__(*_: Any) -> Tensor:
        raise NotImplementedError("a tensor in parts is made by `scattered`")

    @property
    def mark(self) -> Tensor:
        """The same of all tensors on these parts."""
        return self.parts.mark

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # which is told as if it had no class
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _TURNS:
            (tensor, *more) = args
            return Scattered(tensor.parts, (*tensor.turns, partial(_turned, func, tuple(more))))
        if func._schema.is_mutable and isinstance(args[0], Scattered):
            raise RuntimeError(f"{func} writes to a parameter of which each rank has a part")
        leaves, tree = pytree.tree_flatten((args, kwargs or {}))
        own = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Scattered)}
        whole = {k: tensor.full_tensor() for k, tensor in own.items()}
        given, named = pytree.tree_unflatten([whole.get(id(leaf), leaf) for leaf in leaves], tree)
        return func(*given, **named)


_ATEN = torch.ops.aten
_TURNS = frozenset(
    [_ATEN.detach.default, _ATEN.alias.default, _ATEN.t.default, _ATEN.transpose.int,
     _ATEN.permute.default]
)  # fmt: skip
"""Views that autograd keeps in the place of a weight: they are made of it again."""


def _turned(func: Any, more: tuple[Any, ...], values: Tensor) -> Tensor:
    turned: Tensor = func(values, *more)
    return turned


register_tensor(Scattered, lambda tensor: tensor.full_tensor())


def bytes_here(tensor: Tensor) -> int:
    """That a rank holds of it, at the most: on all ranks the same."""
    size = tensor.numel() * tensor.element_size()
    return math.ceil(size / tensor.parts.group.size) if isinstance(tensor, Scattered) else size


def scattered(values: Tensor, group: Group, needs_grad: bool) -> Any:
    """A parameter of these values, which all ranks have: each keeps a part. A call of all ranks."""
    return _parameter(Owned(group, values.detach()), needs_grad)


def _parameter(parts: Parts, needs_grad: bool) -> nn.Parameter:
    parts.needs_grad = needs_grad
    return nn.Parameter(Scattered(parts), requires_grad=needs_grad)


def of_given(tensor: Any, group: Group) -> nn.Parameter:
    """A parameter on the parts that the ranks hold of a DTensor. A call of all ranks."""
    return _parameter(Given(group, tensor), tensor.requires_grad)


def scatter(model: nn.Module, group: Group, besides: Collection[Tensor]) -> None:
    """Scatter the matrices of a model, in place, but for some. A call of all ranks."""
    kept = {id(t) for t in besides}
    known: dict[int, Any] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is None or id(p) in kept or is_lazy(p) or isinstance(p, Scattered):
                continue
            if p.ndim >= AXES:
                if id(p) not in known:
                    known[id(p)] = scattered(p, group, p.requires_grad)
                module._parameters[name] = known[id(p)]


def put_together(model: nn.Module) -> None:
    """Have a model hold, in place, whole parameters again. A call of all ranks."""
    known: dict[Parts, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if isinstance(p, Scattered):
                if p.parts not in known:
                    values = p.full_tensor().clone()
                    known[p.parts] = nn.Parameter(values, requires_grad=p.parts.needs_grad)
                module._parameters[name] = known[p.parts]
    if known:
        next(iter(known)).group.every(True)  # they are alive until nobody wants them any more
