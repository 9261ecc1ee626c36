"""Scenes repeat, their boxes hold the ink, and no split shares anything with another."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import scenes


def test_the_same_scene_whenever_asked_for() -> None:
    first, again = scenes.make_scene("test", 3), scenes.make_scene("test", 3)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    assert first.words == again.words
    assert not np.array_equal(first.image, scenes.make_scene("test", 4).image)


@pytest.mark.parametrize("name", scenes.SPLITS)
def test_boxes_lie_inside_and_apart(name: str) -> None:
    for scene in scenes.make_scenes(name, 3):
        assert scene.image.shape == (scenes.HEIGHT, scenes.WIDTH, 3)
        assert scene.image.dtype == np.uint8
        assert len(scene.boxes) == len(scene.words) > 0
        assert (scene.boxes[:, :2] >= 0).all()
        assert (scene.boxes[:, 2:] <= (scenes.WIDTH, scenes.HEIGHT)).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
        for a, b in combinations(scene.boxes, 2):
            gap = np.maximum(a[:2] - b[2:], b[:2] - a[2:]).max()
            assert gap >= scenes.MARGIN


def test_all_ink_lies_in_the_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    written = scenes.make_scene("calibration", 0)
    monkeypatch.setattr(scenes, "PLACEMENTS", 0)
    bare = scenes.make_scene("calibration", 0)
    changed = (written.image != bare.image).any(axis=-1)
    for x0, y0, x1, y1 in written.boxes.astype(int):
        assert changed[y0:y1, x0:x1].any()
        changed[y0:y1, x0:x1] = False
    assert not changed.any()


@pytest.mark.parametrize("pair", list(combinations(scenes.SPLITS, 2)))
def test_splits_share_nothing(pair: tuple[str, str]) -> None:
    a, b = (scenes.SPLITS[name] for name in pair)
    assert a.seed != b.seed
    assert not set(a.fonts) & set(b.fonts)
    assert not set(a.pictures) & set(b.pictures)
    assert not set(scenes.words_of(pair[0])) & set(scenes.words_of(pair[1]))


def test_the_test_split_gives_five_hundred_words() -> None:
    made = list(scenes.scenes_with_words("test", 500))
    assert sum(len(scene.words) for scene in made) >= 500
    assert sum(len(scene.words) for scene in made[:-1]) < 500
    assert len(made) <= 40


def test_bad_names_and_numbers() -> None:
    with pytest.raises(ValueError, match=r"calibration, validation, test.*'tset'"):
        scenes.make_scene("tset", 0)
    with pytest.raises(ValueError, match="-1"):
        scenes.make_scene("test", -1)
