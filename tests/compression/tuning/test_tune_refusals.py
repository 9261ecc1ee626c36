"""Bad input to tune, and Ctrl-C in the middle of it: the model is as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from tensorlrf.compression.tuning._tune import tune
from tensorlrf.compression.tuning._tuning import Tuning
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import PathTable
from tests.compression.tuning.tuned import CHAIN, DENSE, Start, State, linear
from tests.draws import seeded32


@pytest.mark.parametrize("objective", ["size", "latency"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("full"), SystemExit(3)])
def test_an_interruption_leaves_the_model(
    error: BaseException, objective: str, clock: Start
) -> None:
    model = nn.Sequential(linear(), nn.ReLU(), linear()).train()
    model[2].eval()
    state = State(model)
    clock(DENSE, error)
    expected = UnsupportedError if isinstance(error, MemoryError) else type(error)
    with pytest.raises(expected) as raised:
        tune(model, seeded32(4, 16), objective=objective)
    assert State(model) == state
    if expected is UnsupportedError:
        assert "a path of 2 cannot be timed" in str(raised.value)
        assert "MemoryError: full" in str(raised.value)


@pytest.mark.parametrize("objective", ["size", "latency"])
def test_an_interruption_while_writing_undoes_it(
    objective: str, clock: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(linear(), linear(), linear())
    state = State(model)
    clock(DENSE)

    def broken(self: FactoredLayer, key: str, table: PathTable) -> None:
        if self is third:
            raise KeyboardInterrupt
        self.path_table = table
        self.measured[key] = table

    third = model[2]
    monkeypatch.setattr(FactoredLayer, "set_measured", broken)
    with pytest.raises(KeyboardInterrupt):
        tune(model, seeded32(4, 16), objective=objective)
    assert State(model) == state


def test_a_model_that_fails_is_named_with_its_example(clock: Start) -> None:
    model = nn.Sequential(linear(), linear())
    state = State(model)
    clock(CHAIN)
    with pytest.raises(ArgumentError, match=r"example: the model cannot take batch 1 .*\(4, 9\)"):
        tune(model, [seeded32(4, 16), seeded32(4, 9)])
    assert State(model) == state


def test_bad_input_is_named(clock: Start) -> None:
    clock(CHAIN)
    model, x = nn.Sequential(linear()), seeded32(4, 16)
    wrong: list[tuple[str, Callable[[], Tuning]]] = [
        ("model is a int", lambda: tune(3, x)),  # type: ignore[arg-type]
        ("no factored layer", lambda: tune(nn.Sequential(nn.Linear(3, 3)), seeded32(2, 3))),
        ("objective='speed' is unknown", lambda: tune(model, x, objective="speed")),
        ("seconds=0 must", lambda: tune(model, x, seconds=0)),
        ("seconds=True must", lambda: tune(model, x, seconds=True)),
        (r"example=\[\] is empty", lambda: tune(model, [])),
        ("example is a generator", lambda: tune(model, (x for _ in range(2)))),
        (r"example\[1\] is a str", lambda: tune(model, [x, "x"])),
        ("example has no rows", lambda: tune(model, seeded32(0, 16))),
        ("example has no rows", lambda: tune(model, [seeded32(0, 16), {"input": seeded32(0, 16)}])),
        ("meta device", lambda: tune(nn.Sequential(linear().to("meta")), x.to("meta"))),
    ]
    for match, attempt in wrong:
        with pytest.raises(ArgumentError, match=match):
            attempt()


def test_an_empty_batch_beside_a_full_one_is_not_measured(clock: Start) -> None:
    clock(CHAIN)
    tuning = tune(nn.Sequential(linear()), [seeded32(0, 16), seeded32(4, 16)])
    assert [one.rows for one in tuning.layers[0].timings] == [4]


def test_a_compiled_model_is_refused() -> None:
    model = nn.Sequential(linear())
    wrapper = nn.Module()
    wrapper._orig_mod = model  # as torch.compile leaves it, without the time that it takes
    with pytest.raises(ArgumentError, match="before torch"):
        tune(wrapper, seeded32(4, 16))
    model._compiled_call_impl = model.forward
    with pytest.raises(ArgumentError, match="before torch"):
        tune(model, seeded32(4, 16))
