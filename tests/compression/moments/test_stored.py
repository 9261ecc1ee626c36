"""A checkpoint is fitted to moments a layer at a time, to what its model would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression import Moments
from tensorlrf.compression.scale import _run
from tensorlrf.errors import ArgumentError, CalibrationWarning
from tests.compression.moments.nets import attention
from tests.failing import cut_short


def many(n: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(3)
    return [torch.randn(100, n, generator=draws) * torch.linspace(2, 0.1, n) for _ in range(2)]


def stored(model: nn.Module, folder: Path) -> tuple[Path, Path]:
    """The checkpoint of a model, and moments of it."""
    source, moments = folder / "in.safetensors", folder / "moments.safetensors"
    save_file(model.state_dict(), source)
    tensorlrf.calibrate(model, many(16), skip=[]).save(moments)
    return source, moments


def test_a_checkpoint_gives_what_its_model_gives(tmp_path: Path) -> None:
    model = attention(16)
    source, moments = stored(model, tmp_path)
    wanted, told = tensorlrf.compress(model, keep_params=0.6, skip=[], moments=moments)
    out = tmp_path / "out"
    report = tensorlrf.compress_checkpoint(source, out, keep_params=0.6, moments=moments)
    small = tensorlrf.load(out, model)
    x = many(16)[0]
    torch.testing.assert_close(small(x), wanted(x), rtol=1e-4, atol=1e-5)  # float32 outputs
    by_name = {row.name: row for row in told.layers}
    for row in report.layers:
        assert row.output_error == pytest.approx(by_name[row.name].output_error, rel=1e-4)
    assert small[0].q.recipe["data_aware"]
    again = tensorlrf.compress_checkpoint(source, out, keep_params=0.6, moments=moments)
    assert again.already
    assert [r.output_error for r in again.layers] == [r.output_error for r in report.layers]


def test_an_error_is_one_of_outputs(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(400, 2, generator=draws) @ torch.randn(2, 32, generator=draws)
    moments = tensorlrf.calibrate(model, [x + 1e-3 * torch.randn(400, 32)], skip=[])
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    report = tensorlrf.compress_checkpoint(
        tmp_path / "in.safetensors", tmp_path / "out.safetensors", error=0.1, moments=moments
    )
    (row,) = report.layers
    assert row.output_error is not None
    assert row.output_error <= 0.1 < row.weight_error


def test_layers_that_are_fed_the_same_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = stored(attention(16), tmp_path)
    moments, read = Moments.load(path), []
    own = type(moments.kept).read

    def counted(self: Any, row: Any) -> Any:
        read.append(row.name)
        return own(self, row)

    monkeypatch.setattr(type(moments.kept), "read", counted)
    tensorlrf.compress_checkpoint(
        source, tmp_path / "out.safetensors", keep_params=0.6, moments=moments
    )
    assert read == ["0.k", "0.o", "0.q", "1", "3"]  # in the order of the file; v follows q


def test_a_run_that_fails_goes_on_with_the_same_moments_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attention(16)
    source, moments = stored(model, tmp_path)
    tensorlrf.compress_checkpoint(source, tmp_path / "whole", keep_params=0.6, moments=moments)
    out = tmp_path / "out"
    with cut_short(monkeypatch, _run, "factor", 2):
        tensorlrf.compress_checkpoint(source, out, keep_params=0.6, moments=moments)
    other = tensorlrf.calibrate(model, 2 * many(16), skip=[])
    with pytest.raises(ArgumentError, match=r"another one: moments was"):
        tensorlrf.compress_checkpoint(source, out, keep_params=0.6, moments=other)
    with pytest.raises(ArgumentError, match=r"another one: moments was"):
        tensorlrf.compress_checkpoint(source, out, keep_params=0.6)
    report = tensorlrf.compress_checkpoint(source, out, keep_params=0.6, moments=moments)
    assert report.resumed == 2
    for file in sorted((tmp_path / "whole").iterdir()):
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_those_of_another_model_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, moments = stored(attention(16), tmp_path)
    monkeypatch.setattr(_run, "factor", None)
    others = [
        (attention(16, seed=1), r"the weight of 0\.q has other values"),
        (attention(8), r"the weight of 0\.q is 16 x 16 in the moments and 8 x 8 in the model"),
        (nn.Sequential(nn.Sequential(nn.Linear(16, 16))), r"they have a layer 0\.q \(16 x 16\)"),
    ]
    for k, (model, why) in enumerate(others):
        source = tmp_path / f"{k}.safetensors"
        save_file(model.state_dict(), source)
        with pytest.raises(ArgumentError, match=why):
            tensorlrf.compress_checkpoint(
                source, tmp_path / "out", keep_params=0.6, moments=moments
            )
        assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_dtype_is_known_again(tmp_path: Path) -> None:
    model = attention(16)
    _, moments = stored(model, tmp_path)
    save_file({k: t.bfloat16() for k, t in model.state_dict().items()}, tmp_path / "b.safetensors")
    report = tensorlrf.compress_checkpoint(
        tmp_path / "b.safetensors", tmp_path / "out.safetensors", keep_params=0.6, moments=moments
    )
    assert all(row.output_error is not None for row in report.layers)


def test_layers_without_moments_are_told(tmp_path: Path) -> None:
    model = attention(16)
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    moments = tensorlrf.calibrate(model, many(16), skip=["0.o", "3"])
    with pytest.warns(CalibrationWarning, match=r"moments= have none of 0\.o, 3: the plain method"):
        report = tensorlrf.compress_checkpoint(
            tmp_path / "in.safetensors", tmp_path / "o.safetensors", keep_params=0.6,
            moments=moments,
        )  # fmt: skip
    assert [row.name for row in report.layers if row.output_error is None] == ["0.o", "3"]
    thin = tensorlrf.calibrate(model, [many(16)[0][:10]], skip=[])
    with pytest.warns(CalibrationWarning, match=r"moments= are thin for 0\.k \(10 samples, n = 16"):
        tensorlrf.compress_checkpoint(
            tmp_path / "in.safetensors", tmp_path / "p.safetensors", keep_params=0.6, moments=thin
        )
