"""Second moments that are kept in part: what is left out is bounded, and the rest exact."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf import compress, svd
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._memory import Gathered
from tensorlrf.compression.calibration._statistics import Stream
from tensorlrf.compression.calibration.moments._directions import Directions
from tensorlrf.compression.calibration.moments._form import FULL, Form
from tensorlrf.compression.calibration.moments._moments import moments_of
from tensorlrf.decomposition.linalg.compact import BlockDiagonal, LowRankPlusDiagonal
from tensorlrf.decomposition.second_moments import SecondMoments
from tensorlrf.errors import CalibrationWarning
from tests.compression.calibration.streams import KINDS, stream
from tests.draws import seeded, seeded32

CPU = torch.device("cpu")


def check_bound(sketch: Directions, rows: Tensor) -> None:
    """Of the moments' sums X^T X, with the singular values that tell how little may be lost."""
    whole = rows.T @ rows
    slack = 1e-9 * max(float(whole.trace()), 1e-300)
    lost = float(sketch.lost)
    energies = torch.linalg.svdvals(rows).square()
    tails = torch.cat([energies.flip(0).cumsum(0).flip(0), torch.zeros(1).double()])
    for k in range(min(sketch.size, len(energies)) + 1):
        assert lost <= float(tails[min(k, len(energies))]) / (sketch.size + 1 - k) + slack
    left = torch.linalg.eigvalsh(whole - sketch.rows.T @ sketch.rows)
    assert float(left[0]) >= -slack
    assert float(left[-1]) <= lost + slack
    gram = sketch.mean(1)
    off = float(torch.linalg.matrix_norm(gram.dense() - whole, 2))
    assert off <= gram.off + slack
    assert gram.off <= lost
    assert torch.allclose(gram.diagonal(), whole.diagonal(), rtol=1e-9, atol=slack)


@given(
    st.sampled_from(KINDS),
    st.integers(1, 40),
    st.integers(1, 14),
    st.integers(1, 7),
    st.integers(0, 99),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_what_a_sketch_leaves_out_is_bounded_for_any_stream(
    kind: str, count: int, n: int, size: int, seed: int
) -> None:
    rows = stream(kind, count, n, seed)
    sketch = Directions(n, size, CPU)
    sketch.take(rows)
    check_bound(sketch, rows)


@given(
    st.sampled_from(KINDS),
    st.integers(1, 9),
    st.integers(1, 6),
    st.lists(st.integers(0, 17), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_and_for_any_order_of_merges(
    kind: str, n: int, size: int, counts: list[int], order: Any
) -> None:
    rows = stream(kind, sum(counts) + 1, n, seed=4)
    parts = []
    for part in rows.split([*counts, 1]):
        parts.append(Directions(n, size, CPU))
        parts[-1].take(part)
    while len(parts) > 1:
        order.shuffle(parts)
        other = parts.pop()
        parts[-1].merge(other)
    check_bound(parts[0], rows)


FORMS = [FULL, Form("blocks", 4), Form("sketch", 3)]


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    return {
        "linear": (nn.Linear(12, 4), seeded32(9, 7, 12)),
        "pointwise": (nn.Conv2d(12, 4, 1), seeded32(9, 12, 3, 3)),
        "conv": (nn.Conv2d(3, 4, 2), seeded32(9, 3, 4, 4)),
        "strided": (nn.Conv1d(6, 4, 2, stride=2, padding=1), seeded32(9, 6, 8)),
        "groups": (nn.Conv2d(24, 4, 1, groups=2), seeded32(9, 24, 2, 2)),
    }


@pytest.mark.parametrize("kind", sorted(layers()))
@pytest.mark.parametrize("form", FORMS, ids=str)
@given(st.lists(st.integers(1, 8), max_size=4, unique=True))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_a_stream_gives_the_same_moments_however_it_is_split(
    kind: str, form: Form, cuts: list[int]
) -> None:
    layer, x = layers()[kind]
    whole, split = (Stream(DenseLayer.of(layer), lags=False, form=form) for _ in range(2))
    whole.add(x)
    for start, end in pairwise([0, *sorted(cuts), 9]):
        split.add(x[start:end])
    for one, other in zip(whole.statistics(), split.statistics(), strict=True):
        assert one.count == other.count
        eye = torch.eye(12, dtype=torch.float64)
        # float32 products of entries near one, some eps = 1.2e-7 each; the sketch's are turned by
        # an SVD, which is off by as much for each of its rows.
        assert torch.allclose(eye @ one.gram, eye @ other.gram, atol=1e-5)
        assert torch.allclose(one.mean, other.mean, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(layers()))
def test_blocks_are_those_of_all_moments(kind: str) -> None:
    layer, x = layers()[kind]
    made = [Stream(DenseLayer.of(layer), lags=False, form=form) for form in FORMS[:2]]
    for one in made:
        one.add(x)
    for full, blocks in zip(*(one.statistics() for one in made), strict=True):
        assert isinstance(blocks.gram, BlockDiagonal)
        assert isinstance(full.gram, Tensor)
        assert [len(block) for block in blocks.gram.blocks] == [4, 4, 4]
        for k, block in enumerate(blocks.gram.blocks):
            part = slice(4 * k, 4 * k + 4)
            # Some eps of float32: BLAS sums the products of a block in another order.
            assert torch.allclose(block, full.gram[part, part], atol=1e-6)
        assert torch.equal(blocks.mean, full.mean)


def test_a_sketch_of_few_rows_is_exact() -> None:
    x = seeded32(20, 40)
    full, sketch = (
        moments_of(DenseLayer.of(nn.Linear(40, 3)), form) for form in (FULL, Form("sketch", 16))
    )
    for one in (full, sketch):
        one.add(x)
    gram = sketch.gram()
    assert isinstance(gram, LowRankPlusDiagonal)
    assert gram.off == 0
    # Some eps of float32 for each row that the SVD of the sketch turns.
    assert torch.allclose(gram.dense(), full.gram(), atol=1e-5)


def test_rows_that_are_no_numbers_are_told_by_the_variances() -> None:
    x = seeded32(64, 8)
    x[40, 3] = float("nan")
    sketch = Directions(8, 4, CPU)
    sketch.take(x)
    assert not torch.isfinite(sketch.mean(64).diagonal()).all()


def test_long_streams_do_not_drift() -> None:
    """The same few directions again and again are never taken for others."""
    rows = seeded(50, 3, seed=1) @ seeded(3, 30, seed=2)
    sketch = Directions(30, 4, CPU)
    for _ in range(200):
        sketch.take(rows)
    whole = 200 * rows.T @ rows
    # 200 times 50 rows are turned, each off by eps of float64 at the most, and some more.
    assert torch.allclose(
        sketch.mean(1).dense(), whole, rtol=1e-10, atol=1e-10 * whole.max().item()
    )


@given(st.integers(0, 9), st.integers(1, 6), st.integers(2, 8), st.sampled_from([0.0, 1e-2, 0.3]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_fit_in_a_sketch_is_off_the_best_by_no_more_than_its_bound(
    seed: int, rank: int, directions: int, noise: float
) -> None:
    """<D, D G> <= <D', D' G> + off (|D|^2 + |D'|^2) for D of the fit and D' of the best one, since
    either form is off by so much in each direction."""
    n, weight = 48, seeded(8, 48, seed=seed)
    x = seeded(400, directions, seed=seed) @ seeded(directions, n, seed=seed + 1)
    x += noise * seeded(400, n, seed=seed + 2)
    sketch = Directions(n, 8, CPU)
    sketch.take(x)
    gram, whole = sketch.mean(400), x.T @ x / 400
    moments = [SecondMoments.known(one) for one in (gram, whole)]
    left = [weight - svd(weight, rank, gram=one).to_dense() for one in moments]
    lost = [float(((d @ whole) * d).sum()) for d in left]
    room = gram.off * sum(float(d.square().sum()) for d in left)
    assert lost[0] <= lost[1] + room + 1e-9 * float(whole.trace())
    if not noise:  # as many directions as the sketch has rows, or fewer: nothing is left out
        assert gram.off <= 1e-9 * float(whole.trace())


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_fits_in_a_sketch_serve_inputs_held_out_better_than_plain_ones(kind: str) -> None:
    draws = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 256, generator=draws)

    def batch(seed: int) -> Tensor:
        x = seeded32(300, 6, seed=seed) @ mixing + 0.1 * seeded32(300, 256, seed=seed + 50)
        return x if kind == "linear" else x.reshape(60, 5, 256).mT[..., None].contiguous()

    layer = nn.Linear(256, 40) if kind == "linear" else nn.Conv2d(256, 40, 1)
    torch.nn.init.normal_(layer.weight, generator=draws)
    model, batches = nn.Sequential(layer), [batch(k) for k in range(6)]
    limit = Gathered(lags=True, held=True).need(DenseLayer.of(layer), Form("sketch", 16)).whole
    options: dict[str, Any] = {"keep_params": 0.2, "skip": [], "progress": False}
    with pytest.warns(CalibrationWarning, match="sketch of 16 rows"):
        small, _ = compress(model, calibration=batches, memory_limit=limit, **options)
    plain, _ = compress(model, **options)
    full, _ = compress(model, calibration=batches, **options)
    x = batch(99)
    with torch.no_grad():
        wanted = model(x)
        errors = [float((one(x) - wanted).norm() / wanted.norm()) for one in (full, small, plain)]
    assert errors[1] < 0.9 * errors[2]
    assert errors[1] < 1.1 * errors[0]
