"""What fitting a layer to its inputs takes apart and multiplies, counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._statistics import OutputError, Stream
from tensorlrf.decomposition.shrinkage import least_amount, ledoit_wolf
from tensorlrf.factors import LowRank


@contextmanager
def sides_of(*functions: str) -> Iterator[dict[str, list[int]]]:
    """The sides of the matrices that functions of torch.linalg are called with."""
    seen: dict[str, list[int]] = {name: [] for name in functions}
    with pytest.MonkeyPatch.context() as patch:
        for name in functions:
            function = getattr(torch.linalg, name)

            def counted(
                matrix: Tensor, *args: object, _of=function, _to=seen[name], **more: object
            ):
                _to.append(matrix.shape[-1])
                return _of(matrix, *args, **more)

            patch.setattr(torch.linalg, name, counted)
        yield seen


def test_a_thin_layer_takes_no_more_of_its_moments_apart_than_its_corrections_need() -> None:
    torch.manual_seed(0)
    # 64 x 144 at 8 x 60 samples: fewer than four times the columns, so that three fits are made.
    model = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1))
    batches = [torch.randn(2, 16, 4, 4) for _ in range(12)]
    with sides_of("cholesky_ex", "eigh") as seen, pytest.warns(match="thin"):
        tensorlrf.compress(model, keep_params=0.5, calibration=batches, progress=False)
    # One for each of the two fits to the inputs; how far these are drawn needs none of its own.
    assert seen["cholesky_ex"].count(144) <= 2
    assert 144 not in seen["eigh"]


def test_the_error_of_factors_of_low_rank_is_that_of_what_they_stand_for() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40)
    stream = Stream(DenseLayer.of(layer), lags=True)
    x = torch.randn(300, 24)
    stream.add(x, x + 0.1 * torch.randn(300, 24))
    weight = layer.weight.detach()
    for noise in (1.0, 1e-4, 1e-7):
        u, s, v = torch.linalg.svd(weight.double() + noise * torch.randn(40, 24).double())
        factors = LowRank((u[:, :24] * s).float(), v.float(), (40, 24))
        errors = OutputError([weight], stream.statistics())
        dense = (factors.left.double() @ factors.right.double()).to(weight.dtype)
        shift = torch.randn(40).double()
        for shifts in (None, [shift]):
            told = errors.of([factors], shifts)
            assert told == pytest.approx(errors.of([dense], shifts), rel=1e-5, abs=1e-7)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    n=st.integers(1, 40),
    samples=st.integers(2, 400),
    spread=st.floats(0, 6),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    centred=st.booleans(),
    seed=st.integers(0, 99),
)
def test_moments_are_drawn_as_if_they_had_been_taken_apart(
    n: int, samples: int, spread: float, offset: float, centred: bool, seed: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, n, generator=draws) * torch.logspace(0, -spread, n) + offset
    stream = Stream(DenseLayer.of(nn.Linear(n, 3)), lags=False)
    stream.add(x)
    seen = stream.statistics()[0].inputs
    if centred:
        seen = seen.centred()
    alone = ledoit_wolf(seen.gram, seen.fourth, seen.count)
    assert seen.warranted == max(alone, least_amount(seen.gram))
