"""Layers and models timed against each other, with a clock that says what the test wants."""

from __future__ import annotations

import pytest
from torch import nn

from tensorlrf.compression._latency import measure_model, pick, times_of
from tensorlrf.errors import ArgumentError
from tensorlrf.ops import Timings
from tests.compression.tuning.tuned import Start, linear
from tests.draws import seeded32


def test_a_tie_is_within_two_percent_or_the_scatter_but_five_at_most() -> None:
    held = {"dense": 2, "chain": 1}

    def choice(chain: list[float]) -> str:
        return pick(Timings({"dense": (1.0,) * len(chain), "chain": tuple(chain)}), held)

    assert choice([1.02] * 9) == "chain"
    assert choice([1.03] * 9) == "dense"
    assert choice([1.0, 1.06, 1.03, 1.01, 1.05]) == "chain"  # 1.03, but anything from 1 to 1.06
    assert choice([1.0, 2.0, 1.06, 1.01, 1.5]) == "dense"  # scatters more, but it is over 5%
    # A drift that meets both alike is no scatter.
    drift = Timings({"dense": (1.0, 2.0, 4.0), "chain": (1.03, 2.06, 4.12)})
    assert pick(drift, held) == "dense"


def test_layers_are_timed_on_factored_paths_alone(clock: Start) -> None:
    layer = linear()
    asked = clock({"torch": 2.0, "dense": 1.0, "chain": 3.0, "chain 1": 1.5})
    found = times_of(nn.Linear(16, 16), [layer, linear()], seeded32(4, 16), seconds=0.1)
    assert found == (2.0, [(3.0, "chain"), (1.5, "chain")])
    assert set(asked.outputs[0]) == {"torch", "chain", "chain 1"}
    assert layer.training


def test_models_are_timed_in_turn_and_stay_as_they_are(clock: Start) -> None:
    dense, small = nn.Sequential(nn.Linear(16, 16), nn.Dropout()), nn.Sequential(linear())
    small.eval()
    x = seeded32(4, 16)
    asked = clock({"dense": 2.0, "small": 1.0})
    assert measure_model(dense, small, [x, {"input": x}]) == (2.0, 1.0)
    assert list(asked.outputs[0]) == ["dense", "small"]
    assert (dense.training, small.training) == (True, False)
    with pytest.raises(ArgumentError, match="example: the model cannot take batch 0"):
        measure_model(dense, small, [seeded32(4, 9)])
    assert dense.training
