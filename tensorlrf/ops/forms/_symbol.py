"""Tensors that are not there yet: their sizes are known, and what is made of them is written down.

A form is ordinary code on the tensors of its format. On symbols it leaves a record: of it the sizes
of every weight are read, the products of factors alone are counted, and straight code is written.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from tensorlrf.errors import UnsupportedError
from tensorlrf.ops.forms._source import Source, name_of

MERGE, PRODUCT = "mul", "matmul"
_SAME_ORDER = ("flatten", "reshape", "unflatten")


class Symbol:
    """A tensor by its name, or what torch makes of such.

    function  what makes it, a method by its name; None where it is an argument
    args      of the function; of an argument its name
    operands  the symbols among these, each once
    users     the symbols that it is an operand of
    sizes     a tensor of these sizes that has no numbers; None where nothing is known of it
    flat      the symbol of the same numbers in the same order that it is a shape of
    placed    whether it is a view that has its place
    """

    __slots__ = (
        "args",
        "flat",
        "function",
        "kwargs",
        "operands",
        "placed",
        "record",
        "sizes",
        "users",
    )

    def __init__(
        self,
        record: Record,
        function: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        operands: Sequence[Symbol],
        sizes: Any,
    ) -> None:
        self.record, self.function, self.args, self.kwargs = record, function, args, kwargs
        self.operands, self.sizes = operands, sizes
        self.users: list[Symbol] = []
        self.flat, self.placed = self, False

    @property
    def shape(self) -> Any:
        return self._of_sizes("shape")

    @property
    def ndim(self) -> Any:
        return self._of_sizes("ndim")

    @property
    def dtype(self) -> Any:
        return self._of_sizes("dtype")

    @property
    def device(self) -> Any:
        return self._of_sizes("device")

    def _of_sizes(self, name: str) -> Any:
        known = self.sizes is not None
        return getattr(self.sizes, name) if known else self.record.made(getattr, (self, name))

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(Tensor, name)):
            return partial(self._call, name)
        return self.record.made(getattr, (self, name))

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Symbol:
        return self.record.made(name, (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Symbol:
        kwargs = kwargs or {}
        first, *_ = _symbols((*args, *kwargs.values()))
        return first.record.made(function, args, kwargs)

    def __getitem__(self, index: Any) -> Symbol:
        return self.record.made(operator.getitem, (self, index))

    def __neg__(self) -> Symbol:
        return self.record.made(operator.neg, (self,))

    def __len__(self) -> int:
        if self.sizes is None:
            raise UnsupportedError("a form looks at the sizes of its weights, never at those of x")
        return len(self.sizes)

    def __iter__(self) -> Iterator[Symbol]:
        return iter([self[k] for k in range(len(self))])

    def __bool__(self) -> bool:
        raise UnsupportedError("a form looks at sizes alone: it decides nothing by numbers")

    def take(self) -> None:
        """Wanted now: what is but a view is taken here."""
        self.record.place(self)


def _operator(function: Callable[..., Any]) -> tuple[Any, Any]:
    """How a symbol is the first and the second operand of it."""

    def first(self: Symbol, other: Any) -> Symbol:
        return self.record.made(function, (self, other))

    def second(self: Symbol, other: Any) -> Symbol:
        return self.record.made(function, (other, self))

    return first, second


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    _first, _second = _operator(getattr(operator, _name))
    setattr(Symbol, f"__{_name}__", _first)
    setattr(Symbol, f"__r{_name}__", _second)


class Work(NamedTuple):
    """What is multiplied to make a weight: an elementwise product of `elements`, or a matrix
    product of `multiply_adds` that reads and writes `elements`."""

    multiply_adds: int
    elements: int


class Record:
    """What is made of symbols, in order.

    arguments  the symbols that it is made of
    calls      the others
    """

    def __init__(self) -> None:
        self.arguments: list[Symbol] = []
        self.calls: list[Symbol] = []

    def symbol(self, name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> Any:
        """A tensor by that name."""
        return self._argument(name, torch.empty(sizes, dtype=dtype, device="meta"))

    def unsized(self, name: str) -> Any:
        """An argument of which nothing is known."""
        return self._argument(name, None)

    def _argument(self, name: str, sizes: Any) -> Symbol:
        found = Symbol(self, None, (name,), {}, (), sizes)
        self.arguments.append(found)
        return found

    def made(self, function: Any, args: tuple[Any, ...], kwargs: Any = None) -> Symbol:
        """What the function makes of these."""
        kwargs = kwargs or {}
        operands = list(dict.fromkeys(_symbols((*args, *kwargs.values()))))
        known = all(one.sizes is not None for one in operands)
        sizes = _sizes_of(function, args, kwargs) if known else None
        made = Symbol(self, function, args, kwargs, operands, sizes)
        if known and function in _SAME_ORDER:
            # A tensor that is kept in one shape, passed in another and asked for in the first.
            made.flat = args[0].flat
            if made.flat.shape == made.shape:
                return made.flat
        for one in operands:
            one.users.append(made)
        self.calls.append(made)
        return made

    # ---- what is read of it -----------------------------------------------------------------

    def work(self, weights: Iterable[Symbol]) -> Iterator[Work]:
        """The products of factors alone that these weights are made by. One that becomes part of
        another elementwise product is not counted beside it."""
        wanted = _behind(weights)
        made = [one for one in self.calls if one in wanted]
        merged = {part for one in made if _is(one, MERGE) for part in _seen_through(one)}
        for one in made:
            if _is(one, MERGE) and one not in merged:
                yield Work(0, one.sizes.numel())
            elif _is(one, PRODUCT):
                a, b = _in_sizes(one.args)
                size = one.sizes.numel()
                yield Work(size * a.shape[-1], a.numel() + b.numel() + size)

    def keep(self, weights: Iterable[Symbol]) -> None:
        """Forget what is no part of these weights."""
        wanted = _behind(weights)
        self.calls = [one for one in self.calls if one in wanted]
        for one in (*self.arguments, *self.calls):
            one.users = [user for user in one.users if user in wanted]

    def place(self, one: Symbol) -> None:
        """The views, on products or on what is there, that make up this one are taken from here
        on: each just before the stage that wants it."""
        views: list[Symbol] = []
        while not _is_made(one) and not one.placed:
            one.placed = True
            views.append(one)
            (one,) = one.operands
        for view in reversed(views):
            self.calls.remove(view)
            self.calls.append(view)

    def code(self, result: Any) -> Callable[..., Any]:
        """A function of the arguments that makes `result`: one call of torch a line."""
        wanted = _behind([result])
        calls = [one for one in self.calls if one in wanted]
        last = {part: one for one in calls for part in one.operands if part.function is not None}
        source = Source((one, one.args[0]) for one in self.arguments)
        for one in calls:
            gone = [part for part in one.operands if last.get(part) is one]
            source.call(one, one.function, one.args, one.kwargs, gone)
        return source.function(result)


def apart() -> AbstractContextManager[None]:
    """Nothing that is recorded within is seen by whoever counts, fakes or traces what torch runs
    now: a record is made once, on whichever call comes first."""
    return _disable_current_modes()


def leaf(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which a record shows as one call: it looks at what only a real tensor has."""

    def call(*args: Any, **kwargs: Any) -> Any:
        for arg in (*args, *kwargs.values()):
            if isinstance(arg, Symbol):
                return arg.record.made(function, args, kwargs)
        return function(*args, **kwargs)

    return call


def _symbols(values: Iterable[Any]) -> list[Symbol]:
    """Those among the values, and within lists of them."""
    found: list[Symbol] = []
    for one in values:
        if isinstance(one, Symbol):
            found.append(one)
        elif isinstance(one, (tuple, list)):
            found += _symbols(one)
    return found


def _in_sizes(value: Any) -> Any:
    """The sizes in place of the symbols."""
    if isinstance(value, Symbol):
        return value.sizes
    if type(value) in (tuple, list):
        return type(value)([_in_sizes(one) for one in value])
    return value


def _sizes_of(function: Any, args: Any, kwargs: Any) -> Any:
    """Of what the function makes."""
    args, kwargs = _in_sizes(args), {name: _in_sizes(one) for name, one in kwargs.items()}
    if isinstance(function, str):
        return getattr(args[0], function)(*args[1:], **kwargs)
    name = name_of(function)
    # Here torch finds the sizes of meta tensors in Python, and imports its compiler for that.
    if name == MERGE:
        first, *_ = tensors = [t for t in args if isinstance(t, Tensor)]
        return torch.empty(_broadcast([t.shape for t in tensors]), dtype=first.dtype, device="meta")
    if name == PRODUCT and args[0].ndim > 1 and args[1].ndim > 1:
        a, b = args
        shape = [*_broadcast([a.shape[:-2], b.shape[:-2]]), a.shape[-2], b.shape[-1]]
        return torch.empty(shape, dtype=a.dtype, device="meta")
    if name == "cat":
        tensors, *dim = args
        k = dim[0] if dim else kwargs.get("dim", 0)
        shape = list(tensors[0].shape)
        shape[k] = sum(t.shape[k] for t in tensors)
        return torch.empty(shape, dtype=tensors[0].dtype, device="meta")
    return function(*args, **kwargs)


def _broadcast(shapes: Sequence[Sequence[int]]) -> list[int]:
    most = max(map(len, shapes), default=0)
    aligned = [(*(1,) * (most - len(shape)), *shape) for shape in shapes]
    return [next((n for n in sizes if n != 1), 1) for sizes in zip(*aligned, strict=True)]


def _is(one: Symbol, kind: str) -> bool:
    return one.function is not None and name_of(one.function) == kind


def _is_product(one: Symbol) -> bool:
    return one.function is not None and name_of(one.function) in (MERGE, PRODUCT)


def _is_made(one: Symbol) -> bool:
    """It is there, or is made ahead: a product, or a part of one."""
    if len(one.operands) != 1 or _is_product(one):
        return True
    return any(map(_is_product, one.users))


def _behind(weights: Iterable[Symbol]) -> set[Symbol]:
    """What the weights are made of."""
    found: set[Symbol] = set()
    waiting = list(weights)
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += one.operands
    return found


def _seen_through(one: Symbol) -> set[Symbol]:
    """The elementwise products that are its operands, or views of which are."""
    found: set[Symbol] = set()
    waiting = list(one.operands)
    while waiting:
        part = waiting.pop()
        if _is(part, MERGE):
            found.add(part)
        elif not _is(part, PRODUCT):
            waiting += part.operands
    return found
