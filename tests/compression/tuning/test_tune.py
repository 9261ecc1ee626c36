"""What tune chooses and where it writes it, with a clock that says what the test wants."""

from __future__ import annotations

import json
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.tuning._choices import table_of
from tensorlrf.compression.tuning._tune import tune
from tensorlrf.nn import _freezable
from tensorlrf.ops.buckets import BUCKETS
from tests.compression.tuning.tuned import ALIKE, CHAIN, DENSE, Start, conv, factored, linear
from tests.draws import seeded32


class Adder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = linear(), linear()

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        return self.one(input=a).sum() + (self.two(b).sum() if b is not None else 0)


def test_the_fastest_path_is_kept(clock: Start) -> None:
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    clock(CHAIN, DENSE)
    tuning = tune(model, seeded32(5, 16))
    first, second = factored(model)
    assert first.path_table.lookup(5) == "chain"
    assert second.path_table.lookup(5) == "dense"
    assert first.measured == {first.device_key: first.path_table}
    row = tuning.layer("0")
    assert [one.chosen for one in row.timings] == ["chain"]
    assert row.timings[0].seconds == {"dense": 2.0, "chain": 1.0}
    assert (row.dense_seconds, row.chosen_seconds, row.ratio) == (2.0, 1.0, 2.0)
    # The second layer's path "dense" is faster here than torch's layer, as the clock has it.
    assert tuning.ratio == pytest.approx((2 + 2) / (1 + 1))
    assert tuning.layer("2").runs_dense
    assert tuning.frozen == ("2",)
    assert "frozen on their dense weights: 2" in str(tuning)
    assert (first.is_frozen, second.is_frozen) == (False, True)


def test_every_path_is_run_as_the_layer_runs_it(clock: Start) -> None:
    layer = conv().double()
    x = seeded32(2, 8, 6, 6).double().contiguous(memory_format=torch.channels_last)
    asked = clock(CHAIN)
    tune(nn.Sequential(layer), x, seconds=0.25)
    outputs = asked.outputs[0]
    assert asked.seconds == [0.25]
    assert list(outputs) == ["torch", *layer.paths]
    with torch.no_grad():
        truth = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    for path, y in outputs.items():
        torch.testing.assert_close(y, truth, msg=lambda text, path=path: f"{path}: {text}")
        assert not y.requires_grad


def test_a_tie_goes_to_fewer_bytes(clock: Start) -> None:
    layer = linear()
    clock(ALIKE)
    tune(nn.Sequential(layer), seeded32(5, 16))
    assert layer.path_table.lookup(5) == "chain"
    assert not layer.is_frozen


def test_buckets_are_measured_once_on_the_most_rows(clock: Start) -> None:
    layer = linear()
    asked = clock(CHAIN, DENSE)
    sizes = (33, 40, 64, 3)
    tuning = tune(nn.Sequential(layer), [seeded32(n, 16) for n in sizes])
    assert [tuple(y["chain"].shape) for y in asked.outputs] == [(64, 16), (3, 16)]
    rows = tuning.layer("0").timings
    assert [(one.bucket, one.rows, one.calls) for one in rows] == [(4, 3, 1), (64, 64, 3)]
    assert [one.chosen for one in rows] == ["dense", "chain"]
    assert (layer.path_table.lookup(4), layer.path_table.lookup(64)) == ("dense", "chain")
    assert tuning.layer("0").dense_seconds == 1 * 2.0 + 3 * 2.0
    assert tuning.layer("0").chosen_seconds == 1 * 1.0 + 3 * 1.0


@settings(max_examples=25, deadline=None)
@given(
    chosen=st.dictionaries(
        st.sampled_from(BUCKETS), st.sampled_from(["dense", "chain"]), min_size=1
    ),
    frozen=st.booleans(),
)
def test_unmeasured_buckets_go_by_agreeing_neighbours_or_by_cost(
    chosen: dict[int, str], frozen: bool
) -> None:
    layer = linear(64, 64, 16)
    table, by_cost = table_of(layer, chosen, frozen), layer._default_path_table(frozen)
    for rows in BUCKETS:
        below = [b for b in chosen if b < rows]
        above = [b for b in chosen if b > rows]
        if rows in chosen:
            expected = chosen[rows]
        elif below and above and chosen[max(below)] == chosen[min(above)]:
            expected = chosen[max(below)]
        else:
            expected = by_cost.lookup(rows)
        assert table.lookup(rows) == expected


def test_outputs_stay_the_same(clock: Start) -> None:
    model = nn.Sequential(conv(), nn.Flatten(), linear(8 * 36, 16)).double().eval()
    x = seeded32(3, 8, 6, 6).double()
    before = model(x)
    clock(CHAIN, DENSE)
    tune(model, x)
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize(
    ("example", "rows"),
    [
        (seeded32(3, 16), [3]),
        ((seeded32(3, 16), seeded32(5, 16)), [3, 5]),
        ({"a": seeded32(3, 16), "b": seeded32(5, 16)}, [3, 5]),
        (UserDict({"b": seeded32(5, 16), "a": seeded32(3, 16)}), [3, 5]),
        ([(seeded32(3, 16),), {"a": seeded32(40, 16), "b": seeded32(5, 16)}], [3, 40, 5]),
    ],
)
def test_examples_of_every_kind(example: Any, rows: list[int], clock: Start) -> None:
    clock(CHAIN)
    tuning = tune(Adder(), example)
    assert [one.rows for layer in tuning.layers for one in layer.timings] == rows


def test_a_layer_that_is_not_called_is_reported_and_left(clock: Start) -> None:
    model = Adder()
    before = model.two.path_table
    clock(CHAIN)
    tuning = tune(model, seeded32(3, 16))
    assert tuning.not_reached == ("two",)
    assert not tuning.layer("two").reached
    assert model.two.path_table is before
    assert model.two.measured == {}
    assert "not reached by any example, left as they were: two" in str(tuning)


def test_a_shared_layer_is_measured_once_a_bucket(clock: Start) -> None:
    shared = linear()
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ModuleDict({"again": shared})["again"])
    asked = clock(CHAIN)
    tuning = tune(model, seeded32(4, 16))
    assert len(asked.outputs) == 1
    (row,) = tuning.layers
    assert row.places == ("0", "2", "3")
    assert (row.timings[0].calls, row.dense_seconds) == (3, 6.0)
    assert tuning.layer("2") is row


def test_a_layer_alone_is_a_model(clock: Start) -> None:
    layer = linear()
    clock(CHAIN)
    assert tune(layer, seeded32(4, 16)).layers[0].name == "(model)"
    assert layer.path_table.lookup(4) == "chain"


# ---- frozen --------------------------------------------------------------------------------------


def test_the_dense_path_is_timed_as_it_will_run(
    clock: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    rebuild = _freezable.dense_weight
    monkeypatch.setattr(
        _freezable, "dense_weight", lambda factors: (made.append(1), rebuild(factors))[1]
    )
    layer, x = conv().eval(), seeded32(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    clock(DENSE)
    tuning = tune(nn.Sequential(layer), x)
    assert layer.is_frozen
    assert layer._frozen.weight.is_contiguous(memory_format=torch.channels_last)
    assert tuning.resident_bytes == layer.factors.n_bytes + 4 * 8 * 8 * 9
    assert json.loads(tuning.to_json())["resident_bytes"] == tuning.resident_bytes
    assert f"in memory: {tuning.resident_bytes:,} bytes, all dense 2,304" in str(tuning)
    del made[:]
    with torch.no_grad():
        layer(x)
    assert made == []
    tuning = tune(nn.Sequential(layer), x, freeze=False)
    assert not layer.is_frozen
    assert tuning.frozen == ()
    assert tuning.resident_bytes == layer.factors.n_bytes
    assert "run dense, rebuilding their weights in each call: 0" in str(tuning)
    del made[:]
    with torch.no_grad():
        layer(x)
    assert made == [1]


def test_the_last_tuning_decides_what_is_loaded(clock: Start, tmp_path: Path) -> None:
    model, x = nn.Sequential(linear(), linear()), seeded32(5, 16)
    clock(DENSE, CHAIN)
    for freeze in (True, False):
        tune(model, x, freeze=freeze)
        tensorlrf.save(model, tmp_path / str(freeze))
        blank = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        again = tensorlrf.load(tmp_path / str(freeze), blank)
        for one, other in zip(factored(model), factored(again), strict=True):
            assert one.is_frozen is other.is_frozen is (freeze and one is model[0])
            assert one.measured == other.measured == {one.device_key: one.path_table}
            assert one.path_table == other.path_table
        clock(DENSE, CHAIN)


def test_a_tuned_model_trains_and_is_thawed_by_it(clock: Start) -> None:
    model, x = nn.Sequential(linear()), seeded32(5, 16)
    clock(DENSE)
    tune(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        want = x @ model[0].factors.to_dense().T + model[0].bias
        torch.testing.assert_close(model(x), want)
    assert not model[0].is_frozen
    tune(model, x)
    assert model.eval()[0].is_frozen
    assert not model.train()[0].is_frozen


class Restless(nn.Module):
    """Draws random numbers, works on its input in place, and fills a list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, x: Tensor, cache: list[Tensor]) -> Tensor:
        x.add_(1)
        cache.append(x)
        if torch.rand(()) < 0.5:
            x = self.layer(x)
        return self.layer(torch.nn.functional.dropout(x))


@pytest.mark.parametrize("seed", range(4))
def test_batches_flags_and_generators_stay(seed: int, clock: Start) -> None:
    model = Restless()
    model.layer.eval()
    x, cache = seeded32(4, 16), [seeded32(1)]
    given = x.clone()
    clock(CHAIN)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        tuning = tune(model, (x, cache))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, given)
    assert len(cache) == 1
    assert (model.training, model.layer.training) == (True, False)
    assert tuning.layer("layer").reached


def test_tuning_works_in_training_inference_and_grad_modes(clock: Start) -> None:
    model = nn.Sequential(linear(), nn.BatchNorm1d(16)).train()
    clock(CHAIN)
    with torch.inference_mode():
        tune(model, seeded32(4, 16), objective="latency")
    assert model.training
    assert torch.equal(model[1].running_mean, torch.zeros(16))
    assert model(seeded32(4, 16)).requires_grad


def test_the_result_is_json_and_a_table(clock: Start) -> None:
    clock(CHAIN)
    tuning = tune(Adder(), seeded32(3, 16))
    values = json.loads(tuning.to_json())
    assert values["objective"] == "size"
    assert values["layers"][0]["timings"][0]["seconds"] == {"dense": 2.0, "chain": 1.0}
    assert (values["dense_seconds"], values["not_reached"]) == (2.0, ["two"])
    assert "2.00" in str(tuning)
    assert str(tuning).startswith("tune, objective size, 1 example")
    with pytest.raises(KeyError):
        tuning.layer("three")


def test_with_the_real_clock() -> None:
    model = nn.Sequential(conv(), nn.Flatten(), linear(8 * 36, 16))
    tuning = tune(model, [seeded32(n, 8, 6, 6) for n in (1, 3)], seconds=1e-4)
    assert all(
        seconds > 0
        for layer in tuning.layers
        for one in layer.timings
        for seconds in (*one.seconds.values(), one.dense_seconds)
    )
    assert [len(layer.timings) for layer in tuning.layers] == [2, 2]
