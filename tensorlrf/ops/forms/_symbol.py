"""Tensors that are not there yet: their sizes are known, and what is made of them is written down.

A form is ordinary code on the tensors of its format. On symbols it leaves a record: of it the sizes
of every weight are read, the products of factors alone are counted, and straight code is written.
"""

from __future__ import annotations

import itertools
import linecache
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.proxy import GraphAppendingTracer
from torch.utils._python_dispatch import _disable_current_modes

MERGE, PRODUCT = (torch.mul, "mul"), (torch.matmul, "matmul")
_SAME_ORDER = ("flatten", "reshape", "unflatten")
_numbers = itertools.count()


class Symbol(fx.Proxy):
    """A tensor by its name, or what torch makes of such."""

    @property
    def sizes(self) -> Tensor:
        """A tensor of these sizes that has no numbers."""
        value: Tensor = self.node.meta["sizes"]
        return value

    @property
    def shape(self) -> torch.Size:
        return self.sizes.shape

    @property
    def ndim(self) -> int:
        return self.sizes.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.sizes.dtype

    @property
    def device(self) -> torch.device:
        return self.sizes.device

    @property
    def T(self) -> Any:
        return self.tracer.create_proxy("call_function", getattr, (self, "T"), {})

    @property
    def mT(self) -> Any:
        return self.tracer.create_proxy("call_function", getattr, (self, "mT"), {})

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self) -> None:
        """Wanted now: what is but a view is taken here."""
        record: Any = self.tracer
        record.place(self.node)


class Work(NamedTuple):
    """What is multiplied to make a weight: an elementwise product of `elements`, or a matrix
    product of `multiply_adds` that reads and writes `elements`."""

    multiply_adds: int
    elements: int


class Record(GraphAppendingTracer):
    """What is made of symbols, in order."""

    def __init__(self) -> None:
        super().__init__(fx.Graph())

    def symbol(self, name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> Any:
        """A tensor by that name."""
        node = self.graph.placeholder(name.replace(".", "_"))
        node.meta["sizes"] = torch.empty(sizes, dtype=dtype, device="meta")
        return Symbol(node, self)

    def unsized(self, name: str) -> Any:
        """An argument of which nothing is known."""
        return fx.Proxy(self.graph.placeholder(name), self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **others: Any
    ) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **others)
        node = proxy.node
        sizes = _sizes_of(node)
        if sizes is None:
            return proxy
        node.meta["sizes"] = sizes
        if kind == "call_method" and target in _SAME_ORDER:
            # A tensor that is kept in one shape, passed in another and asked for in the first.
            base: Any = node.args[0]
            first: fx.Node = base.meta.get("flat", base)
            if first.meta["sizes"].shape == sizes.shape:
                self.graph.erase_node(node)
                return Symbol(first, self)
            node.meta["flat"] = first
        return Symbol(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Of what is known there are so many parts as it has."""
        known = "sizes" in obj.node.meta
        own: Any = obj
        return iter([own[k] for k in range(len(own))]) if known else super().iter(obj)

    # ---- what is read of it -----------------------------------------------------------------

    def work(self, weights: Iterable[Symbol]) -> Iterator[Work]:
        """The products of factors alone that these weights are made by. One that becomes part of
        another elementwise product is not counted beside it."""
        wanted = _behind(weights)
        made = [node for node in self.graph.nodes if node in wanted]
        merged = {one for node in made if _is(node, MERGE) for one in _seen_through(node)}
        for node in made:
            if _is(node, MERGE) and node not in merged:
                yield Work(0, node.meta["sizes"].numel())
            elif _is(node, PRODUCT):
                a, b = (_sizes(arg) for arg in node.args)
                size = node.meta["sizes"].numel()
                yield Work(size * a.shape[-1], a.numel() + b.numel() + size)

    def keep(self, weights: Iterable[Symbol]) -> None:
        """Forget what is no part of these weights."""
        wanted = _behind(weights)
        for node in reversed(self.graph.nodes):
            if node.op != "placeholder" and node not in wanted:
                self.graph.erase_node(node)

    def place(self, node: fx.Node) -> None:
        """The views, on products or on what is there, that make up this node are taken from here
        on: each just before the stage that wants it."""
        views: list[fx.Node] = []
        while not _is_made(node) and "placed" not in node.meta:
            node.meta["placed"] = True
            views.append(node)
            node = node.all_input_nodes[0]
        for view in reversed(views):
            last = next(iter(reversed(self.graph.nodes)))
            if last is not view:
                last.append(view)

    def code(self, result: Any) -> Callable[..., Any]:
        """A function of the symbols that makes `result`: one call of torch a line."""
        self.graph.output(result.node)
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)
        written = self.graph.python_code("self")
        source = written.src.replace("def forward(self, ", "def lowered(")
        file = f"<lowered_{next(_numbers)}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        names = dict(written.globals)
        exec(compile(source, file, "exec"), names)
        found: Callable[..., Any] = names["lowered"]
        weakref.finalize(found, linecache.cache.pop, file, None).atexit = False
        return found


def apart() -> AbstractContextManager[None]:
    """Nothing that is recorded within is seen by whoever counts, fakes or traces what torch runs
    now: a record is made once, on whichever call comes first."""
    return _disable_current_modes()


def leaf(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which a record shows as one call: it looks at what only a real tensor has."""

    def call(*args: Any, **kwargs: Any) -> Any:
        for arg in (*args, *kwargs.values()):
            if isinstance(arg, fx.Proxy) and isinstance(arg.tracer, Record):
                return arg.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return call


def _sizes(arg: Any) -> Any:
    return fx.node.map_arg(arg, lambda node: node.meta["sizes"])


def _sizes_of(node: fx.Node) -> Any:
    """Of what the node makes; None where an input has none."""
    if node.op not in ("call_function", "call_method"):
        return None
    if not all("sizes" in n.meta for n in node.all_input_nodes):
        return None
    args, kwargs = _sizes(node.args), _sizes(node.kwargs)
    shape = _shape_of(node, args, kwargs)
    if shape is not None:
        return torch.empty(shape, dtype=_sizes(node.all_input_nodes[0]).dtype, device="meta")
    if isinstance(node.target, str):
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def _shape_of(node: fx.Node, args: Any, kwargs: Any) -> list[int] | None:
    """Where torch finds the sizes of meta tensors in Python, and imports its compiler for that."""
    if _is(node, MERGE):
        shapes = [t.shape for t in args if isinstance(t, Tensor)]
        return list(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    if node.target is torch.cat:
        tensors, *dim = args
        k = dim[0] if dim else kwargs.get("dim", 0)
        shape = list(tensors[0].shape)
        shape[k] = sum(t.shape[k] for t in tensors)
        return shape
    return None


def _is(node: fx.Node, kind: tuple[Any, str]) -> bool:
    function, name = kind
    return node.target in (function, name) or getattr(node.target, "__name__", "") == name


def _is_made(node: fx.Node) -> bool:
    """It is there, or is made ahead: a product, or a part of one."""
    if node.op == "placeholder" or len(node.all_input_nodes) != 1 or _is_product(node):
        return True
    return any(_is_product(user) for user in node.users)


def _is_product(node: fx.Node) -> bool:
    return _is(node, MERGE) or _is(node, PRODUCT)


def _behind(weights: Iterable[Symbol]) -> set[fx.Node]:
    """What the weights are made of."""
    found: set[fx.Node] = set()
    waiting = [weight.node for weight in weights]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _seen_through(node: fx.Node) -> set[fx.Node]:
    """The elementwise products that are its operands, or views of which are."""
    found: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        one = waiting.pop()
        if _is(one, MERGE):
            found.add(one)
        elif not _is(one, PRODUCT):
            waiting += one.all_input_nodes
    return found
