"""What the demo and its benchmark share: the detector, its inputs, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from craft import Craft, fold_batchnorm, load_craft, normalize
from scenes import Scene, make_scenes
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tensorlrf.ops import time_calls

FIRST_CONV = "basenet.slice1.0"
"""Three input channels: 1,728 parameters, and nothing to be won there."""

SKIP = (FIRST_CONV, "basenet.slice5.2", "upconv?.conv.0", "conv_cls.[68]")
"""Besides it the convolutions of one element, which hold little: it is all about the 3 x 3 ones."""

N_CALIBRATION = 12


def load_detector() -> Craft:
    """CRAFT in eval mode and channels_last, its batch norms folded into the convolutions.

    Folding is exact, and both the dense and the compressed detector are then measured without
    them. It also makes the error of a layer's outputs the error after normalisation.
    """
    return fold_batchnorm(load_craft()).eval().to(memory_format=torch.channels_last)


def as_input(scenes: Sequence[Scene]) -> Tensor:
    """(B, 3, H, W), channels_last."""
    stacked = torch.cat([normalize(scene.image) for scene in scenes])
    return stacked.contiguous(memory_format=torch.channels_last)


def calibration_batches(n_scenes: int = N_CALIBRATION) -> list[Tensor]:
    """One scene a batch."""
    return [as_input([scene]) for scene in make_scenes("calibration", n_scenes)]


def flops(model: nn.Module, x: Tensor) -> int:
    """2 x multiply-adds of one pass, counted while it runs."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def latency(
    models: Mapping[str, nn.Module], x: Tensor, *, seconds: float = 30.0
) -> dict[str, float]:
    """Median seconds of one pass of each model, taken in turn so that a drift meets all alike."""

    def call(model: nn.Module) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return model(x)

        return run

    timings = time_calls({name: call(m) for name, m in models.items()}, seconds=seconds)
    return {name: timings.median(name) for name in models}
