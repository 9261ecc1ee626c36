"""The detector: its published size, its maps, and what folding and bad input do."""

from __future__ import annotations

import craft
import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def model() -> craft.Craft:
    return craft.load_craft()


def _pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_size_is_the_published_one(model: craft.Craft) -> None:
    assert sum(p.numel() for p in model.parameters()) == 20_770_466
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(max(conv.kernel_size) > 1 for conv in convs) == 20
    assert not model.training


def test_maps_have_half_the_resolution(model: craft.Craft) -> None:
    with torch.inference_mode():
        maps = model(craft.normalize(_pixels(64, 96)))
    assert maps.shape == (1, 2, 32, 48)
    assert torch.isfinite(maps).all()


def test_folding_batchnorm_keeps_the_function_and_the_model(model: craft.Craft) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = craft.fold_batchnorm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_folding_batchnorm_is_exact() -> None:
    model = craft.load_craft().double()
    x = craft.normalize(_pixels(64, 64)).double()
    with torch.inference_mode():
        ours, theirs = craft.fold_batchnorm(model)(x), model(x)
    # only rounding is left: 22 layers, sums of at most 9 * 512 terms
    assert (ours - theirs).abs().max() <= 22 * 9 * 512 * torch.finfo(torch.float64).eps


def test_normalize_is_the_imagenet_one_and_channels_last() -> None:
    pixels = _pixels(32, 64)
    x = craft.normalize(pixels)
    assert x.shape == (1, 3, 32, 64)
    assert x.is_contiguous(memory_format=torch.channels_last)
    mean = torch.tensor(craft.IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(craft.IMAGENET_STD)[:, None, None]
    back = ((x[0] * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0)
    assert torch.equal(back, torch.from_numpy(pixels))


def test_normalize_takes_a_batch() -> None:
    pair = np.stack([_pixels(32, 32), _pixels(32, 32)])
    assert torch.equal(craft.normalize(pair)[1:], craft.normalize(pair[1]))


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (np.zeros((40, 64, 3), np.uint8), "multiples of 32"),
        (np.zeros((32, 32, 3), np.float32), "uint8"),
        (np.zeros((32, 32, 4), np.uint8), "uint8"),
        (np.zeros((32, 32), np.uint8), "uint8"),
    ],
)
def test_normalize_refuses_what_the_net_cannot_take(pixels: np.ndarray, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        craft.normalize(pixels)
