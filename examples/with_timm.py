"""A classifier of timm on its factors, by the calls of timm: EfficientNet-lite0.

    python examples/with_timm.py

The published weights come from the package that examples/efficientnet.py reads, and have the order
of timm's. Needs timm and torchvision, and the packages of requirements-examples.txt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import efficientnet
import timm
import torch
from common import OUTPUT, call, parameters
from pictures import Picture, crops, picture_set
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

import tensorlrf

NAME = "tf_efficientnet_lite0"
SKIP = ["classifier", "conv_stem", "*.conv_dw"]  # what is left: 1 x 1 convolutions


def load_classifier() -> nn.Module:
    """The model of timm's registry in eval mode."""
    model = timm.create_model(NAME).eval()
    values = efficientnet.load_efficientnet().state_dict().values()
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
    return model


def preprocessing(model: nn.Module) -> Callable[[Image.Image], Tensor]:
    """As timm does it for this model: picture -> (3, 224, 224)."""
    return create_transform(**resolve_data_config({}, model=model))


def calibration_batches(transform: Callable[[Image.Image], Tensor], n_crops: int) -> list[Tensor]:
    """Random crops of pictures that are not tested on; a batch has one of each picture."""
    made = [crops(p.image, n_crops, seed) for seed, p in enumerate(picture_set("calibration"))]
    return [
        torch.stack([transform(Image.fromarray(of_one[k])) for of_one in made])
        for k in range(n_crops)
    ]


def classes(model: nn.Module, transform: Callable, pictures: Sequence[Picture]) -> list[int]:
    return [int(call(model, transform(p.image)[None]).argmax()) for p in pictures]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, default=0.8, help="share of parameters (default .8)")
    parser.add_argument("--crops", type=int, default=16, help="of each picture to fit to")
    parser.add_argument("--output", type=Path, default=OUTPUT / "with_timm.safetensors")
    given = parser.parse_args(arguments)
    given.output.parent.mkdir(parents=True, exist_ok=True)

    model = load_classifier()
    transform = preprocessing(model)
    small, _ = tensorlrf.compress(
        model, keep_params=given.keep, calibration=calibration_batches(transform, given.crops),
        skip=SKIP, allocation="uniform", metric="outputs",  # quick; the defaults lose less
    )  # fmt: skip
    tensorlrf.save(small, given.output, overwrite=True)
    again = tensorlrf.load(given.output, timm.create_model(NAME)).eval()
    print(f"parameters: {parameters(model):,} to {parameters(again):,}")

    unseen = picture_set("test")
    before, after = (classes(one, transform, unseen) for one in (model, again))
    same = sum(a == b for a, b in zip(before, after, strict=True))
    print(f"same class as the dense model on {same} of {len(unseen)} unseen pictures")
    x = transform(unseen[0].image)[None]
    apart = float((call(again, x) - call(small, x)).abs().max())
    print(f"outputs of the model that was saved and loaded differ by at most {apart}")
    again.reset_classifier(0)
    print(f"without its classifier it gives features {tuple(call(again, x).shape)}")


if __name__ == "__main__":
    main()
