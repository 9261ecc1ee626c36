"""How the library behaves where users see it, as text: a change shows as a diff.

Nothing in it depends on rounding, on the machine or on time: fits are told by what is refused and
by the names of what comes out, not by numbers.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn._stock import to_stock_layer
from tensorlrf.ops import PathTable, embedding_cost, embedding_paths, path_cost, paths_of
from tensorlrf.ops._profile import CPU, H200
from tests.golden.command_line import command_line
from tests.golden.refusals import METHODS, refusals
from tests.golden.samples import (
    input_of,
    large_samples,
    layers,
    methods,
    plan_of,
    samples,
    tables,
)

PATHS = ("dense", "chain", "fold", "fold_depthwise", "fused")
ROWS = (1, 64)
EXPORTED = ("lowrank", "cp", "kron")
"""Formats whose layers are exported by torch as well."""


def costs() -> str:
    """Every step that the cost model counts."""
    return _lines(_costs())


def _costs() -> Iterator[str]:
    for format, kind, factors in (*samples(), *large_samples()):
        for path in PATHS:
            for rows in ROWS:
                yield from _cost(f"{format}, {kind}", path, rows, path_cost, factors)
    for format, factors in tables():
        for path in PATHS:
            for rows in ROWS:
                yield from _cost(f"{format}, embedding", path, rows, embedding_cost, factors)


def _cost(
    name: str, path: str, rows: int, cost_of: Callable[..., Any], factors: Factors
) -> Iterator[str]:
    try:
        cost = cost_of(factors, path, rows)
    except ArgumentError:
        return  # this path is none of the format's
    yield f"{name}, {path}, M = {rows}"
    for step in cost.steps:
        more = f", padding {step.padding:.4g}" if step.padding != 1 else ""
        more += f", {step.programs} programs" if step.programs else ""
        yield f"    {step.kind}: {step.flops} FLOPs, {step.bytes} bytes{more}"


def path_tables() -> str:
    """Which path runs for how many rows, as planned for two devices."""
    return _lines(_path_tables())


def _path_tables() -> Iterator[str]:
    for format, kind, factors in (*samples(), *large_samples()):
        paths = paths_of(factors)
        yield f"{format}, {kind}: {', '.join(paths)}"
        with_kernel = (*paths, "fused") if _fuses(factors) else paths
        for name, profile, own in (("CPU", CPU, paths), ("H200", H200, with_kernel)):
            for rebuild in (True, False):
                table = PathTable.from_cost(factors, paths=own, rebuild=rebuild, profile=profile)
                yield f"    {name}{'' if rebuild else ', frozen'}: {table}"
    for format, factors in tables():
        yield f"{format}, embedding: {', '.join(embedding_paths(factors))}"


def _fuses(factors: Factors) -> bool:
    try:
        path_cost(factors, "fused", 1)
    except ArgumentError:
        return False
    return True


class _Calls(TorchDispatchMode):
    """The operations that run, with the shapes that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        shapes = [str(tuple(t.shape)) for t in _tensors(made)]
        self.lines.append(f"    {func} {' '.join(shapes)}".rstrip())
        return made


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for one in value for t in _tensors(one)] if isinstance(value, (tuple, list)) else []


def calls() -> str:
    """The operations of torch that a forward runs."""
    return _lines(_calls())


def _calls() -> Iterator[str]:
    for format, kind, layer in layers():
        x = input_of(kind, layer)
        for path in layer.paths:
            layer.path_table = PathTable.single(path)
            with torch.no_grad(), _Calls() as seen:
                layer(x)
            yield f"{format}, {kind}, {path}"
            yield from seen.lines


def exports() -> str:
    """The layers of torch that stand in for ours."""
    return _lines(_exports())


def _exports() -> Iterator[str]:
    for format, kind, layer in layers():
        for path in layer.paths:
            yield f"{format}, {kind}, {path}"
            yield from _described(to_stock_layer(layer, path))


def programs() -> str:
    """The operations of what torch.export makes of a layer."""
    return _lines(_programs())


def _programs() -> Iterator[str]:
    for format, kind, layer in layers():
        if format in EXPORTED and kind in ("linear", "conv"):
            yield f"{format}, {kind}"
            yield from _program(layer, input_of(kind, layer))


def _described(module: nn.Module) -> Iterator[str]:
    for name, part in module.named_modules():
        if isinstance(part, torch.fx.GraphModule):
            yield f"    {name or '.'}: a graph"
            yield from (f"        {line}" for line in part.code.strip().splitlines())
        elif not isinstance(part, nn.Sequential):
            yield f"    {name or '.'}: {part!r}".replace("\n", " ")
        for own, tensor in part.named_parameters(recurse=False):
            yield f"        {own} {tuple(tensor.shape)}"


def _program(layer: FactoredLayer, x: Tensor) -> Iterator[str]:
    graph = torch.export.export(layer, (x,)).graph
    yield from (f"    {node.target}" for node in graph.nodes if node.op == "call_function")


def plans() -> str:
    """A plan of every method with every option, as JSON, and one as a table."""
    parts = []
    for word, method in methods().items():
        made = plan_of(method)
        parts += [word, made.to_json()]
    return _lines([*parts, str(made)])


def errors(word: str) -> str:
    """What a decomposition says of input that cannot be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _lines(refusals(word))


def commands() -> str:
    """What the program prints; numbers of fits and times are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _lines(command_line())


TEXTS: dict[str, Callable[[], str]] = {
    "costs": costs,
    "path_tables": path_tables,
    "calls": calls,
    "exports": exports,
    "programs": programs,
    "plans": plans,
    **{f"errors/{word}": partial(errors, word) for word in METHODS},
    "commands": commands,
}
"""A name -> what makes the text that is kept under it."""


def _lines(lines: Any) -> str:
    return "\n".join(re.sub(r"[ \t]+$", "", line, flags=re.M) for line in lines) + "\n"
