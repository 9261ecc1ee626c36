"""Ten architectures of timm, small and random, and the model of its registry that each is a small
one of. Nothing is downloaded.

timm imports torchvision. Both lie in a folder beside the environment, which only a process that
asks for timm has on its path: transformers uses torchvision where it finds it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.architectures.inputs import ROWS, Architecture, Batch

FOLDER = Path(sys.prefix) / "timm"
"""`make .venv/timm` fills it."""

EDGE, CLASSES = 32, 9

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_DECLARED: list[torch.library.Library] = []
"""What holds the declarations; they go with it."""


@cache
def timm() -> Any:
    """The package.

    torchvision's wheel is built for CUDA. Beside a torch without, its operators are not there, and
    its import ends at the description of two of them. No model here calls them, so these two are
    declared, without code.
    """
    if not FOLDER.is_dir():
        raise ModuleNotFoundError(
            f"there is no {FOLDER}; `make .venv/timm` prepares it", name="timm"
        )
    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}{_BOXES}")
        _DECLARED.append(library)
    sys.path.insert(0, str(FOLDER))
    import timm as package

    return package


@dataclass(frozen=True)
class OfTimm(Architecture):
    """And the name of a large one in timm's registry."""

    large: str = ""

    def at_full_size(self) -> nn.Module:
        """The large one, built without values."""
        with torch.device("meta"):
            model: nn.Module = timm().create_model(self.large)
        return model.eval()


def _picture(draws: torch.Generator) -> Batch:
    return {"x": torch.randn(ROWS, 3, EDGE, EDGE, generator=draws)}


def _named(large: str, small: str = "", **options: Any) -> OfTimm:
    """A model of the registry with other sizes."""
    return OfTimm(
        lambda: timm().create_model(small or large, num_classes=CLASSES, **options), _picture, large
    )


def _resnet() -> Any:
    """Pre-activation, with weights that are standardised in every forward, as in BiT."""
    layers = timm().layers
    return timm().models.resnetv2.ResNetV2(
        layers=(1, 1, 1, 1), channels=(32, 64, 96, 128), num_classes=CLASSES, stem_chs=16,
        conv_layer=layers.StdConv2d, norm_layer=partial(layers.GroupNormAct, num_groups=4),
    )  # fmt: skip


def _mobilenet() -> Any:
    """Inverted bottlenecks with squeeze-and-excitation, and a head behind the pooling."""
    blocks = [
        ["ds_r1_k3_s2_e1_c16_se0.25_nre"],
        ["ir_r1_k5_s2_e4_c24_se0.25", "ir_r1_k3_s1_e3_c24"],
        ["ir_r2_k3_s1_e3_c40_se0.25"],
        ["cn_r1_k1_s1_c96"],
    ]
    models = timm().models
    return models.mobilenetv3.MobileNetV3(
        models._efficientnet_builder.decode_arch_def(blocks), num_classes=CLASSES,
        stem_size=16, num_features=128, act_layer=nn.Hardswish,
    )  # fmt: skip


def _mixer() -> Any:
    return timm().models.mlp_mixer.MlpMixer(
        num_classes=CLASSES, img_size=EDGE, patch_size=8, num_blocks=2, embed_dim=48
    )


def _regnet() -> Any:
    """Grouped convolutions with squeeze-and-excitation, in stages of widths 16, 32, 64, 128."""
    regnet = timm().models.regnet
    sizes = regnet.RegNetCfg(
        depth=6, w0=16, wa=16.0, wm=2.0, group_size=8, se_ratio=0.25, stem_width=16
    )
    return regnet.RegNet(sizes, num_classes=CLASSES)


ARCHITECTURES: dict[str, OfTimm] = {
    "ViT": _named(
        "vit_base_patch16_224", img_size=EDGE, patch_size=8, embed_dim=48, depth=2, num_heads=4
    ),
    "Swin": _named(
        "swin_tiny_patch4_window7_224",
        img_size=EDGE,
        embed_dim=24,
        depths=(1, 1),
        num_heads=(2, 4),
        window_size=4,
    ),
    "Mixer": OfTimm(_mixer, _picture, "mixer_b16_224"),
    "ConvNeXt": _named("convnext_tiny", depths=(1, 1, 1, 1), dims=(16, 32, 48, 64)),
    "ResNetV2": OfTimm(_resnet, _picture, "resnetv2_50x1_bit"),
    "RegNet": OfTimm(_regnet, _picture, "regnety_032"),
    "DenseNet": _named("densenet121", growth_rate=12, block_config=(2, 2, 2)),
    "EfficientNet": _named("efficientnet_b0", small="test_efficientnet"),
    "MobileNetV3": OfTimm(_mobilenet, _picture, "mobilenetv3_large_100"),
    # of both kinds: convolutions, then attention in windows and over a grid
    "MaxViT": _named(
        "maxvit_tiny_rw_224",
        img_size=EDGE,
        embed_dim=(24, 48),
        depths=(1, 1),
        block_type=("M", "M"),
        stem_width=16,
        transformer_dim_head=8,
        transformer_window_size=(4, 4),
    ),
}
