"""A method that another package brings, as the page on extending has it: one file, and no other of
ours is touched."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorlrf
from tensorlrf import Plan, io, plan
from tensorlrf.cli import _decompose, _options, main
from tensorlrf.compression import Method
from tensorlrf.compression.methods import as_method, config_of, method_from_dict, words
from tensorlrf.decomposition import Fit, fit_monarch, methods, scree
from tensorlrf.decomposition.config import Structured, config
from tensorlrf.decomposition.methods import find, method, names, registered
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.factors import LowRank, MonarchFactors
from tensorlrf.nn import FactoredLayer, factorize
from tests.decomposition.every import matrix

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
(PLUGIN,) = (
    code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "fit_columns" in code
)
"""The method of the page, 'columns'."""


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is gone after it."""
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module of an installed package that declares a method 'columns'."""
    folder = tmp_path / "toys-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[tensorlrf.methods]\ncolumns = a_toy_method\n")
    module = tmp_path / "a_toy_method.py"
    module.write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "a_toy_method", None)
    del sys.modules["a_toy_method"]  # and again after the test
    return module


def test_a_package_declares_a_method_that_is_imported_when_asked_for(plugin: Path) -> None:
    with pytest.raises(ArgumentError, match=r"choose one of .*columns"):
        find("colums")
    with pytest.raises(ArgumentError, match="method='columns' is unknown"):
        registered("columns")
    assert "columns" not in names()
    with pytest.raises(ArgumentError, match=r"package 'toys', .*; import a_toy_method first"):
        method_from_dict({"name": "columns"})  # as a plan has it
    assert plugin.stem not in sys.modules
    assert isinstance(factorize(nn.Linear(3, 4), "columns", 1), FactoredLayer)
    found = find("columns", "linear")
    assert plugin.stem in sys.modules
    assert found is registered("columns")
    assert not found.draws
    assert found.function(torch.ones(4, 3), 1).shape == (4, 3)
    assert names()[-1] == "columns"


def test_the_command_line_knows_the_method_of_a_package(
    plugin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "t.npy", matrix().numpy())
    target = tmp_path / "f.safetensors"
    given = ["decompose", str(tmp_path / "t.npy"), "--method", "columns", "--rank", "2"]
    assert main([*given, "-o", str(target)]) == 0
    assert "rank 2" in capsys.readouterr().out
    assert isinstance(io.load_factors(target), LowRank)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module", "no_such_module"),
        (f"{PLUGIN}\nimport no_such_module", "no_such_module"),  # after it has declared one
        ("", "declare it, @method..columns."),
    ],
)
def test_an_entry_point_with_a_fault_is_named(plugin: Path, source: str, words: str) -> None:
    plugin.write_text(source)
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=f"method 'columns' .*'a_toy_method'.*{words}"):
            find("columns")
        assert "columns" not in names()


def test_a_word_of_two_packages_is_refused(plugin: Path) -> None:
    folder = plugin.with_name("others-1.0.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[tensorlrf.methods]\ncolumns = another_module\n")
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=r"2 .* modules a_toy_method, another_module;"):
            find("columns")


@pytest.fixture
def module(plugin: Path) -> Any:
    """The same, loaded."""
    find("columns")
    return sys.modules[plugin.stem]


def network() -> nn.Sequential:
    """Weights near rank two."""
    draws = torch.Generator().manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(72, 16)).eval()
    for layer in (layers[0], layers[2]):
        m, n = layer.weight.flatten(1).shape
        near = torch.randn(m, 2, generator=draws) @ torch.randn(2, n, generator=draws)
        noise = torch.randn(m, n, generator=draws)
        layer.weight.data = (near + noise / 5).reshape(layer.weight.shape)
    return layers


def inputs() -> torch.Tensor:
    return torch.randn(300, 6, 5, 5, generator=torch.Generator().manual_seed(1))


def test_it_stands_in_one_short_file() -> None:
    assert sum(bool(line.strip()) for line in PLUGIN.splitlines()) < 60


def test_it_is_right(module: Any) -> None:
    weight = matrix()
    for rank in (1, 3, min(weight.shape)):
        fit = module.fit_columns(weight, rank)
        assert fit.factors.rank == rank
        assert fit.error > tensorlrf.decomposition.fit_svd(weight, rank).error - 1e-6
    assert fit.error < 1e-6  # of full rank, in float32
    assert module.fit_columns(weight, error=0.5).error <= 0.5


def test_its_config_has_the_options_of_its_signature(module: Any) -> None:
    config = module.Columns(rank=4, pivots="first")
    assert repr(config) == "Columns(rank=4, error=None, pivots='first')"
    assert [f.name for f in fields(config)] == ["rank", "error", "pivots"]
    assert config_of("columns") is module.Columns
    assert method_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    told = {"name": "columns", "rank": 4, "error": None, "pivots": "first"}
    assert config.to_dict() == told, "every option, at its default too"
    for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert again == config
        assert hash(again) == hash(config)
    with pytest.raises(ArgumentError, match="pivots='last' is unknown; choose one of largest"):
        module.Columns(pivots="last")
    with pytest.raises(ArgumentError, match="has two budgets"):
        module.Columns(rank=2, error=0.5)
    assert "columns" in words()


def test_compress_asks_for_it_by_its_word(plugin: Path) -> None:
    assert plugin.stem not in sys.modules
    method = as_method("columns")
    assert type(method).__name__ == "Columns"
    assert isinstance(method, Method)
    with pytest.raises(ArgumentError, match=r"method='colums' is unknown.*columns, auto, kron"):
        as_method("colums")


@pytest.mark.parametrize("budget", [{"keep_params": 0.5}, {"error": 0.4}], ids=["share", "error"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_network_is_compressed_by_it(
    plugin: Path, budget: dict[str, Any], calibrated: bool, tmp_path: Path
) -> None:
    data = {"calibration": [inputs()]} if calibrated else {}
    small, report = tensorlrf.compress(
        network(), method="columns", skip=[], progress=False, **budget, **data
    )
    layers = [m for m in small.modules() if isinstance(m, FactoredLayer)]
    assert layers
    assert all(isinstance(layer.factors, LowRank) for layer in layers)
    assert report.eligible.share <= budget.get("keep_params", 1)
    tensorlrf.save(small, tmp_path / "small.safetensors")
    again = tensorlrf.load(tmp_path / "small.safetensors", network())
    assert torch.equal(again(inputs()), small(inputs()))


def test_a_plan_holds_it(plugin: Path) -> None:
    made = plan(network(), keep_params=0.5, method="columns", skip=[])
    for row in made.factored:
        assert row.method is not None
        assert isinstance(row.method.rank, int)
        assert row.params_after == row.method.rank * (row.shape[0] + row.params // row.shape[0])
    assert Plan.from_json(made.to_json()) == made
    tensorlrf.apply(network(), made, progress=False)


def test_a_plan_loads_nothing(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(methods._METHODS)
    text = plan(network(), keep_params=0.5, method="columns", skip=[]).to_json()
    monkeypatch.setattr(methods, "_METHODS", before)
    monkeypatch.delitem(sys.modules, plugin.stem)
    with pytest.raises(ArgumentError, match=r"package 'toys', .*; import a_toy_method first"):
        Plan.from_json(text)
    assert plugin.stem not in sys.modules
    assert "columns" not in names()
    __import__(plugin.stem)
    assert Plan.from_json(text).factored


def test_a_file_is_read_without_it(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(methods._METHODS)
    small, _ = tensorlrf.compress(
        network(), keep_params=0.5, method="columns", skip=[], progress=False
    )
    tensorlrf.save(small, tmp_path / "small.safetensors")
    monkeypatch.setattr(methods, "_METHODS", before)
    monkeypatch.delitem(sys.modules, plugin.stem)
    again = tensorlrf.load(tmp_path / "small.safetensors", network())
    assert torch.equal(again(inputs()), small(inputs()))
    assert tensorlrf.inspect(tmp_path / "small.safetensors").layers
    assert plugin.stem not in sys.modules


def test_the_command_line_compresses_by_it(
    plugin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (_options, _decompose):
        assert "columns" in module.words_of_methods()
    assert plugin.stem not in sys.modules, "the help names what is installed, and loads nothing"
    save_file({"body.weight": torch.randn(32, 24)}, tmp_path / "net.safetensors")
    target = tmp_path / "small.safetensors"
    given = ["compress", str(tmp_path / "net.safetensors"), "--method", "columns"]
    assert main([*given, "--keep-params", "0.5", "-o", str(target)]) == 0
    assert "body" in capsys.readouterr().out
    (layer,) = tensorlrf.inspect(target).layers
    assert layer.format == "lowrank"


def test_scree_and_the_table_of_methods_show_it(plugin: Path) -> None:
    (seen,) = scree(matrix(), "columns").spectra
    (whole,) = scree(matrix(), "svd").spectra
    assert seen.values == pytest.approx(whole.values)
    spec = importlib.util.spec_from_file_location("table", ROOT / "docs" / "method_table.py")
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    assert "| `columns` | A basis of r columns" in table.table()


def test_a_format_whose_size_the_fit_finds_gets_inputs_and_no_option_of_layers() -> None:
    seen: list[dict[str, Any]] = []

    def fit_panels(
        tensor: Any,
        rank: Any = None,
        *,
        error: float | None = None,
        parts: int = 2,
        gram: Any = None,
        random_state: Any = None,
    ) -> Fit[MonarchFactors]:
        """Of this test."""
        seen.append({"rank": rank, "parts": parts, "gram": gram, "random_state": random_state})
        return fit_monarch(tensor, rank, error=error, blocks=parts, gram=gram)

    fit_panels.__qualname__ = "fit_panels"  # as of a module
    method("panels", gives=MonarchFactors, on={"linear"})(fit_panels)

    @config("panels")
    class Panels(Structured):
        """Of this test."""

        parts: int
        narrowest: int = 8

        def why_not(self, shape: tuple[int, ...], groups: int) -> str:
            narrow = min(shape[:2]) < self.narrowest
            return "too narrow" if narrow else super().why_not(shape, groups)

        def least_params(self, shape: tuple[int, ...]) -> int:
            return self.parts * sum(shape)

    assert [f.name for f in fields(Panels)] == ["rank", "error", "parts", "narrowest"]
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 6), nn.Conv1d(6, 16, 3))
    made = plan(model, keep_params=0.6, method=Panels(parts=4), skip=[])  # type: ignore[call-arg]
    assert [row.reason for row in made.layers] == [
        "", "too narrow", "too narrow",
    ]  # fmt: skip
    made = plan(model, keep_params=0.6, method=Panels(narrowest=2), skip=[])  # type: ignore[call-arg]
    assert [row.reason for row in made.layers] == ["", "", "panels serves linear layers only"]
    assert Plan.from_json(made.to_json()) == made

    batches = [torch.randn(200, 16, generator=torch.Generator().manual_seed(0))]
    linear = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16))
    small, report = tensorlrf.compress(
        linear, keep_params=0.6, method="panels", skip=[], calibration=batches, progress=False
    )
    assert report.eligible.share <= 0.6
    assert {type(m.factors) for m in small if isinstance(m, FactoredLayer)} == {MonarchFactors}
    assert all(call["gram"] is not None and call["random_state"] == 0 for call in seen)
    assert all(isinstance(call["rank"], float) and call["parts"] == 2 for call in seen)


def test_an_option_that_is_a_word_of_configs_is_refused() -> None:
    def fit_panels(tensor: Any, rank: Any = None, *, options: int = 2) -> Fit[LowRank]:
        """Of this test."""
        raise NotImplementedError

    fit_panels.__qualname__ = "fit_panels"
    method("panels", gives=LowRank, on={"linear"})(fit_panels)
    with pytest.raises(ArgumentError, match="options= of 'panels' is a word of configs; rename it"):

        @config("panels")
        class Panels(Method):
            """Of this test."""
