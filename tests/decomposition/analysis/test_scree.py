"""The singular values behind each method, and a picture of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition.analysis._scree import scree
from tensorlrf.decomposition.svd._svd import fit_svd
from tensorlrf.decomposition.tucker._tucker import fit_tucker
from tensorlrf.errors import ArgumentError, FileError, ShapeError, UnsupportedError
from tests.draws import seeded

ROOT = Path(__file__).resolve().parents[3]
SIGNS = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF"}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    method=st.sampled_from(["svd", "tucker", "tt"]),
    seed=st.integers(0, 50),
)
def test_every_spectrum_holds_the_whole_norm(shape: list[int], method: str, seed: int) -> None:
    tensor = seeded(*shape, seed=seed)
    found = scree(tensor, method)
    count = {"svd": 1, "tucker": len(shape), "tt": len(shape) - 1}[method]
    assert len(found.spectra) == count
    for s in found.spectra:
        squares = torch.tensor(s.values, dtype=torch.float64).square()
        assert float(squares.sum()) == pytest.approx(float(tensor.square().sum()))
        assert len(s.values) == len(s.energy) == len(s.errors) == len(s.params)
        assert list(s.values) == sorted(s.values, reverse=True)
        assert s.energy[-1] == 1
        assert s.errors[-1] == 0
        for share, error in zip(s.energy, s.errors, strict=True):
            assert share + error**2 == pytest.approx(1)
        assert list(s.params) == sorted(set(s.params))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_errors_and_parameters_are_those_of_svd(dtype: torch.dtype) -> None:
    kernel = seeded(9, 4, 3, 2).to(dtype)
    before = kernel.clone()
    (s,) = scree(kernel).spectra
    assert torch.equal(kernel, before)
    wide = kernel.double()
    for r in (1, 4, 9):
        fit = fit_svd(wide, r)
        # Below float64 the values come from a Gram in float64, good to 1e-8 of the largest.
        assert s.errors[r - 1] == pytest.approx(fit.error, abs=1e-7)
        assert s.params[r - 1] == fit.factors.n_params


def test_errors_and_parameters_are_those_of_tucker_in_one_mode() -> None:
    tensor = seeded(6, 7, 8)
    found = scree(tensor, "tucker", modes=(2, 0))
    assert [s.name for s in found.spectra] == ["mode 2", "mode 0"]
    for mode, s in zip((2, 0), found.spectra, strict=True):
        for r in (1, 3, 5):
            fit = fit_tucker(tensor, (r,), modes=(mode,))
            assert s.errors[r - 1] == pytest.approx(fit.error)
            assert s.params[r - 1] == fit.factors.n_params


def test_train_unfoldings() -> None:
    tensor = seeded(3, 4, 5, 2)
    found = scree(tensor, "tt")
    for k, s in enumerate(found.spectra):
        matrix = tensor.reshape(math.prod(tensor.shape[: k + 1]), -1)
        assert s.values == pytest.approx(torch.linalg.svdvals(matrix).tolist())
        assert s.params[0] == sum(matrix.shape)


def test_kronecker_terms() -> None:
    a, b = seeded(2, 3, 4), seeded(2, 5, 2, seed=1)
    weight = sum(torch.kron(x, y) for x, y in zip(a, b, strict=True))
    (s,) = scree(weight, "kron", shapes=((3, 4), (5, 2))).spectra
    assert s.errors[0] > 1e-3
    assert s.errors[1] < 1e-12  # the discarded energy is a sum of squares, which does not cancel
    assert s.params[1] == a.numel() + b.numel()
    kernel = seeded(6, 4, 3, 3)
    (s,) = scree(kernel, "kron", shapes=((2, 2), (3, 2))).spectra
    assert len(s.values) == 4
    assert s.params[0] == 4 + 6 * 9


def test_pooled_blocks() -> None:
    """Keeping the first r triplets of all blocks has the error told, and the parameters."""
    matrix = seeded(7, 10)
    (s,) = scree(matrix, "blr", block=(3, 4)).spectra
    triplets: list[tuple[float, int]] = []
    for i in range(0, 7, 3):
        for j in range(0, 10, 4):
            part = matrix[i : i + 3, j : j + 4]
            triplets += [(float(v), sum(part.shape)) for v in torch.linalg.svdvals(part)]
    triplets.sort(reverse=True)
    assert s.values == pytest.approx([v for v, _ in triplets])
    for r in (1, 5, 17):
        off = math.sqrt(sum(v**2 for v, _ in triplets[r:]))
        assert s.errors[r - 1] == pytest.approx(off / float(matrix.norm()))
        assert s.params[r - 1] == sum(cost for _, cost in triplets[:r])
    (whole,) = scree(matrix, "blr", block=(7, 10)).spectra
    (plain,) = scree(matrix).spectra
    assert whole.values == pytest.approx(plain.values)
    assert whole.params == plain.params


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_and_zeros(scale: float) -> None:
    one, other = scree(seeded(5, 6)), scree((seeded(5, 6) * scale).float())
    assert other.spectra[0].errors == pytest.approx(one.spectra[0].errors, abs=1e-6)
    zero = scree(torch.zeros(3, 4)).spectra[0]
    assert zero.errors == (0, 0, 0)
    assert zero.energy == (1, 1, 1)


def test_it_prints_itself_and_is_json() -> None:
    found = scree(seeded(20, 15, 3), "tucker", modes=(0, 1))
    title, head, first, second = str(found).splitlines()
    assert title == "tucker of 20x15x3, 900 parameters"
    assert "error 0.05" in head
    assert first.startswith("mode 0")
    assert second.startswith("mode 1")
    values = json.loads(found.to_json())
    assert values["method"] == "tucker"
    assert values["shape"] == [20, 15, 3]
    assert values["spectra"][1]["errors"] == list(found.spectra[1].errors)


def test_the_rank_within_an_error_is_the_smallest() -> None:
    (s,) = scree(seeded(12, 10)).spectra
    for error in (0.9, 0.5, 0.1, 0.0):
        r = s.rank_within(error)
        assert s.errors[r - 1] <= error
        assert r == 1 or s.errors[r - 2] > error


@pytest.mark.parametrize("suffix", SIGNS)
def test_a_picture_of_the_kind_that_the_suffix_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scree.{suffix}"
    scree(seeded(6, 7, 8), "tucker").plot(path)
    assert path.read_bytes().startswith(SIGNS[suffix])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_picture_of_zeros_and_of_a_tensor_that_only_grows(tmp_path: Path) -> None:
    scree(torch.zeros(3, 4)).plot(tmp_path / "zero.png")
    scree(torch.ones(1, 1)).plot(tmp_path / "one.png")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["scree", "scree.qqq"])
def test_a_bad_suffix_leaves_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="path="):
        scree(seeded(4, 5)).plot(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"path=.*folder .* is missing"):
        scree(seeded(4, 5)).plot(tmp_path / "nowhere" / "scree.png")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'tensorlrf\[plot\]'"):
        scree(seeded(4, 5)).plot(tmp_path / "scree.png")


def test_no_import_of_matplotlib_before_a_picture() -> None:
    code = (
        "import sys, torch; from tensorlrf.decomposition.analysis._scree import scree; "
        "scree(torch.ones(3, 4)); sys.exit('matplotlib' in sys.modules)"
    )
    paths = f"{ROOT}:{ROOT / 'kernels'}"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": paths, "PATH": ""}, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "cp"}, UnsupportedError, "'cp' has no singular values"),
        ({"method": "hosvd"}, ArgumentError, "method='hosvd'.*svd, tucker, tt, kron, blr"),
        ({"modes": (0,)}, ArgumentError, "modes=.*belongs to method='tucker'"),
        ({"method": "tt", "block": 2}, ArgumentError, "block=2 belongs to method='blr'"),
        ({"method": "kron"}, ArgumentError, "needs shapes="),
        ({"method": "blr"}, ArgumentError, "needs block="),
        ({"method": "kron", "shapes": ((2, 2), (5, 2))}, ShapeError, "shapes="),
        ({"method": "blr", "block": 7}, ShapeError, "block=7"),
        ({"method": "tucker", "modes": (2,)}, ArgumentError, "modes"),
        (
            {"tensor": torch.ones(2, 3, 4), "method": "blr", "block": 2},
            UnsupportedError,
            "takes a matrix",
        ),
        ({"tensor": torch.full((2, 3), float("nan"))}, ArgumentError, "NaN"),
        ({"tensor": torch.ones(2, 3, dtype=torch.int32)}, ArgumentError, "int32"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: dict[str, Any] = {"tensor": torch.ones(6, 4)} | options
    with pytest.raises(error, match=words):
        scree(**arguments)
