"""From what a form tells to straight code: once for every structure, and kept.

A structure is a format, what its tensors do not say, and their sizes. Its stages are run once on
symbols; what they record is written as a function of the tensors, one call of torch a line.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tensorlrf.factors import Factors
from tensorlrf.factors.kinds import found_of
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._form import form_of
from tensorlrf.ops.forms._kernel import Kernel
from tensorlrf.ops.forms._structure import of_structure, plain, structure_of
from tensorlrf.ops.forms._symbol import Record, Work, apart
from tensorlrf.ops.forms.shared._slide import Conv, lying_as
from tensorlrf.ops.forms.stages import Paths, Stages, count, run, weights
from tensorlrf.ops.geometry import Geometry, Sliding, TransposedGeometry

MOST_KEPT = 1024
"""Structures, of which the first to come is the first to go."""

T = TypeVar("T")
Sizes = tuple[int, ...]
Code = Callable[..., Tensor]


class Layer(NamedTuple):
    """What kind of layer runs on the factors.

    kind         "linear", "conv", "conv_transpose" or "embedding"
    geometry     of a convolution
    padding_idx  of an embedding
    """

    kind: str
    geometry: Sliding | None = None
    padding_idx: int | None = None

    @classmethod
    def sliding(cls, geometry: Sliding) -> Layer:
        """The convolution of either kind with that geometry."""
        return cls("conv_transpose" if geometry.transposed else "conv", geometry)

    def paths(self, factors: Any) -> Paths:
        """What the form of these factors, or symbols in their place, tells of such a layer."""
        form = form_of(factors)
        if self.kind == "linear":
            return form.linear(factors)
        if self.kind == "embedding":
            return form.embedding(factors, self.padding_idx)
        return form.conv(factors, self.conv(factors))

    def is_in_form(self, factors: Any) -> bool:
        """Whether the form of these factors has such a layer."""
        return form_of(factors).has("conv" if self.slides else self.kind)

    @property
    def slides(self) -> bool:
        """It is a convolution, of either kind."""
        return self.kind in ("conv", "conv_transpose")

    def conv(self, factors: Any) -> Conv:
        """The convolution by these factors."""
        shape, groups = tuple(factors.shape), form_of(factors).groups(factors)
        if self.geometry is None:
            return Conv.resting(shape, groups, transposed=self.kind == "conv_transpose")
        return Conv(shape, groups, self.geometry)

    def run(self, stages: Stages, axes: int, x: Tensor, bias: Tensor | None) -> Tensor:
        """x on its way through the stages."""
        y = run(stages, x, bias, axes)
        if self.slides and not stages[-1].keeps_layout:
            y = lying_as(y, x)
        return y


LINEAR = Layer("linear")
CONV = Layer("conv")
CONV_TRANSPOSE = Layer("conv_transpose")
EMBEDDING = Layer("embedding")


def axes_of(factors: Factors) -> int:
    """Axes that a convolution on the factors slides along; 0 for other layers."""
    return max(0, len(factors.shape) - 2)


# ---- paths of symbols ---------------------------------------------------------------------------


@dataclass(frozen=True)
class SymbolicPaths:
    """The paths of a layer on one structure, their weights symbols.

    work  path -> the products of factors alone that its weights are made by
    """

    paths: Paths
    work: Mapping[str, tuple[Work, ...]]

    def count(self, path: str, counter: Counter) -> None:
        """Count all that a path does."""
        stages = self.paths[path]
        if not all(stage.serves(counter.places[-1], counter.dtype) for stage in stages):
            stages, path = self.paths["chain"], "chain"
        for work in self.work[path]:
            counter.work(*work)
        count(stages, counter)

    @property
    def kernel(self) -> Kernel | None:
        """The op of the path "fused", where there is one."""
        found = [s for s in self.paths.get("fused", ()) if isinstance(s, Kernel)]
        return found[0] if found else None


_PATHS: dict[Hashable, Any] = {}
_CODE: dict[Hashable, Lowered] = {}


def symbolic_paths(layer: Layer, factors: Factors) -> SymbolicPaths:
    """What the form of these factors tells of the layer."""

    def told(record: Record) -> SymbolicPaths:
        paths = layer.paths(symbols_of(factors, record))
        work = {path: tuple(record.work(weights(stages))) for path, stages in paths.items()}
        return SymbolicPaths(paths, work)

    return _once(layer, factors, told)


def dense_work(factors: Factors) -> tuple[Work, ...]:
    """The products that the dense weight is made by."""

    def made(record: Record) -> tuple[Work, ...]:
        return tuple(record.work([symbols_of(factors, record)._dense()]))

    return _once("dense", factors, made)


def _once(what: Hashable, factors: Factors, recorded: Callable[[Record], T]) -> T:
    """What is recorded of a structure, kept for all factors of it, and beside these."""
    beside = found_of(factors)
    found: T | None = beside.get(what)
    if found is None:
        key = what, *structure_of(factors)
        found = _PATHS.get(key)
        if found is None:
            with apart():
                found = _keep(_PATHS, key, recorded(Record()))
        beside[what] = found
    return found


def symbols_of(factors: Factors, record: Record, kept: Mapping[str, Sizes] | None = None) -> Any:
    """Factors of the same structure whose tensors are symbols; those that are `kept` in another
    shape by the layer, in that one."""
    kept, tensors = kept or {}, factors.tensors()
    given: dict[str, Any] = {}
    for name, tensor in tensors.items():
        sizes = kept.get(name, tuple(tensor.shape))
        given[name] = record.symbol(name, sizes, tensor.dtype)
    for name in kept:
        given[name] = given[name].reshape(tuple(tensors[name].shape))
    return type(factors)._assemble(given, factors._context())


def _keep(kept: dict[Hashable, Any], key: Hashable, value: Any) -> Any:
    if len(kept) >= MOST_KEPT:
        kept.pop(next(iter(kept)), None)
    kept[key] = value
    return value


# ---- lowered ------------------------------------------------------------------------------------


class Lowered:
    """Straight code for a path: run(x, *tensors, bias)."""

    def __init__(self, run: Code, recipe: tuple[Any, ...]) -> None:
        self.run, self.recipe = run, recipe
        self.name = run.__code__.co_filename.strip("<>")

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, self.recipe

    def __deepcopy__(self, _: Any) -> Lowered:
        return self


def lowered(
    layer: Layer, path: str, factors: Factors, kept: Mapping[str, Sizes] | None = None
) -> Lowered:
    """The code of a path on factors of this structure, some tensors `kept` in other shapes."""
    key = layer, path, tuple((kept or {}).items()), *structure_of(factors)
    found = _CODE.get(key)
    if found is None:
        with apart():
            record = Record()
            x, f = record.unsized("x"), symbols_of(factors, record, kept)
            bias = record.unsized("bias")
            stages = layer.paths(f)[path]
            record.keep(weights(stages))
            code = record.code(layer.run(stages, axes_of(factors), x, bias))
        sizes = {name: (tuple(t.shape), t.dtype) for name, t in factors.tensors().items()}
        recipe = layer, path, type(factors), factors._context(), sizes, dict(kept or {})
        found = _keep(_CODE, key, Lowered(code, recipe))
    return found


def _again(
    layer: Layer,
    path: str,
    format: type[Factors],
    context: dict[str, Any],
    sizes: dict[str, tuple[Sizes, torch.dtype]],
    kept: dict[str, Sizes],
) -> Lowered:
    """From a pickle."""
    tensors = {
        name: torch.empty(n, dtype=dtype, device="meta") for name, (n, dtype) in sizes.items()
    }
    return lowered(layer, path, format._assemble(tensors, context), kept)


def run_path(layer: Layer, path: str, factors: Factors, x: Tensor, bias: Tensor | None) -> Tensor:
    """x by a path on the factors."""
    if torch.compiler.is_compiling():
        code: Code = getattr(_NAMED, _name(factors, plain(layer), path))
        return code(x, *factors.tensors().values(), bias)
    beside, key = found_of(factors), (layer, path)
    found: tuple[Code, tuple[Tensor, ...]] | None = beside.get(key)
    if found is None:
        run, tensors = lowered(layer, path, factors).run, tuple(factors.tensors().values())
        found = beside[key] = run, tensors
    run, tensors = found
    return run(x, *tensors, bias)


@of_structure
def _name(factors: Factors, layer: list[Any], path: str) -> str:
    """Under which torch.compile finds the code."""
    kind, geometry, padding_idx = layer
    make: Any = TransposedGeometry if kind == "conv_transpose" else Geometry
    slides = None if geometry is None else make(*map(tuple, geometry))
    code = lowered(Layer(kind, slides, padding_idx), path, factors)
    if not hasattr(_NAMED, code.name):
        setattr(_NAMED, code.name, code.run)
    return code.name


_NAMED = ModuleType("lowered")
"""Code by its name: in a module torch.compile sees what has come since it looked last."""
