"""The harness of questions: texts split by file, refilled batches, pairs, and the table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLES = str(Path(__file__).parents[2] / "examples")
if EXAMPLES not in sys.path:
    sys.path.insert(0, EXAMPLES)

# The benchmarks import the examples by their file names, so the path comes first.
from bench import how_much, own_cnn_cp, question_models, question_texts, questions  # noqa: E402


@pytest.mark.slow
def test_no_file_is_in_two_sets_and_every_part_is_in_each() -> None:
    splits = question_texts.docstrings()
    files = [set(split.files) for split in splits.values()]
    assert all(not a & b for k, a in enumerate(files) for b in files[:k])
    for split in splits.values():
        assert set(split.labels) == set(range(len(question_texts.PARTS)))
        assert len(split.texts) == len(split.labels) == len(split.files)
    texts = [text for split in splits.values() for text in split.texts]
    assert not any("scipy" in text for text in texts)


def test_other_words_take_the_place_of_all_but_first_and_last() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    ids = torch.tensor([[101, 7, 7, 7, 102], [101, 7, 102, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask}
    (made,) = question_models.refilled([batch], torch.tensor([1, 2, 3]))
    assert made["input_ids"].tolist() == [[101, 1, 2, 3, 102], [101, 1, 102, 0, 0]]
    assert made["attention_mask"] is mask
    assert int(ids[0, 1]) == 7


def row(right: list[float], groups: list[int]) -> dict[str, Any]:
    scores = {"right": right, "nats": [1.0 - r for r in right], "cosine": right}
    return {"scores": scores, "groups": groups, "gone": 2_000_000, "fit_s": 3.0}


def test_a_difference_is_one_of_pairs_and_its_interval_one_over_groups() -> None:
    draws = np.random.default_rng(0)
    right = draws.integers(0, 2, 40).astype(float)
    groups = list(np.repeat(range(10), 4))
    base = row(list(right), groups)
    assert questions.figures(row(list(right - 0.25), groups), "right", base).startswith(
        "-0.250 [-0.250, -0.250]"
    )
    alike = list(np.repeat(draws.integers(0, 2, 10), 4).astype(float))
    wide = width(questions.figures(row(alike, groups), "right"))
    assert wide > 1.4 * width(questions.figures(row(alike, list(range(40))), "right"))


def width(said: str) -> float:
    low, high = (float(x) for x in said.partition("[")[2].rstrip("]").split(", "))
    return high - low


def test_every_row_that_is_there_has_a_line() -> None:
    groups = [0, 0, 1, 1]
    rows = {spec: row([1.0, 0.0, 1.0, 1.0], groups) for spec in questions.ROWS}
    text = questions.markdown(rows, {"device": "X"})
    lines = [line for line in text.splitlines() if line.startswith("| 0.")]
    assert len(lines) == len(questions.ROWS) - 1
    fewer = {spec: rows[spec] for spec in ("order:halves:0.5", "part:words:0.25")}
    assert questions.markdown(fewer, {"device": "X"}).count("\n| 0.") == 2


def test_the_row_to_refine_is_the_one_with_the_least_loss_on_fresh_pictures() -> None:
    rows = {
        "dense": {"valid": {"nats": 0.0}, "test": {"nats": 0.0}},
        "uniform:512": {"valid": {"nats": 0.3}, "test": {"nats": 0.1}},
        "fisher:512": {"valid": {"nats": 0.2}, "test": {"nats": 0.9}},
    }
    assert own_cnn_cp.best(rows) == "fisher:512"


RESULTS = Path(how_much.__file__).parent / "results" / "cpu"


def test_a_picture_of_the_same_results_is_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    how_much.draw_refinements(RESULTS, first)
    how_much.draw_refinements(RESULTS, second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_pictures_are_drawn_of_whatever_results_there_are(tmp_path: Path) -> None:
    for folder in (tmp_path, RESULTS):
        how_much.draw_frontiers(folder, tmp_path / "frontiers.png")
