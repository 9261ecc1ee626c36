"""How the library behaves where users see it, as text: a change shows as a diff.

Nothing in it depends on rounding, on the machine or on time: fits are told by what is refused and
by the names of what comes out, not by numbers.
"""

from __future__ import annotations

import json
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors, Grouped
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.stock import to_dense_layer, to_stock_layer
from tensorlrf.ops import (
    PathTable,
    Positions,
    conv_cost,
    embedding_cost,
    embedding_paths,
    floor_cost,
    path_cost,
    paths_of,
)
from tensorlrf.ops._profile import CPU, H200
from tensorlrf.ops.explain import explain
from tensorlrf.ops.forms.lowering import EMBEDDING
from tensorlrf.ops.fused import fuses
from tests.golden.command_line import command_line
from tests.golden.interface import public_names
from tests.golden.misuse import MISUSED
from tests.golden.misuse_of_models import MISUSED_MODELS
from tests.golden.models import methods, plain_plans, plan_of
from tests.golden.refusals import METHODS, refusals
from tests.golden.samples import (
    input_of,
    large_samples,
    large_tables,
    layers,
    of_factors,
    samples,
    tables,
)

PATHS = ("dense", "chain", "fold", "fold_depthwise", "fused")
ROWS = (1, 64)
EXPLAINED = (1, 64, 4096)
FEW = ("linear", "conv", "grouped", "embedding")
"""Kinds of layers that are trained and exported by torch: of others that takes long."""
VIEWS = ("view", "t", "transpose", "permute", "detach", "expand", "unsqueeze", "squeeze", "slice")
"""Operations that are no more than another look at the same numbers."""
SIZE = (2, 9, 8, 7)
"""Batch, and a length for each axis, of a convolution whose places are counted."""


def costs() -> str:
    """Every step that the cost model counts."""
    return _lines(_costs())


def _costs() -> Iterator[str]:
    for format, kind, factors in (*samples(), *large_samples()):
        for path in PATHS:
            for rows in ROWS if "large" in kind else ROWS[-1:]:
                cost = partial(path_cost, factors, path, rows)
                yield from _cost(f"{format}, {kind}, {path}, M = {rows}", cost)
        frozen = partial(path_cost, factors, "dense", ROWS[0], rebuild=False)
        yield from _cost(f"{format}, {kind}, dense and frozen, M = {ROWS[0]}", frozen)
        yield from _cost(
            f"{format}, {kind}, at least, M = {ROWS[0]}", partial(floor_cost, factors, ROWS[0])
        )
        if len(factors.shape) > 2:
            axes = len(factors.shape) - 2
            places = Positions.of(
                SIZE[: axes + 1],
                factors.shape[2:],
                (2, *[1] * (axes - 1)),
                1,
                (*[1] * (axes - 1), 2),
            )
            for path in PATHS:
                cost = partial(conv_cost, factors, path, places)
                yield from _cost(f"{format}, {kind}, {path}, at {tuple(places)}", cost)
    for format, factors in (*tables(), *large_tables()):
        for path in PATHS:
            for rows in ROWS:
                cost = partial(embedding_cost, factors, path, rows)
                yield from _cost(f"{format}, {_table_name(factors)}, {path}, M = {rows}", cost)


def _cost(name: str, cost_of: Callable[..., Any]) -> Iterator[str]:
    try:
        cost = cost_of()
    except ArgumentError:
        return  # this path is none of the format's
    yield name
    for step in cost.steps:
        more = f", padding {step.padding:.4g}" if step.padding != 1 else ""
        more += f", {step.programs} programs" if step.programs else ""
        yield f"    {step.kind}: {step.flops} FLOPs, {step.bytes} bytes{more}"


def path_tables() -> str:
    """Which path runs for how many rows, as planned for two devices; seconds of the paths and
    launches of the kernels, as planned."""
    return _lines(_path_tables())


def _path_tables() -> Iterator[str]:
    for format, kind, factors in (*samples(), *large_samples()):
        paths = paths_of(factors)
        yield f"{format}, {kind}: {', '.join(paths)}"
        with_kernel = (*paths, "fused") if _fuses(factors) else paths
        strides = (None, 2) if len(factors.shape) > 2 and "large" in kind else (None,)
        for name, profile, own in (("CPU", CPU, paths), ("H200", H200, with_kernel)):
            for rebuild in (True, False):
                for s in strides:
                    stride = s and (s,) * (len(factors.shape) - 2)
                    table = PathTable.from_cost(
                        factors, stride=stride, paths=own, rebuild=rebuild, profile=profile
                    )
                    more = f"{'' if rebuild else ', frozen'}{', in steps of 2' if s else ''}"
                    yield f"    {name}{more}: {table}"
    for format, factors in (*tables(), *large_tables()):
        yield f"{format}, {_table_name(factors)}: {', '.join(embedding_paths(factors))}"
        yield f"    CPU: {of_factors('embedding', factors).path_table}"
    for format, kind, factors in large_samples():
        if len(factors.shape) in (2, 4) and not isinstance(factors, Grouped):
            yield from _explained(f"{format}, {kind}", factors.to(torch.bfloat16))


def _explained(name: str, factors: Factors) -> Iterator[str]:
    try:
        told = str(explain(factors, EXPLAINED, device="H200"))
    except ArgumentError as error:
        told = f"{type(error).__name__}: {error}"
    yield f"{name}, explained"
    yield from (f"    {line}" for line in told.splitlines())


def _table_name(factors: Factors) -> str:
    return f"embedding of {factors.shape[0]} rows"


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
        if str(func).split(".")[1] not in VIEWS:
            shapes = [str(tuple(t.shape)) for t in _tensors(made)]
            self.lines.append(f"    {func} {' '.join(shapes)}".rstrip())
        return made


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for one in value for t in _tensors(one)] if isinstance(value, (tuple, list)) else []


def calls() -> str:
    """The operations of torch that a forward runs, but for views, and those that train it."""
    return _lines(_calls())


def _calls() -> Iterator[str]:
    for format, kind, layer in layers():
        x = input_of(kind, layer)
        own = layer.path_table
        for path in (*layer.paths, *(("fused",) if _has_kernel(kind, layer) else ())):
            layer._run_by(PathTable.single(path))  # as on a GPU; here the op is its reference
            with torch.no_grad(), _Calls() as seen:
                layer(x)
            yield f"{format}, {kind}, {path}"
            yield from seen.lines
        layer.path_table = own
        if kind in FEW:
            with _Calls() as seen:
                output = layer(x if kind == "embedding" else x.requires_grad_())
                output.sum().backward()
            counts = Counter(line.split()[0] for line in seen.lines)
            yield f"{format}, {kind}, trained, on {own}"
            yield from (f"    {n} {name}" for name, n in sorted(counts.items()))


def _has_kernel(kind: str, layer: FactoredLayer) -> bool:
    """Whether a GPU would have one for that layer."""
    if kind == "embedding":
        return fuses(layer.factors, EMBEDDING)
    return "fused" not in layer.paths and _fuses(layer.factors)


def layer_reprs() -> str:
    """What factors and layers print."""
    return _lines(_reprs())


def _reprs() -> Iterator[str]:
    for format, kind, layer in layers():
        yield f"{format}, {kind}: {layer.factors!r}"
        yield f"    {layer!r}"
        yield f"    {', '.join(layer.state_dict())}; stands for {layer.stands_for}"


def exports() -> str:
    """The layers of torch that stand in for ours."""
    return _lines(_exports())


def _exports() -> Iterator[str]:
    for format, kind, layer in layers():
        for path in layer.paths:
            yield f"{format}, {kind}, {path}"
            yield from _described(to_stock_layer(layer, path))
        dense = list(_described(to_dense_layer(layer)))
        if dense != list(_described(to_stock_layer(layer, "dense"))):
            yield f"{format}, {kind}, made dense"
            yield from dense


def programs() -> str:
    """The operations of what torch.export makes of a layer, on its own path."""
    return _lines(_programs())


def _programs() -> Iterator[str]:
    for format, kind, layer in layers():
        if kind not in FEW:
            continue
        yield f"{format}, {kind}, on {layer.path_table}"
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
    for node in graph.nodes:
        if node.op == "call_function":
            made = node.meta.get("val")
            shapes = [str(tuple(t.shape)) for t in _tensors(made)]
            yield f"    {node.target} {' '.join(shapes)}".rstrip()


def plans() -> str:
    """Plans of every method, with every option and with none, as JSON and as tables."""
    parts = []
    plans = {**{word: plan_of(method) for word, method in methods().items()}, **plain_plans()}
    for name, made in plans.items():
        parts += [name, textwrap.indent(_compact(made.to_json()), "    ")]
    return _lines([*parts, "as text", made.to_json(), "as tables", *map(str, plans.values())])


def _compact(text: str) -> str:
    """JSON with a line for each layer."""
    values = json.loads(text)
    rows = values.pop("layers")
    return "\n".join(map(json.dumps, (values, *rows)))


def errors(word: str) -> str:
    """What a decomposition says of input that cannot be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _lines(refusals(word))


def misuses(name: str) -> str:
    """What the functions of one area say of arguments that cannot be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _lines((MISUSED | MISUSED_MODELS)[name]())


def interface() -> str:
    """Public names, their signatures, and the methods and fields of public classes."""
    return _lines(public_names())


def commands() -> str:
    """What the program prints; numbers of fits and times are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _lines(command_line())


TEXTS: dict[str, Callable[[], str]] = {
    "costs": costs,
    "path_tables": path_tables,
    "calls": calls,
    "reprs": layer_reprs,
    "exports": exports,
    "programs": programs,
    "plans": plans,
    **{f"errors/{word}": partial(errors, word) for word in METHODS},
    **{f"errors/{name}": partial(misuses, name) for name in (MISUSED | MISUSED_MODELS)},
    "commands": commands,
    "interface": interface,
}
"""A name -> what makes the text that is kept under it."""


def render(name: str) -> str:
    """That text, by the cost model of one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return TEXTS[name]()
    finally:
        torch.set_num_threads(before)


def _lines(lines: Any) -> str:
    return "\n".join(re.sub(r"[ \t]+$", "", line, flags=re.M) for line in lines) + "\n"
