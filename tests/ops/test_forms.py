"""A format and its form from outside the package get all that the package has."""

from __future__ import annotations

import gc
import linecache
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import ops
from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import BlockLowRank, Factors, Grouped
from tensorlrf.nn import FactoredConv2d, FactoredLinear
from tensorlrf.nn.stock import to_stock_layer
from tensorlrf.ops import PathTable
from tensorlrf.ops.forms import (
    Concat,
    Conv,
    Form,
    Matrix,
    Paths,
    Slice,
    Sum,
    _form,
    form_of,
    lowering,
    register_form,
)
from tensorlrf.ops.geometry import Geometry
from tests.draws import seeded
from tests.laws.forms import FormLaws, Sample
from tests.ops.samples import structured


@dataclass(frozen=True, eq=False, repr=False)
class Scaled(Factors):
    """rows[i] * base[i, ...]: a tensor whose first mode is scaled, stored as both."""

    rows: Tensor
    base: Tensor

    format: ClassVar[str] = "scaled (of a test)"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    @property
    def rank(self) -> int:
        return 1

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": self.rows, "base": self.base}

    def meta(self) -> dict[str, Any]:
        return {}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        return {"rows": tensors["rows"], "base": tensors["base"]}

    def check(self) -> None:
        tensorlrf.factors.arrays.check_together(self.tensors(), "Scaled")
        if self.rows.ndim != 1 or self.base.shape[:1] != self.rows.shape or self.base.ndim < 2:
            raise tensorlrf.errors.ShapeError(f"Scaled: rows must be ({len(self.base)},)")

    def _dense(self) -> Tensor:
        return self.rows.reshape(-1, *(1,) * (self.base.ndim - 1)) * self.base


class ScaledForm(Form[Scaled]):
    """The base, then the scales; or both in one."""

    def linear(self, f: Scaled) -> Paths:
        return {
            "chain": (Matrix(f.base), Matrix(torch.diag(f.rows))),
            "fold": (Matrix(f.rows[:, None] * f.base),),
        }

    def conv(self, f: Scaled, conv: Conv) -> Paths:
        return {"chain": (conv.taps(f.base), conv.pointwise(torch.diag(f.rows)))}


def scaled(*shape: int) -> Scaled:
    return Scaled(seeded(shape[0], seed=1), seeded(*shape, seed=2))


class TestScaledForm(FormLaws):
    def samples(self) -> Iterator[Sample]:
        f = scaled(5, 4)
        linear = nn.Linear(4, 5, dtype=torch.float64)
        kernel = scaled(5, 4, 3, 3)
        conv = nn.Conv2d(4, 5, 3, stride=2, padding=1, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(f.to_dense())
            conv.weight.copy_(kernel.to_dense())
        yield f, linear, seeded(2, 4)
        yield kernel, conv, seeded(2, 4, 6, 7)


def test_its_layers_have_paths_costs_and_tables_and_are_exported() -> None:
    layer = FactoredLinear(scaled(5, 4), seeded(5))
    assert layer.paths == ("dense", "chain", "fold")
    assert set(PathTable.from_cost(layer.factors).paths) <= set(layer.paths)
    kinds = [step.kind for step in ops.linear_cost(layer.factors, "fold", 3).steps]
    assert kinds == ["merge", "matmul"]
    stock = to_stock_layer(layer, "chain")
    assert [type(part) for part in stock] == [nn.Linear, nn.Linear]
    assert ops.conv_paths(scaled(5, 4, 3, 3)) == ("dense", "chain")


def test_it_is_saved_and_loaded_in_a_model(tmp_path: Path) -> None:
    model = nn.Sequential(FactoredLinear(scaled(5, 4)), nn.ReLU())
    tensorlrf.save(model, tmp_path / "m.safetensors")
    again = tensorlrf.load(tmp_path / "m.safetensors", nn.Sequential(nn.Linear(4, 5), nn.ReLU()))
    x = seeded(3, 4)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_layers_that_its_form_does_not_have_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="in which no rows are looked up"):
        ops.embedding(torch.tensor([1]), scaled(5, 4))
    with pytest.raises(UnsupportedError, match="operand is a Scaled"):
        ops.contract("ij->i", scaled(5, 4))
    assert FactoredConv2d(scaled(5, 4, 3, 3)).paths == ("dense", "chain")


@dataclass(frozen=True, eq=False, repr=False)
class Said(Scaled):
    """The same with values of JSON that only its form looks at."""

    said: Any = ()

    format: ClassVar[str] = "said (of a test)"

    def meta(self) -> dict[str, Any]:
        return {"said": self.said}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        return {**tensors, "said": meta["said"]}


class SaidForm(ScaledForm):
    def linear(self, f: Any) -> Paths:
        SEEN.append(f.said)
        return super().linear(f)


SEEN: list[Any] = []


def test_a_form_sees_what_the_factors_say_compiled_or_not() -> None:
    torch._dynamo.reset()
    said = {"axis": -1, "sizes": [0, 3], "flipped": False, "first": True, "name": None, "step": 0.5}
    f = Said(seeded(5), seeded(5, 4), said)
    SEEN.clear()
    torch.compile(lambda x: ops.linear(x, f, path="chain"), fullgraph=True, backend="eager")(
        seeded(2, 4)
    )
    assert SEEN
    assert all(repr(one) == repr(said) for one in SEEN)


def test_the_source_of_straight_code_goes_with_it() -> None:
    def held() -> set[str]:
        gc.collect()
        return {name for name in linecache.cache if name.startswith("<lowered_")}

    before = held()
    # Strides that no other code has, which this one would share.
    layer = lowering.Layer("conv", Geometry((7,), (1,), (5,)))
    code = lowering.lowered(layer, "chain", tensorlrf.svd(seeded(6, 4, 3), 2))
    assert len(held() - before) == 1
    lowering._CODE.clear()
    assert len(held() - before) == 1, "of code that a layer runs on"
    del code
    assert not held() - before


def test_a_format_has_one_form() -> None:
    with pytest.raises(TypeError, match="Scaled has a form already, ScaledForm"):
        register_form(Scaled, ScaledForm())
    assert not form_of(scaled(5, 4)).has("embedding")
    assert form_of(Grouped.stack([scaled(5, 4, 3)] * 2)).has("conv")


# ---- blocks of low rank from stages that exist --------------------------------------------------


class Blocks(BlockLowRank):
    """The same factors under another name, for a form of their own."""

    format: ClassVar[str] = "blocks (of a test)"


class BlocksForm(Form[Blocks]):
    """Of every strip of rows the sum of its blocks, each on its columns of x; the strips one behind
    the other. No stage but those that other formats have."""

    def linear(self, f: Blocks) -> Paths:
        strips: dict[int, list[Any]] = {}
        for block, content in f.panels():
            part = Slice(block.column, block.columns)
            if isinstance(content, tuple):
                left, right = content
                strips.setdefault(block.row, []).append((part, Matrix(right), Matrix(left)))
            else:
                strips.setdefault(block.row, []).append((part, Matrix(content)))
        return {"chain": (Concat(tuple([(Sum(tuple(paths)),) for paths in strips.values()])),)}


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """For the tests of this file alone: errors elsewhere list the formats that have a form."""
    register_form(Scaled, ScaledForm())
    register_form(Blocks, BlocksForm())
    register_form(Said, SaidForm())
    yield
    for format in (Scaled, Blocks, Said):
        del _form._FORMS[format]


class TestBlocksFromStages(FormLaws):
    def samples(self) -> Iterator[Sample]:
        for kind in ("grid", "ragged"):
            given = structured(kind, (2, 3, 2, 4), 2)
            f = Blocks.from_tensors(given.tensors(), given.meta())
            m, n = f.shape
            dense = nn.Linear(n, m, dtype=torch.float64)
            with torch.no_grad():
                dense.weight.copy_(f.to_dense())
            yield f, dense, seeded(2, n)


@pytest.mark.slow
def test_layers_are_built_without_the_compiler() -> None:
    code = (
        "import sys; from tests.golden.samples import layers; list(layers()); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_layer_has_code_for_the_paths_of_its_table() -> None:
    layer = tensorlrf.nn.factorize(nn.Conv2d(8, 8, 3), "cp", 2)
    assert set(layer._runs) == {*layer.path_table.paths} - {"dense"}
    for path in layer.paths:
        layer.path_table = PathTable.single(path)
    assert set(layer._runs) == {*layer.paths} - {"dense"}


def test_code_that_names_no_size_is_shared_by_all_sizes() -> None:
    codes = set()
    for n in (8, 12):
        layer = tensorlrf.nn.factorize(nn.Linear(n, n), "svd", 2)
        layer.path_table = PathTable.single("chain")
        codes.add(layer._runs["chain"].run)
    assert len(codes) == 1


class Deciding(Scaled):
    """Whose form looks at numbers."""

    format: ClassVar[str] = "deciding (of a test)"


class DecidingForm(Form[Deciding]):
    """A form that breaks the rule."""

    def linear(self, f: Deciding) -> Paths:
        return {"chain": (Matrix(f.base if f.rows.sum() else -f.base),)}


def test_a_form_decides_nothing_by_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_form._FORMS, Deciding, DecidingForm())
    with pytest.raises(UnsupportedError, match="sizes alone"):
        ops.linear(torch.ones(1, 3), Deciding(torch.ones(2), torch.ones(2, 3)))
