"""Moments of a model as a value: what they are, that they add up, and that a file has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.compression import Moments
from tensorlrf.compression.calibration.moments._form import Form
from tensorlrf.compression.moments._layer import Weight
from tensorlrf.errors import (
    ArgumentError,
    CalibrationWarning,
    FileError,
    FileFormatError,
    MissingFileError,
)
from tests.compression.moments.nets import (
    assert_same,
    attention,
    blocks,
    convolutions,
    images,
    limit_for,
    narrow,
    one_way,
    routed,
    rows,
    sketched,
    sums,
    wide,
)

ROOT = Path(__file__).resolve().parents[3]
OF_SUMS = 1e-12
"""Sums in float64 of some thousand terms in another order."""


def moments_of(model: nn.Module, batches: Any, **more: Any) -> Moments:
    return tensorlrf.calibrate(model, batches, skip=[], **more)


# ---- what they are -----------------------------------------------------------------------------


def test_sums_are_those_of_what_the_layers_are_fed() -> None:
    model, batches = attention(), rows(12, 3)
    moments = moments_of(model, batches)
    x = torch.cat([b.flatten(0, 1) for b in batches]).double()
    (found,) = moments.kept.read(moments.layer("0.q"))
    got = found.tensors()
    torch.testing.assert_close(got["products"].triu(), (x.T @ x).triu(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(got["sum"], x.sum(0), rtol=1e-6, atol=1e-5)
    assert moments.batches == 3
    assert moments.layer("0.q").count == len(x)


def test_layers_that_are_fed_the_same_have_one_sum() -> None:
    moments = moments_of(attention(), rows(12, 2))
    assert [row.like for row in moments.layers] == ["", "0.q", "0.q", "", "", ""]
    assert moments.n_bytes == 8 * sum(n * (n + 1) // 2 + 2 * n + 1 for n in (12, 12, 12, 24))


def test_layers_that_part_on_the_way_have_sums_of_their_own() -> None:
    model = routed()
    up, down = one_way(0), one_way(1)
    together = moments_of(model, [*up, *down])
    assert together.layer("also").like == ""
    alone = sums(together)
    x = torch.cat([*up, *[2 * b for b in down]]).double()
    torch.testing.assert_close(
        alone["also/0/products"], (x.T @ x).triu(), rtol=1e-6, atol=1e-5
    )  # products in float32
    assert moments_of(model, up).layer("also").like == "gate"


def test_padding_is_no_input() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x)
            return y

    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    moments = moments_of(Masked(), [(torch.ones(2, 3, 8), mask)])
    assert moments.layer("layer").count == 3


def test_the_model_stays_as_it_was() -> None:
    model = attention().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    moments_of(model, rows(12, 1))
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_layer_that_no_batch_reaches_has_none() -> None:
    moments = moments_of(routed(), one_way(0))
    assert moments.layer("right").count == 0
    assert moments.layer("left").count > 0


# ---- they add up -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "batches"), [(attention(), rows(12, 4)), (convolutions(), images(4))]
)
def test_parts_add_up_to_the_whole(model: nn.Module, batches: list[torch.Tensor]) -> None:
    whole = moments_of(model, batches)
    one, two = moments_of(model, batches[:1]), moments_of(model, batches[1:])
    assert_same(one + two, whole, OF_SUMS)
    assert_same(one + two, two + one)
    assert (one + two).batches == whole.batches


def test_adding_leaves_what_is_added() -> None:
    one, two = moments_of(attention(), rows(12, 1)), moments_of(attention(), rows(12, 2))
    before = sums(one)
    first = sums(one + two)
    again = sums(one + two)
    for name, tensor in sums(one).items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(first[name], again[name])


def test_layers_that_part_in_one_of_two_have_sums_of_their_own_in_the_sum() -> None:
    model = routed()
    parts = [moments_of(model, one_way(way)) for way in (0, 1)]
    assert [part.layer("also").like for part in parts] == ["gate", ""]
    whole = moments_of(model, [*one_way(0), *one_way(1)])
    assert_same(parts[0] + parts[1], whole, OF_SUMS)
    assert_same(parts[1] + parts[0], whole, OF_SUMS)


def test_counts_are_beyond_any_float() -> None:
    from dataclasses import replace

    one = moments_of(wide(), rows(256, 1))
    many = replace(one, layers=tuple(replace(row, count=2**53) for row in one.layers))
    row = (many + one).layer("0")
    assert row.count == 2**53 + one.layer("0").count


def test_sketches_add_up_within_their_bound() -> None:
    model, batches = wide(), rows(256, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        parts = [
            moments_of(model, part, memory_limit=sketched(model))
            for part in (batches[:3], batches[3:])
        ]
    whole = parts[0] + parts[1]
    assert whole.layer("0").form == "sketch of 16"
    x = torch.cat([b.flatten(0, 1) for b in batches]).double()
    (found,) = whole.kept.read(whole.layer("0"))
    state = found.tensors()
    off = torch.linalg.eigvalsh(x.T @ x - state["rows"].T @ state["rows"])
    slack = 1e-5 * float(x.square().sum())  # rows are in float32
    assert off.min() > -slack
    assert off.max() < state["lost"] + slack
    with pytest.raises(
        ArgumentError, match=r"kept alike: those of 0 are sketch of 16 .*memory_limit"
    ):
        parts[0] + moments_of(model, batches)


def test_those_of_different_models_are_told_apart() -> None:
    one = moments_of(attention(), rows(12, 1))
    with pytest.raises(ArgumentError, match=r"the weight of 0.q has other values"):
        one + moments_of(attention(seed=1), rows(12, 1))
    with pytest.raises(ArgumentError, match=r"the weight of 0.q is 12 x 12 in the one and 8 x 8"):
        one + moments_of(attention(8), rows(8, 1))
    with pytest.raises(ArgumentError, match=r"0.o is in one and not in the other"):
        one + tensorlrf.calibrate(attention(), rows(12, 1), skip=["0.o"])
    with pytest.raises(TypeError):
        one + 1  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_weight_is_known_again_in_another_dtype(dtype: torch.dtype) -> None:
    weight = torch.randn(7, 5) * torch.logspace(-6, 2, 5)
    assert not Weight.of(weight).why_not(Weight.of(weight.to(dtype)))
    other = weight * (1 + 0.05 * torch.rand(7, 5).add(0.5))
    assert Weight.of(weight).why_not(Weight.of(other.to(dtype)))


# ---- in a file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "batches"), [(attention(), rows(12, 2)), (convolutions(), images(2))]
)
def test_a_file_has_the_same(model: nn.Module, batches: list[torch.Tensor], tmp_path: Path) -> None:
    moments = moments_of(model, batches)
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    found = Moments.load(path)
    assert found == moments
    assert_same(found, moments)
    assert abs(path.stat().st_size - moments.n_bytes) < 16000  # the header
    (found + moments).save(tmp_path / "twice.safetensors")
    assert_same(Moments.load(tmp_path / "twice.safetensors"), moments + moments)
    again = tmp_path / "again.safetensors"
    found.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_sketches_and_counts_have_their_form_in_a_file(tmp_path: Path) -> None:
    model = wide()
    with pytest.warns(CalibrationWarning, match="sketches serve there"):
        moments = moments_of(model, rows(256, 3), memory_limit=sketched(model))
    moments.save(tmp_path / "sketch.safetensors")
    assert_same(Moments.load(tmp_path / "sketch.safetensors"), moments)
    words = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 16))
    counted = moments_of(words, [torch.randint(40, (2, 9))], include=["embeddings"])
    assert counted.layer("0").form == "counts"
    counted.save(tmp_path / "counts.safetensors")
    assert_same(Moments.load(tmp_path / "counts.safetensors"), counted)


def test_a_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    moments = moments_of(wide(), rows(256, 1))
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    with pytest.raises(FileError, match="exists"):
        moments.save(path)
    (moments + moments).save(path, overwrite=True)
    assert Moments.load(path).batches == 2
    assert os.listdir(tmp_path) == ["moments.safetensors"]


def test_any_flipped_bit_is_told(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    moments = moments_of(model, [torch.rand(9, 3)])
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    good = path.read_bytes()
    draws = torch.Generator().manual_seed(0)
    for at in torch.randint(len(good), (200,), generator=draws).tolist():
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        with pytest.raises(FileFormatError):
            sums(Moments.load(path))
    path.write_bytes(good[:-8])
    with pytest.raises(FileFormatError):
        Moments.load(path)


def test_a_file_that_becomes_another_one_is_told(tmp_path: Path) -> None:
    moments = moments_of(wide(), rows(256, 1))
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    found = Moments.load(path)
    (moments + moments).save(path, overwrite=True)
    with pytest.raises(FileFormatError, match="load them again"):
        sums(found)


def test_a_foreign_file_is_none(tmp_path: Path) -> None:
    tensorlrf.io.save_factors(tensorlrf.svd(torch.ones(4, 4), 1), tmp_path / "f.safetensors")
    with pytest.raises(FileFormatError, match="holds no moments"):
        Moments.load(tmp_path / "f.safetensors")
    with pytest.raises(MissingFileError):
        Moments.load(tmp_path / "missing.safetensors")


# ---- what cannot be ----------------------------------------------------------------------------


def test_bad_arguments_are_told() -> None:
    with pytest.raises(ArgumentError, match="no layer whose moments would serve"):
        tensorlrf.calibrate(nn.Sequential(nn.ReLU()), [torch.rand(2, 2)])
    with pytest.raises(ArgumentError, match="calibration=None"):
        tensorlrf.calibrate(wide(), None)
    with pytest.raises(ArgumentError, match="memory_limit=10 is below"):
        moments_of(wide(), rows(256, 1), memory_limit=10)
    with pytest.raises(ArgumentError, match="the model cannot take batch 1"):
        moments_of(wide(), [torch.rand(2, 256), torch.rand(2, 3)])


# ---- over ranks --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """What two processes have in the end, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    script = str(Path(__file__).with_name("rank.py"))
    store, out = str(folder / "store"), str(folder / "out")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, script, str(k), "2", store, out], env=env)
        for k in range(2)
    ]
    try:
        assert [one.wait(300) for one in running] == [0, 0]
    finally:
        for one in running:
            one.kill()
    return lambda case: [folder / f"out.{case}.{k}" for k in range(2)]


Ranks = Callable[[str], list[Path]]


def test_ranks_have_the_sum_of_all(ranks: Ranks) -> None:
    one, two = ranks("plain")
    assert one.read_bytes() == two.read_bytes()
    assert_same(Moments.load(one), moments_of(attention(), rows(12, 6)), OF_SUMS)


def test_layers_that_part_on_one_rank_have_sums_of_their_own(ranks: Ranks) -> None:
    one, two = ranks("routed")
    assert one.read_bytes() == two.read_bytes()
    assert_same(Moments.load(one), moments_of(routed(), [*one_way(0), *one_way(1)]), OF_SUMS)


def test_sketches_of_ranks_are_merged(ranks: Ranks) -> None:
    one, two = ranks("sketch")
    assert one.read_bytes() == two.read_bytes()
    model = wide()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        limit = sketched(model)
        parts = [moments_of(model, rows(256, 6)[k::2], memory_limit=limit) for k in (0, 1)]
    assert_same(Moments.load(one), parts[0] + parts[1])


def test_images_of_ranks_add_up(ranks: Ranks) -> None:
    one, two = ranks("image")
    assert one.read_bytes() == two.read_bytes()
    model = narrow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        limit = limit_for(model, Form("image", 8))
        whole = moments_of(model, rows(256, 6), memory_limit=limit)
    assert_same(Moments.load(one), whole, OF_SUMS)


def test_ranks_of_different_models_all_say_so(ranks: Ranks) -> None:
    for path in ranks("other"):
        assert "the values of 0.k.weight is" in path.read_text()


def test_a_rank_without_batches_has_the_sums_of_others(ranks: Ranks) -> None:
    one, two = ranks("uneven")
    assert one.read_bytes() == two.read_bytes()
    assert_same(Moments.load(one), moments_of(convolutions(), images(4)), OF_SUMS)


def test_a_rank_alone_has_its_own(ranks: Ranks) -> None:
    for path in ranks("alone"):
        assert_same(Moments.load(path), moments_of(wide(), rows(256, 1)), OF_SUMS)


def test_a_sharded_model_is_never_whole(ranks: Ranks) -> None:
    one, two = ranks("sharded")
    assert one.read_bytes() == two.read_bytes()
    assert_same(Moments.load(one), moments_of(blocks(), rows(12, 4)), OF_SUMS)
    for path in ranks("put"):  # of its six matrices its own, and that which another rank is at
        assert 0 < json.loads(path.read_text()) <= 2


def test_ranks_sum_up_into_one_file(ranks: Ranks) -> None:
    folder = ranks("told")[0].parent
    one, other = folder / "out.undisturbed", folder / "out.disturbed"
    assert one.read_bytes() == other.read_bytes()
    assert_same(Moments.load(one), moments_of(attention(), rows(12, 9)), OF_SUMS)
    assert not list(folder.glob(".*disturbed*"))
    for rank, path in enumerate(ranks("told")):
        cut, alone, there, failed = json.loads(path.read_text())
        assert cut == "OSError: no more"
        assert failed == ("OSError: no more" if rank else "GroupError: rank 1 failed: no more")
        assert alone.startswith("ArgumentError: a run into")
        assert "on another number of processes has not ended" in alone
        assert "exists" in there
