"""Pictures, crops, and the classifier on them."""

from __future__ import annotations

import efficientnet
import numpy as np
import pictures
import pytest
import torch
from PIL import Image
from torch import nn

pytestmark = pytest.mark.slow  # reads the packages of requirements-examples.txt


def test_splits_share_no_picture() -> None:
    sets = {name: pictures.picture_set(name) for name in pictures.SKIMAGE}
    names = {name: {p.name for p in found} for name, found in sets.items()}
    assert not names["calibration"] & names["test"]
    for found in sets.values():
        assert len(found) == 15
        assert sum(p.label is not None for p in found) == 10
        assert all(p.image.mode == "RGB" and min(p.image.size) >= 224 for p in found)
    with pytest.raises(ValueError, match=r"calibration, test.*'train'"):
        pictures.picture_set("train")


def _ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    columns = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    rows = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack((columns, rows, 0 * rows), -1).astype(np.uint8))


def test_crops_repeat_and_lie_inside() -> None:
    image = _ramp(400, 300)
    made = pictures.crops(image, 12, seed=3)
    assert made.shape == (12, 224, 224, 3)
    assert made.dtype == np.uint8
    assert np.array_equal(made, pictures.crops(image, 12, seed=3))
    assert not np.array_equal(made, pictures.crops(image, 12, seed=4))
    assert (made[..., 2] == 0).all()  # nothing from beyond the picture
    slopes = made[:, 100, -1, 0].astype(int) - made[:, 100, 0, 0]
    assert (slopes > 0).any()
    assert (slopes < 0).any()  # some are mirrored


def test_the_first_crop_is_the_centre_where_asked() -> None:
    image = _ramp(400, 300)
    first = pictures.crops(image, 2, seed=0, centre=True)[0].astype(float)
    assert first.mean((0, 1))[:2] == pytest.approx((127, 127), abs=2)
    side = 0.875 * 300
    spread = np.ptp(first[112, :, 0])
    assert spread == pytest.approx(255 * side / 400, abs=3)
    with pytest.raises(ValueError, match="got 0"):
        pictures.crops(image, 0, seed=0)


def test_preprocess_is_the_models_own() -> None:
    pixels = np.array([0, 127, 255], np.uint8).reshape(1, 1, 1, 3)
    x = efficientnet.preprocess(pixels)
    assert torch.equal(x.flatten(), torch.tensor([-127 / 128, 0, 1]))
    for wrong in (np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match="uint8"):
            efficientnet.preprocess(wrong)


def test_agreement_counts_crops() -> None:
    a = np.array([[1, 2], [3, 4], [5, 6]])
    assert efficientnet.agreement(a, a) == (1.0, (1.0, 1.0))
    share, (low, high) = efficientnet.agreement(a, np.array([[1, 2], [3, 0], [0, 0]]))
    assert share == 0.5
    assert 0 <= low < share < high <= 1


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return efficientnet.load_efficientnet()


def test_the_architecture_is_bare_and_fits(model: nn.Module) -> None:
    bare = efficientnet.architecture()
    assert all(p.is_meta for p in bare.parameters())
    shapes = {name: p.shape for name, p in model.state_dict().items()}
    assert {name: p.shape for name, p in bare.state_dict().items()} == shapes


def test_the_dense_classifier_knows_the_labelled_pictures(model: nn.Module) -> None:
    found = efficientnet.classes(model, efficientnet.unseen_crops(1))
    right, of = efficientnet.accuracy(found)
    assert of == 10
    # top-1 on ImageNet is .75: 4 binomial deviations below are 2 of 10; chance is 1 in 1,000
    assert right >= 2


def test_calibration_mixes_pictures() -> None:
    batches = efficientnet.calibration_batches(2)
    assert sum(len(batch) for batch in batches) == 30
    assert batches[0].shape == (16, 3, 224, 224)
    first, second = batches[0][0], batches[0][1]
    assert not torch.equal(first, second)
