"""`tensorlrf spectra` on folders and files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tensorlrf
from tests.cli.calls import Program, cnn, listing, save_state
from tests.cli.folders import gpt2_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tests only read."""
    return gpt2_folder(tmp_path_factory.mktemp("spectra") / "gpt2")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return save_state(cnn(), tmp_path / "net.safetensors")


def test_a_file_has_the_spectra_of_its_model(program: Program, net: Path) -> None:
    """Layers are told by their tensors alone; a name and a norm are those of the model."""
    done = program("spectra", net, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    expected = tensorlrf.spectra(cnn())
    rows = {row["name"]: row["measures"] for row in told["layers"]}
    for name in ("0", "3", "5", "6"):
        measures = expected.layer(name).measures
        assert rows[name]["nuclear_norm"] == pytest.approx(measures.nuclear_norm, rel=1e-6)
        assert rows[name]["effective_rank"] == pytest.approx(measures.effective_rank, rel=1e-6)


def test_a_folder_dense_and_compressed(program: Program, folder: Path, tmp_path: Path) -> None:
    """Of factors at a lower rank no measure of rank is above that rank."""
    dense = json.loads(program("spectra", folder, "--skip", "*wpe", "--json").out)
    assert not any(row["name"].endswith("wpe") for row in dense["layers"])
    small = tmp_path / "small"
    assert program("compress", folder, "-o", small, "--keep-params", 0.5, "--json").code == 0
    done = program("spectra", small, "--json")
    assert done.code == 0, done.err
    ranks = {row.name: row.rank for row in tensorlrf.inspect(small).layers}
    told = {row["name"]: row["measures"] for row in json.loads(done.out)["layers"]}
    assert ranks
    for name, rank in ranks.items():
        assert told[name]["stable_rank"] <= told[name]["effective_rank"] * (1 + 1e-4)
        assert told[name]["effective_rank"] <= rank * (1 + 1e-3)  # noise of float32 beyond it


def test_a_table_a_picture_and_a_file(program: Program, net: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target, picture = tmp_path / "spectra.json", tmp_path / "layers.svg"
    options = ("-o", target, "--plot", picture, "--measure", "stable_rank")
    done = program("spectra", net, *options)
    assert done.code == 0, done.err
    assert "nuclear norm" in done.out
    assert f"written to {target}" in done.out
    assert "stable rank" in picture.read_text(encoding="utf-8")
    assert json.loads(target.read_text()) == json.loads(program("spectra", net, "--json").out)
    assert "--force" in program("spectra", net, "-o", target).error
    assert program("spectra", net, "-o", target, "--force").code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("none",), "none is not there"),
        (("text.txt",), "text.txt is no .safetensors file"),
        (("net.safetensors", "-o", "x.txt"), "files are written as .json"),
        (("net.safetensors", "--measure", "entropy"), "give --plot"),
        (("net.safetensors", "--plot", "x.png", "--measure", "norm"), "measure='norm' is unknown"),
        (("net.safetensors", "--skip", "nothing*"), "'nothing*' matches no module"),
        (("net.safetensors", "--plot", "x.doc"), "x.doc"),
        (("biases.safetensors",), "no layer"),
        (("nan.safetensors",), "NaN"),
        (("empty",), "empty"),
        (("bare",), "bare"),
    ],
)
def test_what_has_no_spectra_is_refused(
    program: Program,
    net: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("words")
    save_file({"a.bias": torch.ones(4)}, "biases.safetensors")
    save_file({"a.weight": torch.full((4, 4), torch.nan)}, "nan.safetensors")
    Path("empty").mkdir()
    Path("bare").mkdir()
    shutil.copy(folder / "config.json", "bare")  # a model without its weights
    before = listing(tmp_path)
    assert says in program("spectra", *arguments).error
    assert listing(tmp_path) == before
