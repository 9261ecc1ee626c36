"""Boxes from maps, matching, F1 and the bootstrap."""

from __future__ import annotations

import craft
import detection
import numpy as np
import pytest
import scenes
from detection import Counts
from hypothesis import given, settings
from hypothesis import strategies as st

BOXES = np.array([[10, 10, 50, 30], [100, 10, 160, 40], [10, 100, 60, 120]], dtype=np.float64)
counts = st.builds(
    lambda matched, extra, missed: Counts(matched, matched + extra, matched + missed),
    st.integers(0, 20),
    st.integers(0, 5),
    st.integers(0, 5),
)


def _right(pixels: float) -> np.ndarray:
    return np.array([pixels, 0.0, pixels, 0.0])


def test_found_equal_true_is_perfect() -> None:
    found = detection.count_words(BOXES[::-1], BOXES)
    assert found == Counts(3, 3, 3)
    assert found.precision == found.recall == found.f1 == 1.0


def test_nothing_found_scores_zero() -> None:
    none = detection.count_words(np.empty((0, 4)), BOXES)
    assert none == Counts(0, 0, 3)
    assert none.precision == none.recall == none.f1 == 0.0
    assert detection.count_words(BOXES, np.empty((0, 4))).f1 == 0.0
    assert Counts(0, 0, 0).f1 == 0.0


def test_overlap_of_known_boxes() -> None:
    a = np.array([[0, 0, 2, 2]], dtype=np.float64)
    b = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [5, 5, 6, 6]], dtype=np.float64)
    assert np.allclose(detection.pairwise_iou(a, b), [[1, 1 / 3, 0, 0]], rtol=1e-15)


def test_matching_is_one_to_one_and_best_first() -> None:
    true = BOXES[:1]
    near, nearer = true + _right(2), true + _right(1)
    assert detection.match(np.vstack((near, nearer)), true) == [(1, 0)]
    assert detection.count_words(np.vstack((near, nearer)), true) == Counts(1, 2, 1)


def test_overlap_below_half_is_no_match() -> None:
    true = np.array([[0, 0, 30, 10]], dtype=np.float64)
    assert detection.match(true + _right(10), true) == [(0, 0)]  # 20 of 40
    assert detection.match(true + _right(11), true) == []


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(counts, min_size=1, max_size=8))
def test_f1_is_the_harmonic_mean_and_adds_up(per_scene: list[Counts]) -> None:
    whole = detection.total(per_scene)
    assert whole.matched == sum(c.matched for c in per_scene)
    p, r = whole.precision, whole.recall
    harmonic = 2 * p * r / (p + r) if p + r else 0.0
    assert whole.f1 == pytest.approx(harmonic, rel=1e-14)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.lists(counts, min_size=1, max_size=8))
def test_interval_lies_between_the_worst_and_the_best_scene(per_scene: list[Counts]) -> None:
    low, high = detection.bootstrap_f1(per_scene, n_resamples=200)
    scores = [c.f1 for c in per_scene]
    assert min(scores) - 1e-12 <= low <= high <= max(scores) + 1e-12
    assert detection.bootstrap_f1_difference(per_scene, per_scene, n_resamples=200) == (0.0, 0.0)


def test_interval_of_equal_scenes_is_a_point() -> None:
    low, high = detection.bootstrap_f1([Counts(9, 10, 10)] * 12)
    assert low == pytest.approx(0.9) == high


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    # scenes of 20 words, each found with probability .9 and nothing else found:
    # F1 of the population is 2 * .9 / (1 + .9); a 90% interval, so 180 of 200 expected,
    # 4 binomial deviations below that is 163
    truth, rng, covered = 2 * 0.9 / 1.9, np.random.default_rng(0), 0
    for seed in range(200):
        hits = rng.binomial(20, 0.9, size=30)
        low, high = detection.bootstrap_f1(
            [Counts(int(h), int(h), 20) for h in hits], level=0.9, n_resamples=300, seed=seed
        )
        covered += low <= truth <= high
    assert covered >= 163


def test_paired_difference_is_tighter_than_two_intervals() -> None:
    rng = np.random.default_rng(1)
    first = [Counts(int(m), 20, 20) for m in rng.integers(8, 20, size=30)]
    second = [Counts(c.matched - 1, 20, 20) for c in first]
    low, high = detection.bootstrap_f1_difference(first, second)
    assert low == pytest.approx(0.05) == high


def test_bootstrap_refuses_other_scenes_and_none() -> None:
    with pytest.raises(ValueError, match="same scenes"):
        detection.bootstrap_f1_difference([Counts(1, 1, 1)], [Counts(1, 1, 2)])
    with pytest.raises(ValueError, match="at least one scene"):
        detection.bootstrap_f1([])


def test_two_characters_joined_by_affinity_are_one_word() -> None:
    region, affinity = np.zeros((40, 60)), np.zeros((40, 60))
    region[10:20, 10:18] = region[10:20, 24:32] = 0.9
    assert len(detection.word_boxes(region, affinity)) == 2
    affinity[13:17, 16:26] = 0.8
    (box,) = detection.word_boxes(region, affinity)
    assert (box[:2] <= 20).all()
    assert (box[2:] >= (64, 40)).all()


def test_unsure_and_tiny_components_are_dropped() -> None:
    region = np.zeros((40, 60))
    region[10:20, 10:18] = 0.6  # above LOW_TEXT, below TEXT_THRESHOLD
    region[30:32, 30:33] = 0.9  # six pixels
    assert detection.word_boxes(region, np.zeros((40, 60))).shape == (0, 4)


def test_boxes_stay_inside_the_image() -> None:
    region = np.zeros((40, 60))
    region[0:10, 50:60] = 0.9
    ((x0, y0, x1, y1),) = detection.word_boxes(region, np.zeros((40, 60)))
    assert (y0, x1) == (0, 120)
    assert 0 < x0 < x1
    assert y0 < y1 < 80


def test_the_detector_finds_the_words_of_a_scene() -> None:
    scene = scenes.make_scene("validation", 0)
    found = detection.detect(craft.load_craft(), scene.image)
    assert detection.count_words(found, scene.boxes).f1 > 0.9


def test_drawing_leaves_the_scene_alone() -> None:
    scene = scenes.make_scene("validation", 0)
    before = scene.image.copy()
    drawn = detection.draw_boxes(scene.image, scene.boxes[:2] + 1, scene.boxes)
    assert drawn.size == (scenes.WIDTH, scenes.HEIGHT)
    assert np.array_equal(scene.image, before)
    assert not np.array_equal(np.asarray(drawn), before)
    assert detection.side_by_side(drawn, drawn).size[0] > 2 * scenes.WIDTH
