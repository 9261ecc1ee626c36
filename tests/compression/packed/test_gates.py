"""Gates of recurrent matrices: one low rank for all, or one for each, by what that loses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf import SVD, compress
from tensorlrf.compression.fit._gates import gates_apart
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import BlockLowRank, LowRank
from tensorlrf.nn.packed.unpacked import gates_at
from tests.draws import seeded32

RANK = 3
INPUTS = 24


def apart(gates: int, h: int, n: int, seed: int = 0) -> Tensor:
    """Gates each of whose low ranks lies in inputs of its own."""
    blocks = []
    for k in range(gates):
        right = torch.zeros(RANK, n, dtype=torch.float32, device="cpu")
        own = torch.arange(k * RANK, (k + 1) * RANK, device="cpu")
        right[torch.arange(RANK, device="cpu"), own] = 1.0
        blocks.append(seeded32(h, RANK, seed=seed + k) @ right)
    return torch.cat(blocks)


def together(gates: int, h: int, n: int, seed: int = 0) -> Tensor:
    """Gates that look at the same few directions of their inputs."""
    return seeded32(gates * h, RANK, seed=seed) @ seeded32(RANK, n, seed=seed + 1)


class Reader(nn.Module):
    """A recurrent module, and a linear layer on its outputs."""

    def __init__(self, kind: Any, h: int, planted: Any) -> None:
        super().__init__()
        self.rnn = kind(INPUTS, h, batch_first=True)
        self.out = nn.Linear(h, 4)
        gates = {nn.LSTM: 4, nn.GRU: 3}[kind]
        with torch.no_grad():
            self.rnn.weight_ih_l0.copy_(planted(gates, h, INPUTS))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.rnn(x)[0])
        return y


def compressed(model: nn.Module, gates: str, rank: int, **options: Any) -> Any:
    """With the input matrix alone on factors."""
    batches = [seeded32(8, 6, INPUTS, seed=k) for k in range(4)]
    method = {"rnn.input_l0": SVD(rank=rank, gates=gates), "*": None}
    with torch.random.fork_rng():
        return compress(model, method=method, calibration=batches, skip=[], **options)


def rank_of(kind: Any, h: int) -> int:
    """The rank together at which gates apart have the ranks that are planted."""
    gates = {nn.LSTM: 4, nn.GRU: 3}[kind]
    return math.ceil(gates * RANK * (h + INPUTS) / (gates * h + INPUTS))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("metric", ["outputs", "loss"])
def test_gates_with_inputs_of_their_own_go_apart(kind: Any, metric: str) -> None:
    torch.manual_seed(0)
    model = Reader(kind, 16, apart).eval()
    small, report = compressed(model, "auto", rank_of(kind, 16), metric=metric)
    row = report.layer("rnn.input_l0")
    assert row.gates is not None
    assert row.gates.apart
    assert row.gates.error_apart < 1e-3 < row.gates.error_together
    assert row.gates.held_out
    assert max(row.gates.params_apart, row.params_after) <= row.gates.params_together
    assert row.format == "blr"
    factors = small.rnn.input_l0.factors
    assert isinstance(factors, BlockLowRank)
    assert [b.rank for b in factors.blocks] == [RANK] * len(factors.blocks)
    x = seeded32(5, 7, INPUTS, seed=9)
    # The planted weight comes back, up to rounding that the recurrence carries on.
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-3)
    assert "gates of rnn.input_l0 apart, error" in str(report)
    again = tensorlrf.compression.Report.from_json(report.to_json())
    assert again.layer("rnn.input_l0").gates == row.gates


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_gates_that_look_at_the_same_stay_together(kind: Any) -> None:
    torch.manual_seed(0)
    model = Reader(kind, 16, together).eval()
    small, report = compressed(model, "auto", RANK)
    row = report.layer("rnn.input_l0")
    assert row.gates is not None
    assert not row.gates.apart
    assert row.gates.error_together < 1e-3 < row.gates.error_apart
    assert isinstance(small.rnn.input_l0.factors, LowRank)
    assert "gates of rnn.input_l0 together, error" in str(report)


def test_what_is_asked_for_is_done_and_nothing_is_tried_by_default() -> None:
    torch.manual_seed(0)
    model = Reader(nn.LSTM, 16, together).eval()
    small, report = compressed(model, "apart", RANK)
    assert report.layer("rnn.input_l0").format == "blr"
    assert report.layer("rnn.input_l0").gates is None
    small, report = compressed(model, "together", RANK)
    assert isinstance(small.rnn.input_l0.factors, LowRank)
    assert report.layer("rnn.input_l0").gates is None


def test_within_an_error_the_fewer_parameters_are_taken() -> None:
    torch.manual_seed(0)
    for planted, takes in ((apart, True), (together, False)):
        model = Reader(nn.LSTM, 16, planted).eval()
        batches = [seeded32(8, 6, INPUTS, seed=k) for k in range(4)]
        method = {"rnn.input_l0": SVD(error=0.01, gates="auto"), "*": None}
        _, report = compress(model, method=method, calibration=batches, skip=[])
        row = report.layer("rnn.input_l0")
        assert row.gates is not None
        assert row.gates.apart == takes
        kept = min(row.gates.params_apart, row.gates.params_together)
        assert row.params_after == kept
        assert row.output_error is not None
        assert row.output_error <= 0.011


def test_without_calibration_the_weights_decide() -> None:
    torch.manual_seed(0)
    model = Reader(nn.LSTM, 16, apart).eval()
    method = {"rnn.input_l0": SVD(rank=rank_of(nn.LSTM, 16), gates="auto"), "*": None}
    _, report = compress(model, method=method, skip=[])
    choice = report.layer("rnn.input_l0").gates
    assert choice is not None
    assert choice.apart
    assert not choice.held_out
    assert "held out" not in str(report).partition("gates of")[2]


def test_other_layers_have_no_gates() -> None:
    torch.manual_seed(0)
    model = Reader(nn.LSTM, 16, apart).eval()
    batches = [seeded32(8, 6, INPUTS, seed=k) for k in range(4)]
    small, report = compress(
        model, method=SVD(rank=2, gates="auto"), calibration=batches, skip=[]
    )  # fmt: skip
    assert report.layer("out").gates is None
    assert report.layer("rnn.recurrent_l0").gates is not None
    assert gates_at(small, "out") == 1
    cell = tensorlrf.nn.factorize(nn.GRUCell(8, 8), "svd", 2)
    assert cell.gates_of("recurrent") == 3
    projected = tensorlrf.nn.factorize(nn.LSTM(8, 8, proj_size=4), "svd", 2)
    assert [projected.gates_of(f"{k}_l0") for k in ("input", "recurrent", "projection")] == [
        4,
        4,
        1,
    ]
    assert tensorlrf.nn.factorize(nn.RNN(8, 8), "svd", 2).gates_of("input_l0") == 1


def test_files_tune_export_and_densify(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Reader(nn.LSTM, 16, apart).eval()
    small, _ = compressed(model, "apart", rank_of(nn.LSTM, 16))
    x = seeded32(5, 7, INPUTS, seed=9)
    want = small(x)
    tensorlrf.save(small, tmp_path / "small.safetensors")
    back = tensorlrf.load(tmp_path / "small.safetensors", Reader(nn.LSTM, 16, together)).eval()
    assert torch.equal(back(x), want)
    tensorlrf.tune(back, x, progress=False)
    stock, dense = tensorlrf.export(small), tensorlrf.densify(small)
    assert type(dense.rnn) is nn.LSTM
    for other in (back, stock, dense):
        # The same sums in another order, carried on over seven steps.
        torch.testing.assert_close(other(x), want, rtol=1e-4, atol=1e-5)


def test_a_plan_says_it_and_older_plans_say_together() -> None:
    model = Reader(nn.LSTM, 16, apart)
    made = tensorlrf.plan(model, keep_params=0.5, method=SVD(gates="auto"), skip=[])
    text = made.to_json()
    assert tensorlrf.Plan.from_json(text) == made
    assert "svd(gates=auto)" in str(made)
    values = json.loads(text)
    values["version"] = 5
    for layer in values["layers"]:
        if layer["method"] is not None:
            del layer["method"]["gates"]
    older = tensorlrf.Plan.from_json(json.dumps(values))
    assert {row.method.gates for row in older.factored} == {"together"}  # type: ignore[union-attr] # all SVD


def test_words_and_metrics_that_cannot_be() -> None:
    with pytest.raises(ArgumentError, match="gates='each' is unknown"):
        SVD(gates="each")
    with pytest.raises(ArgumentError, match=r"gates='apart' is of fits.*metric='diagonal'"):
        SVD(gates="apart", metric="diagonal")


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.sampled_from([3, 4]), st.integers(1, 20), st.integers(1, 30), st.data())
def test_apart_has_no_more_parameters_than_together(
    gates: int, h: int, n: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, min(gates * h, n)))
    method = SVD(rank=rank, gates="apart")
    blocks = gates_apart(method, (gates * h, n), gates)
    weight = seeded32(gates * h, n, seed=rank)
    made = blocks.decompose(weight, None, 0)
    assert isinstance(made, BlockLowRank)
    together = method.params_at(rank, (gates * h, n))
    assert made.n_params <= together
    # What is left is less than one rank of one gate costs, or all gates are whole.
    assert made.n_params > together - (h + n) or made.n_params == weight.numel()
    # Nor is it ever further from the weight than one gate after the other at equal ranks.
    even = together // (gates * (h + n))
    if even:
        parts = weight.double().chunk(gates)
        lost = sum(float(torch.linalg.svdvals(p)[even:].square().sum()) for p in parts)
        off = float((weight - made.to_dense()).double().square().sum())
        slack = 1e-5 * float(weight.double().square().sum())  # rounding of float32 factors
        assert off <= lost + slack
