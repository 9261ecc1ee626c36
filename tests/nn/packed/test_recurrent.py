"""Recurrent modules with a layer for each matrix compute what torch's own do, by both ways."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import tensorlrf
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import LowRank
from tensorlrf.nn import FactoredLinear, FactoredLSTM
from tensorlrf.nn.packed._scan import backwards
from tensorlrf.nn.packed._ways import loop_is_faster
from tensorlrf.nn.packed.unpacked import unpacked_type
from tensorlrf.ops import PathTable

MODULES = (nn.LSTM, nn.GRU, nn.RNN)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


@st.composite
def modules(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(MODULES))
    options: dict[str, Any] = {
        "num_layers": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if kind is nn.LSTM:
        options["proj_size"] = draw(st.integers(0, 3))
    if kind is nn.RNN:
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    torch.manual_seed(draw(st.integers(0, 99)))
    return kind(draw(st.integers(1, 5)), draw(st.integers(4, 7)), **options).double()


def unpacked(module: nn.Module) -> Any:
    kind = unpacked_type(module)
    assert kind is not None
    return kind.from_packed(module)


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data]
    return [t for one in value for t in leaves(one)] if isinstance(value, tuple) else [value]


def assert_near(got: Any, want: Any) -> None:
    for a, b in zip(leaves(got), leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # float64, few sums of few terms


@settings(max_examples=30, deadline=None)
@given(modules(), st.integers(1, 4), st.integers(1, 5), st.sampled_from(["kernel", "loop"]))
def test_same_outputs_and_states(module: Any, batch: int, steps: int, way: str) -> None:
    own = unpacked(module)
    own.recurrence = way
    shape = (batch, steps) if module.batch_first else (steps, batch)
    x = torch.randn(*shape, module.input_size, dtype=torch.float64)
    assert_near(own(x), module(x))
    one = x[0] if module.batch_first else x[:, 0]
    assert_near(own(one), module(one))
    _, states = module(x)  # as the ones before another call
    assert_near(own(x, states), module(x, states))


@settings(max_examples=20, deadline=None)
@given(modules(), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans())
def test_packed_sequences(module: Any, lengths: list[int], loop: bool) -> None:
    own = unpacked(module)
    own.recurrence = "loop" if loop else "kernel"
    shape = (len(lengths), max(lengths))
    x = torch.randn(*shape, module.input_size, dtype=torch.float64)
    x = x if module.batch_first else x.transpose(0, 1)
    packed = pack_padded_sequence(
        x, torch.tensor(lengths), batch_first=module.batch_first, enforce_sorted=False
    )
    got, want = own(packed), module(packed)
    assert_near(got, want)
    assert torch.equal(got[0].batch_sizes, want[0].batch_sizes)


@settings(max_examples=15, deadline=None)
@given(modules(), st.booleans())
def test_same_gradients(module: Any, loop: bool) -> None:
    other = copy.deepcopy(module)
    own = unpacked(other)
    own.recurrence = "loop" if loop else "kernel"
    x = torch.randn(3, 3, module.input_size, dtype=torch.float64)
    sum(t.square().sum() for t in leaves(module(x))).backward()
    sum(t.square().sum() for t in leaves(own(x))).backward()
    grads = {
        "weight_ih": "input", "weight_hh": "recurrent", "weight_hr": "projection",
    }  # fmt: skip
    for name, p in module.named_parameters():
        if not name.startswith("weight"):
            continue
        kind = name[:9]
        grad = own.get_submodule(name.replace(kind, grads[kind])).weight.grad
        torch.testing.assert_close(grad, p.grad, rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(modules())
def test_packed_again_it_is_the_same_module(module: Any) -> None:
    again = unpacked(module).pack()
    assert type(again) is type(module)
    assert str(again) == str(module)
    want, got = module.state_dict(), again.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(want[k], got[k]) for k in want)
    shared = {p.data_ptr() for p in module.parameters()}
    assert not any(p.data_ptr() in shared for p in again.parameters())
    blank = unpacked(module).pack(values=False)
    assert {k: v.shape for k, v in blank.state_dict().items()} == {
        k: v.shape for k, v in want.items()
    }
    assert all(p.is_meta for p in blank.parameters())


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_cells(kind: Any, bias: bool) -> None:
    torch.manual_seed(0)
    cell = kind(3, 5, bias=bias).double()
    own = unpacked(cell)
    x = torch.randn(4, 3, dtype=torch.float64)
    first = cell(x)
    assert_near(own(x), first)
    assert_near(own(x[0]), cell(x[0]))
    assert_near(own(x, first), cell(x, first))
    assert str(own.pack()) == str(cell)
    assert_near(own.pack()(x), first)
    with pytest.raises(ShapeError, match="input has shape"):
        own(x[:, :2])
    with pytest.raises(ShapeError, match="hx holds"):
        own(x, tuple(t[:1] for t in leaves(first)))


@pytest.mark.parametrize("kind", MODULES)
def test_full_rank_is_exact_and_low_rank_is_its_own_dense_form(kind: Any) -> None:
    torch.manual_seed(0)
    module = kind(6, 8, num_layers=2, bidirectional=True).double()
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    whole = tensorlrf.nn.factorize(module, "svd", 6)
    layers = [m for m in whole.modules() if isinstance(m, FactoredLinear)]
    assert len(layers) == 8
    small = tensorlrf.nn.factorize(module, "svd", 2)
    want = small.pack()(x)
    for way in ("kernel", "loop"):
        small.recurrence = way
        assert_near(small(x), want)
    for format_ in ("tt", "kron"):  # of more factors than two
        other = tensorlrf.nn.factorize(module, format_, 2)
        assert_near(other(x), other.pack()(x))


@settings(max_examples=20, deadline=None)
@given(modules(), st.lists(st.integers(1, 4), min_size=8, max_size=8), st.data())
def test_directions_of_unequal_ranks_in_one_loop(
    module: Any, ranks: list[int], data: st.DataObject
) -> None:
    """Also where some matrices are dense, or factors that run on their dense form."""
    small = unpacked(module)
    layers = [n for n, m in small.named_modules() if isinstance(m, nn.Linear)]
    for name, rank in zip(layers, ranks * 2, strict=False):
        path = data.draw(st.sampled_from(["chain", "chain", "chain", "dense", None]))
        if path is not None and min(small.get_submodule(name).weight.shape) >= rank:
            layer: Any = tensorlrf.nn.factorize(small.get_submodule(name), "svd", rank)
            layer.path_table = PathTable.single(path)
            small.set_submodule(name, layer)
    want = small.pack()
    small.recurrence = "loop"
    x = torch.randn(3, 4, module.input_size, dtype=torch.float64)
    assert_near(small(x), want(x))
    packed = pack_padded_sequence(
        x, torch.tensor([2, 4, 1] if module.batch_first else [3, 1, 2, 3]),
        batch_first=module.batch_first, enforce_sorted=False,
    )  # fmt: skip
    assert_near(small(packed), want(packed))


def test_frozen_and_hooked_layers_compute_the_same() -> None:
    torch.manual_seed(0)
    module = nn.LSTM(6, 8).double().eval()
    small = tensorlrf.nn.factorize(module, "svd", 2).eval()
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        want = small(x)
        for layer in (small.input_l0, small.recurrent_l0):
            layer.freeze()
        assert_near(small(x), want)
        seen: list[tuple[int, ...]] = []

        def hook(_: nn.Module, args: Any, __: Any) -> None:
            seen.append(tuple(args[0].shape))

        handles = [m.register_forward_hook(hook) for m in (small.input_l0, small.recurrent_l0)]
        assert_near(small(x), want)
        for handle in handles:
            handle.remove()
    assert seen == [(5, 3, 6), *[(3, 8)] * 5]  # all steps of the input in one call


def test_weights_that_a_hook_changes_on_the_way_count_from_the_first_step_on() -> None:
    """As calibration does, which factors a matrix once its last input has come."""
    torch.manual_seed(0)
    own, x = unpacked(nn.LSTM(4, 5, num_layers=2)).eval(), torch.randn(3, 2, 4)
    calls = []

    def hook(layer: Any, _: Any) -> None:
        calls.append(layer)
        if len(calls) == 3:
            with torch.no_grad():
                layer.weight.mul_(0.5)

    with torch.no_grad():
        before = own(x)
        handle = own.recurrent_l0.register_forward_pre_hook(hook)
        got = own(x)
        handle.remove()
        assert len(calls) == 3
        assert not torch.equal(got[0], before[0])
        for way in ("loop", "kernel"):
            own.recurrence = way
            torch.testing.assert_close(got[0], own(x)[0])
            torch.testing.assert_close(got[1][1], own(x)[1][1])


def test_dropout_between_layers_alone() -> None:
    torch.manual_seed(0)
    module = nn.LSTM(4, 5, num_layers=2, dropout=0.5)
    own, x = unpacked(module), torch.randn(3, 2, 4)
    assert own.training
    first = unpacked(nn.LSTM(4, 5))  # the first layer by itself
    for name in ("input_l0", "recurrent_l0"):
        setattr(first, name, getattr(own, name))
    torch.manual_seed(1)
    a = own(x)[0]
    torch.manual_seed(2)
    assert not torch.equal(own(x)[0], a)
    torch.testing.assert_close(own(x)[1][0][0], first(x)[1][0][0])
    assert_near(own.eval()(x), module.eval()(x))


def test_the_loop_is_the_choice_where_it_saves_more_than_its_steps_take() -> None:
    torch.manual_seed(0)
    for hidden, loops in ((64, False), (1024, True)):
        small = tensorlrf.nn.factorize(nn.LSTM(8, hidden), "svd", 4).eval()
        x = torch.randn(3, 2, 8)
        assert small.recurrence == "auto"
        assert small._loops([small.recurrent_l0], x, None) == loops
        with torch.no_grad():
            auto = small(x)[0]
            small.recurrence = "loop" if loops else "kernel"
            assert torch.equal(small(x)[0], auto)
            small.recurrence = "auto"
            small.recurrent_l0.freeze()
            assert not small._loops([small.recurrent_l0], x, None)
            torch.testing.assert_close(small(x)[0], auto, rtol=1e-4, atol=1e-5)


MEASURED = json.loads((Path(__file__).parents[3] / "bench/results/cpu/recurrent.json").read_text())


@pytest.mark.parametrize("row", MEASURED["rows"])
def test_the_choice_is_the_faster_way_of_all_that_were_measured(
    row: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: MEASURED["machine"]["threads"])
    hidden, rank = row["hidden"], row["rank"]
    blank = LowRank(torch.empty(4 * hidden, rank), torch.empty(rank, hidden), (4 * hidden, hidden))
    rows, steps = row["batch"] * row["steps"], row["steps"]
    loops = loop_is_faster([tensorlrf.nn.FactoredLinear(blank)], hidden, rows, steps)
    chosen, other = ("loop", "kernel") if loops else ("kernel", "loop")
    # Ratios of medians that are nearer than 5% may change places when they are measured again.
    assert row[chosen] >= 0.95 * row[other]


def test_a_projection_is_part_of_the_choice() -> None:
    """A large one on few numbers, which the kernel would have made dense and would read."""
    small = LowRank(torch.empty(1024, 100), torch.empty(100, 256), (1024, 256))
    large = LowRank(torch.empty(4096, 4), torch.empty(4, 4096), (4096, 4096))
    recurrent, projection = (tensorlrf.nn.FactoredLinear(f) for f in (small, large))
    assert not loop_is_faster([recurrent], 256, 64, 64)
    assert loop_is_faster([recurrent, projection], 256, 64, 64)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("way", ["kernel", "loop"])
def test_compiled_it_computes_the_same(kind: Any, way: str) -> None:
    torch.manual_seed(0)
    small = tensorlrf.nn.factorize(kind(6, 8, batch_first=True), "svd", 2).eval()
    small.recurrence = way
    x = torch.randn(2, 3, 6)
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for got, want in zip(leaves(compiled(x)), leaves(small(x)), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_refusals() -> None:
    own = unpacked(nn.LSTM(3, 4))
    with pytest.raises(ShapeError, match=r"input has shape \(2, 2\)"):
        own(torch.rand(2, 2))
    with pytest.raises(ShapeError, match="no step"):
        own(torch.rand(0, 2, 3))
    with pytest.raises(ArgumentError, match="input is a list"):
        own([1.0])
    with pytest.raises(ArgumentError, match="hx has 1 tensors"):
        own(torch.rand(2, 2, 3), torch.rand(1, 2, 4))
    with pytest.raises(ShapeError, match="hx holds"):
        own(torch.rand(2, 2, 3), (torch.rand(1, 1, 4), torch.rand(1, 2, 4)))
    with pytest.raises(ArgumentError, match="recurrence"):
        own.recurrence = "fast"
    with pytest.raises(UnsupportedError, match="pass exactly a LSTM"):
        FactoredLSTM.from_packed(nn.GRU(3, 4))
    normed = nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    with pytest.raises(UnsupportedError, match="parametrised"):
        FactoredLSTM.from_packed(normed)
    hooked = nn.LSTM(3, 4)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match="hooks"):
        tensorlrf.nn.factorize(hooked, "svd", 2)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_backwards_turns_each_sequence_round(lengths: list[int]) -> None:
    lengths = sorted(lengths, reverse=True)
    sizes = [sum(n > t for n in lengths) for t in range(lengths[0])]
    order = backwards(sizes, torch.device("cpu"))
    rows = [(t, b) for t, n in enumerate(sizes) for b in range(n)]
    assert [rows[k] for k in order.tolist()] == [(lengths[b] - 1 - t, b) for t, b in rows]
    assert torch.equal(order[order], torch.arange(len(rows)))
