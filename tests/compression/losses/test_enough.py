"""How many of the batches are looked at, and which of them."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.losses._bases import OutputMoments
from tensorlrf.compression.losses._curvature import GradientMoments
from tensorlrf.compression.losses._enough import (
    GRADIENT_ROWS,
    LEAST,
    MOST,
    OUTPUT_ROWS,
    SAMPLES,
    scattered,
    told,
)
from tensorlrf.compression.losses._fisher import bases_of, fisher_losses
from tensorlrf.compression.losses._output_loss import OutputLoss
from tests.compression.networks import set_weights
from tests.draws import seeded32


def places(n: int) -> list[int]:
    batches = [Batch.of(torch.zeros(1, 1), k) for k in range(n)]
    return [batch.index for batch in scattered(batches)]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(n=st.integers(1, 90), data=st.data())
def test_every_beginning_is_spread_evenly(n: int, data: st.DataObject) -> None:
    found = places(n)
    assert sorted(found) == list(range(n))
    some = sorted(found[: data.draw(st.integers(1, n))])
    gaps = {b - a for a, b in itertools.pairwise(some)}
    assert len(gaps) <= 3  # three distances, as the multiples of any number have on a circle
    ends = {some[0], n - 1 - some[-1]}
    assert max(gaps | ends) <= 3 * n / len(some)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(n=st.integers(LEAST, 90), data=st.data())
def test_of_two_kinds_that_take_turns_both_are_seen_alike(n: int, data: st.DataObject) -> None:
    some = places(n)[: data.draw(st.integers(LEAST, n))]
    even = sum(k % 2 == 0 for k in some)
    assert abs(even - len(some) / 2) <= 2


@pytest.mark.parametrize(
    ("batches", "samples", "enough"),
    [
        (LEAST - 1, 10 * SAMPLES, False),
        (LEAST, SAMPLES, True),
        (LEAST, SAMPLES - 1, False),
        (MOST - 1, SAMPLES - 1, False),
        (MOST, 1, True),
    ],
)
def test_samples_and_batches_are_both_counted(batches: int, samples: int, enough: bool) -> None:
    assert told(batches, samples) is enough


def whole(passes: int) -> int:
    """It is asked after so many, alike on however many ranks."""
    return LEAST * -(-passes // LEAST)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    m=st.integers(2, 9),
    n=st.integers(2, 9),
    tokens=st.integers(1, 6),
    samples=st.sampled_from([1, 2, 40]),
    count=st.integers(1, 40),
)
def test_passes_end_where_more_would_tell_little(
    m: int, n: int, tokens: int, samples: int, count: int
) -> None:
    model = set_weights(nn.Sequential(nn.Linear(n, m)))
    batches = [Batch.of(seeded32(samples, tokens, n, seed=k), k) for k in range(count)]
    passes: list[None] = []
    bases = bases_of(model, ["0"], batches, partial(passes.append, None))
    rows = samples * tokens
    assert len(passes) == min(count, whole(-(-OUTPUT_ROWS * min(m, n) // rows)))

    passes.clear()
    moments = {"0": GradientMoments.of(dense_layer_at(model, "0"))}
    draws, loss = torch.Generator().manual_seed(0), OutputLoss("relative")
    fisher_losses(model, bases, batches, loss, draws, partial(passes.append, None), moments)
    losses = min(MOST, max(LEAST, -(-SAMPLES // samples)))
    assert len(passes) == min(count, max(losses, whole(-(-GRADIENT_ROWS * m // rows))))
    assert moments["0"].rows == len(passes) * rows


def test_moments_of_outputs_settle_by_their_rows() -> None:
    moments = OutputMoments(DenseLayer.of(nn.Linear(3, 5)))  # of the inputs, 3 numbers each
    moments.add(seeded32(3 * OUTPUT_ROWS - 1, 1, 3))
    assert not moments.settled
    moments.add(seeded32(1, 1, 3))
    assert moments.settled
