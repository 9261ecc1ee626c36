"""Models and pipelines of diffusers on factored layers: run by test_slow.py in a process of its
own, which has diffusers on its path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import with_diffusers as script
from diffusers import DDIMPipeline, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tensorlrf
import tensorlrf.diffusers
from tensorlrf.errors import FileFormatError, UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours

QUICK: dict[str, Any] = {"allocation": "uniform", "metric": "outputs", "progress": False}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """A UNet on factors, one layer of another format than low rank and one left dense."""
    unet = script.pipeline(16).unet
    method = {"*.attentions.0.to_q": "kron", "*.to_k": None, "*": "svd"}
    made, _ = tensorlrf.compress(unet, keep_params=0.6, method=method, **QUICK)
    return made


@pytest.fixture
def folder(small: nn.Module, tmp_path: Path) -> Path:
    tensorlrf.save(small, tmp_path / "unet")
    return tmp_path / "unet"


def output(model: Any) -> Tensor:
    with torch.no_grad():
        sample: Tensor = model(**script.batches(1)[0]).sample
    return sample


def test_a_folder_is_read_by_both(small: Any, folder: Path, tmp_path: Path) -> None:
    expected = output(small)
    assert torch.equal(output(UNet2DModel.from_pretrained(folder)), expected)
    assert torch.equal(output(tensorlrf.load(folder)), expected)
    blank = UNet2DModel.from_config(UNet2DModel.load_config(folder))
    assert torch.equal(output(tensorlrf.load(folder, blank)), expected)
    small.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    again = UNet2DModel.from_pretrained(tmp_path / "shards")
    assert torch.equal(output(again), expected)
    assert torch.equal(output(tensorlrf.load(tmp_path / "shards")), expected)
    half = UNet2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert again.half().dtype == torch.float16


def test_a_pipeline_is_saved_loaded_and_run(small: Any, tmp_path: Path) -> None:
    whole = script.pipeline(16)
    whole.unet = small
    whole.save_pretrained(tmp_path / "whole")
    again = DDIMPipeline.from_pretrained(tmp_path / "whole")
    assert np.array_equal(script.pictures(again), script.pictures(whole))


def test_products_of_few_rows_round_as_those_of_the_saved_model(tmp_path: Path) -> None:
    # Tensors mapped at four bytes past a multiple of 64 were 1e-6 apart with one or two pictures.
    whole = script.pipeline()
    whole.unet, _ = tensorlrf.compress(whole.unet, keep_params=0.5, **QUICK)
    whole.save_pretrained(tmp_path / "whole")
    again = DDIMPipeline.from_pretrained(tmp_path / "whole")
    assert all(p.data_ptr() % 64 == 0 for p in again.unet.parameters())
    assert np.array_equal(script.pictures(again), script.pictures(whole))


def test_a_conditioned_model(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=8,
            block_out_channels=(16, 32), cross_attention_dim=24, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ).eval()  # fmt: skip
    made, report = tensorlrf.compress(unet, keep_params=0.6, **QUICK)
    draws = torch.Generator("cpu").manual_seed(0)
    x, words = torch.randn(2, 4, 8, 8, generator=draws), torch.randn(2, 5, 24, generator=draws)
    assert any("attn2.to_k" in row.name for row in report.layers if row.factored)
    tensorlrf.save(made, tmp_path / "m")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(again(x, 7, words).sample, made(x, 7, words).sample)


def test_a_dense_model_is_saved_as_any_other(small: Any, folder: Path, tmp_path: Path) -> None:
    dense = tensorlrf.densify(UNet2DModel.from_pretrained(folder))
    dense.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    found, expected = output(UNet2DModel.from_pretrained(tmp_path / "dense")), output(small)
    # A hundred roundings of float32: one product is in the place of two.
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_factors_train(folder: Path) -> None:
    model = UNet2DModel.from_pretrained(folder).train()
    model(**script.batches(1)[0]).sample.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    held = load_file(folder / WEIGHTS)
    name = next(key for key in held if key.endswith(".left"))
    without = tmp_path / "without"
    shutil.copytree(folder, without)
    (without / "tensorlrf.safetensors").unlink()
    cases = [
        ({k: t for k, t in held.items() if k != name}, f"'{name}' of a factored layer is missing"),
        ({**held, name: held[name][:, :1].contiguous()}, "by the ranks in|as its layer needs"),
        ({k: t for k, t in held.items() if k != "conv_out.bias"}, "'conv_out.bias'"),
    ]
    for tensors, said in cases:
        save_file(tensors, without / WEIGHTS, {"format": "pt"})
        for read in (UNet2DModel.from_pretrained, tensorlrf.load):
            with pytest.raises(FileFormatError, match=said):
                read(without)
    (without / WEIGHTS).unlink()
    with pytest.raises(FileFormatError, match=f"has no {WEIGHTS}"):
        tensorlrf.load(without)
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model"):
        UNet2DModel.from_pretrained(without)


@pytest.mark.parametrize("version", [0, 99])
def test_other_versions_are_refused(version: int, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format_version"] = version
    (folder / "config.json").write_text(json.dumps(config))
    for read in (UNet2DModel.from_pretrained, tensorlrf.load):
        with pytest.raises(FileFormatError, match=f"format version {version}"):
            read(folder)


def test_a_class_that_is_none_of_its_models(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name in ("DDIMPipeline", "Nothing", 3):
        (folder / "config.json").write_text(json.dumps({**config, "_class_name": name}))
        with pytest.raises(UnsupportedError, match="is no model of diffusers"):
            tensorlrf.load(folder)


def test_a_pickle_is_refused(small: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="safe_serialization=False"):
        small.save_pretrained(tmp_path / "x", safe_serialization=False)
