"""A tensor in shards over two ranks: the factors of one, the bytes of the model, errors on all."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.decomposition.large.in_ranks import CALLS, SHAPE
from tests.processes import PYTHONPATH

PROGRAM = Path(__file__).with_name("in_ranks.py")
RANKS = 2


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the ranks found, all in one go: processes are slow to start."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, folder / "store", str(rank), str(RANKS), folder],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        said = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * RANKS, said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("name", CALLS)
def test_factors_are_those_of_one_rank(name: str, told: list[dict[str, Any]]) -> None:
    for one in told:
        rows = {key: row for key, row in one["equal"].items() if key.startswith(f"{name},")}
        assert len(rows) == 4
        for key, row in rows.items():
            # Of float32 twelve sweeps, or eigenvectors a gap of a tenth apart, of sums in another
            # order.
            rounding = 1e-9 if "float64" in key else 2e-3
            assert row["difference"] < rounding, key
            many, alone = row["errors"]
            assert many == pytest.approx(alone, rel=1e-10 if "float64" in key else 1e-5)
            assert row["passes"][0] == row["passes"][1], key


def ring(count: float) -> float:
    """What a rank sends for the sum of so many bytes."""
    return 2 * (RANKS - 1) / RANKS * count


def test_bytes_of_cp_are_those_of_the_model(told: list[dict[str, Any]]) -> None:
    for dtype, b in (("float64", 8), ("float32", 4)):
        for along in (0, 2):
            r, sweeps = 4, 12
            others = sum(SHAPE) - SHAPE[along]
            model = sweeps * ring(r * others * b + 8 * r**2)
            model += 2 * ring(8 * (2 * r**2 + 1))  # after ten sweeps and at the end
            model += (RANKS - 1) * math.ceil(SHAPE[along] / RANKS) * r * b  # the factor, at the end
            for one in told:
                sent = one["equal"][f"cp, {dtype}, {along}"]["bytes"]
                assert sent == pytest.approx(model, rel=0.1)


def test_bytes_of_tucker_are_those_of_the_model(told: list[dict[str, Any]]) -> None:
    ranks = (3, 4, 2, 3)
    for dtype, b in (("float64", 8), ("float32", 4)):
        for along in (0, 2):
            others = [k for k in range(4) if k != along]
            core = math.prod(ranks)
            rows = min(core // ranks[along], math.ceil(SHAPE[along] / RANKS))
            for one in told:
                row = one["equal"][f"tucker, {dtype}, {along}"]
                sweeps = (row["passes"][0] - 5) // 2
                sweep = ring(b * (core + sum(SHAPE[k] * core // ranks[k] for k in others)))
                sweep += 8 * (RANKS - 1) * rows * core // ranks[along] + ring(8)
                # The start within twice as many directions.
                wide = [min(n, 2 * r) for n, r in zip(SHAPE, ranks, strict=True)]
                columns = math.prod(wide) // wide[along]
                count = math.ceil(SHAPE[along] / RANKS)
                start = ring(b * math.prod(wide)) + 8 * (RANKS - 1) * count * columns
                if dtype == "float32":
                    start += ring(8 * sum(SHAPE[k] ** 2 for k in others))
                else:
                    start += (RANKS - 1) * 8 * sum(SHAPE[k] ** 2 for k in others)
                end = (RANKS - 1) * count * ranks[along] * b
                assert row["bytes"] == pytest.approx(start + sweeps * sweep + end, rel=0.1)


def test_bytes_of_trains_and_matrices(told: list[dict[str, Any]]) -> None:
    for one in told:
        # Grams of the sides of modes 3 and 2, of rank 4 behind the latter; of mode 1, of 7, the
        # side is longer than the rows that there are, which go as they are; the core of mode 0.
        sides = (10, 9 * 4)
        model = ring(8 * sum(side**2 for side in sides)) + 8 * 11 * 15 * 7 + 11 * 3 * 4
        assert one["equal"]["tt, float32, 0"]["bytes"] == pytest.approx(model, rel=0.1)
        whole, width = 15 * 9 * 10, 15
        model = 3 * ring(8 * whole * width) + 8 * width**2 + 11 * 5 * 4
        assert one["equal"]["sketch, float32, 0"]["bytes"] == pytest.approx(model, rel=0.1)
        model = ring(8 * whole**2) + 11 * 5 * 4
        assert one["equal"]["gram, float32, 0"]["bytes"] == pytest.approx(model, rel=0.1)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("rank", "ranks disagree: rank 0 of the group asks for cp(rank=4"),
        ("seed", "random_state=1"),
        ("word", "solver='hooi'"),
        ("init", "checksum"),
        ("limit", "memory_limit=1000000001"),
        ("small", "give memory_limit="),
        ("nan", "rank 1 of the group: tensor contains NaN in slab 11 to 20 along mode 0"),
        ("whole", "every rank has whole"),
        ("partial", "redistribute(placements=...)"),
        ("twice", "sharded more than once"),
        ("in memory", "tensorlrf.large has cp"),
        ("along", "a DTensor knows along="),
        ("pieces", "ranks disagree"),
        ("integers", "rank 1 of the group: tensor has dtype torch.int64"),
    ],
)
def test_what_cannot_be_is_said_on_every_rank(
    name: str, wanted: str, told: list[dict[str, Any]]
) -> None:
    for one in told:
        assert wanted in one["refused"].get(name, "nothing"), one["refused"].get(name)


def test_pieces_of_any_size_from_anywhere(told: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(told):
        found = one["others"]
        assert found["shape"] == list(SHAPE)
        assert found["own"] == [[0, 5], [5, 21]][rank]
        assert found["grid"] < 1e-9
        assert found["file"] < 1e-9
        assert found["few cp"] < 1e-10
        assert found["few sketch"] < 1e-10  # a single row has rank one
        assert 0 < found["few tucker"] < 1
        assert 0 < found["few tt"] < 1


def test_without_a_seed_ranks_draw_one_for_all(told: list[dict[str, Any]]) -> None:
    first, second = told[0]["others"]["drawn"]
    assert first != second
    assert told[0]["others"]["drawn"] == told[1]["others"]["drawn"]


def test_a_rank_that_is_lost_is_an_error_and_no_wait(told: list[dict[str, Any]]) -> None:
    assert "a rank of the group is gone" in told[0]["lost"]
