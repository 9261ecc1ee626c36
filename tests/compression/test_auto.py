"""method="auto": of the candidates at one share, the one with the least held-out error."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tensorlrf
from tensorlrf import CP, SVD, Auto, Tucker, compress, plan
from tensorlrf.compression import Method
from tensorlrf.errors import ArgumentError
from tests.compression.networks import UNIFORM
from tests.draws import seeded32

CANDIDATES: tuple[Method, ...] = (SVD(), Tucker(rank_shares=(0.5, 0.5)), CP(n_iter_max=4))


def conv(kind: str, seed: int) -> nn.Conv2d:
    """A kernel that is nearly of low rank in one of the formats."""
    layer = nn.Conv2d(12, 16, 3)
    shape = layer.weight.shape
    exact = {
        "svd": lambda: torch.tensordot(
            seeded32(16, 3, seed=seed), seeded32(3, *shape[1:], seed=seed + 1), 1
        ),
        "tucker": lambda: torch.einsum(
            "rsxy,or,is->oixy", seeded32(8, 6, 3, 3, seed=seed), seeded32(16, 8, seed=seed + 1),
            seeded32(12, 6, seed=seed + 2),
        ),
        "cp": lambda: cp_kernel(seed),
        "none": lambda: seeded32(*shape, seed=seed),
    }  # fmt: skip
    with torch.no_grad():
        layer.weight.copy_(exact[kind]() + 0.05 * seeded32(*shape, seed=seed + 9))
    return layer


def cp_kernel(seed: int) -> torch.Tensor:
    sides = [seeded32(n, 8, seed=seed + k) for k, n in enumerate((16, 12, 3, 3))]
    return torch.einsum("or,ir,xr,yr->oixy", *sides)


@given(st.sampled_from(["svd", "tucker", "cp", "none"]), st.integers(0, 99), st.booleans())
@settings(max_examples=6, deadline=None, derandomize=True)
def test_it_is_the_best_of_the_candidates(kind: str, seed: int, held: bool) -> None:
    model = nn.Sequential(conv(kind, seed))
    options = {
        "calibration": [seeded32(30, 12, 6, 6, seed=seed + k) for k in range(4)],
        "holdout": 0.25 if held else 0.0,
    }
    small, report = compress(model, method=Auto(rank=0.4, candidates=CANDIDATES), **options)
    singles = []
    for one in CANDIDATES:
        alone, told = compress(model, method=one.with_budget(rank=0.4), **options)
        singles.append((told.layer("0").output_error or 0.0, told.layer("0").format, alone))
    error, name, best = min(singles, key=lambda single: single[0])
    row = report.layer("0")
    assert row.output_error == error
    assert row.held_out == held
    assert row.format == name
    assert torch.equal(small[0].weight, best[0].weight)
    assert row.params_after <= 0.4 * row.params_before
    # What was chosen is written down as one method with its rank.
    assert small[0].recipe["method"]["name"] in ("svd", "tucker", "cp")


def test_different_layers_get_different_formats_within_the_share() -> None:
    model = nn.Sequential(conv("svd", 0), nn.ReLU(), nn.Conv2d(16, 12, 1), conv("tucker", 3))
    method = Auto(candidates=(SVD(), Tucker(rank_shares=(0.5, 0.5))))
    calibration = [seeded32(30, 12, 8, 8, seed=k) for k in range(4)]
    _, report = compress(
        model, keep_params=0.4, method=method, calibration=calibration, holdout=0.25, **UNIFORM
    )
    assert report.layer("0").format == "lowrank"
    assert report.layer("3").format == "tucker"
    assert report.layer("2").format == "lowrank"  # a kernel of one element is a matrix
    assert report.eligible.share <= 0.4


def test_without_calibration_the_weight_decides() -> None:
    model = nn.Sequential(conv("tucker", 5))
    _, report = compress(model, keep_params=0.4, method=Auto(candidates=CANDIDATES))
    row = report.layer("0")
    assert row.format == "tucker"
    assert row.output_error is None


def test_an_error_gets_the_fewest_parameters() -> None:
    model = nn.Sequential(conv("tucker", 5))
    candidates = (SVD(), Tucker(rank_shares=(0.5, 0.5)))
    _, report = compress(model, error=0.15, method=Auto(candidates=candidates))
    each = [compress(model, error=0.15, method=m)[1].layer("0") for m in candidates]
    row = report.layer("0")
    assert row.params_after == min(one.params_after for one in each)
    assert row.weight_error is not None
    assert row.weight_error <= 0.15


def test_a_linear_layer_has_one_candidate() -> None:
    small, report = compress(nn.Sequential(nn.Linear(32, 32)), keep_params=0.5, method="auto")
    plain, _ = compress(nn.Sequential(nn.Linear(32, 32)), keep_params=0.5)
    assert report.layer("0").rank == 8
    assert type(small[0]) is type(plain[0])


def test_no_candidate_at_the_share() -> None:
    made = plan(nn.Sequential(nn.Conv2d(3, 4, 3)), method=Auto(rank=0.05))
    assert made.layer("0").rank is None
    with pytest.raises(ArgumentError, match=r"no candidate has a form of 0 within 0.05 of its par"):
        tensorlrf.apply(nn.Sequential(nn.Conv2d(3, 4, 3)), made)
