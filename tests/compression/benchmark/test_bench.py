"""Two in turn: what may be said of the times, by a clock that is given, and what is counted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.benchmark import _bench
from tensorlrf.compression.benchmark._peak import peak_of
from tensorlrf.compression.benchmark._ratio import Ratio
from tensorlrf.errors import ArgumentError
from tensorlrf.ops import Timings, time_calls

CPU = torch.device("cpu")

times = st.lists(st.floats(0.5, 2.0), min_size=6, max_size=40)


@given(times)
def test_of_a_model_and_itself_nothing_can_be_said(samples: list[float]) -> None:
    ratio = Ratio.of(samples, samples)
    assert (ratio.median, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
    assert ratio.verdict == "no difference shown"


@given(times, times)
def test_who_is_faster_does_not_depend_on_the_order(a: list[float], b: list[float]) -> None:
    n = min(len(a), len(b))
    there, back = Ratio.of(a[:n], b[:n]), Ratio.of(b[:n], a[:n])
    assert there.low is not None
    assert back.high == pytest.approx(1 / there.low)
    assert there.low <= there.median <= (there.high or 0)
    assert {there.verdict, back.verdict} in ({"faster", "slower"}, {"no difference shown"})


def test_the_interval_holds_what_it_promises() -> None:
    """Of pairs whose median ratio is 1, no more than one interval in twenty leaves it out."""
    draws = random.Random(0)
    outside = 0
    for _ in range(1000):
        times = [draws.lognormvariate(0, 0.3) for _ in range(12)]
        outside += Ratio.of(times, [1.0] * 12).verdict != "no difference shown"
    assert outside / 1000 <= 0.05


def test_few_pairs_say_nothing() -> None:
    ratio = Ratio.of([1.0] * 5, [2.0] * 5)
    assert (ratio.median, ratio.low, ratio.verdict) == (2.0, None, "too few pairs to tell")
    assert str(ratio) == "2.00x, too few pairs to tell"
    assert str(Ratio.of([1.0] * 6, [2.0] * 6)) == "2.00x faster (2.00 to 2.00)"
    assert str(Ratio.of([2.0] * 6, [1.0] * 6)) == "2.00x slower (2.00 to 2.00)"


class Clock:
    """In the place of `time_calls`: each call is made once, and takes what is told."""

    def __init__(self, **seconds: list[float]) -> None:
        self.seconds, self.called = seconds, 0

    def __call__(self, calls: Mapping[str, Callable[[], object]], **_: Any) -> Timings:
        for call in calls.values():
            call()
        self.called += 1
        return Timings({name: tuple(self.seconds[name]) for name in calls})


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))


def test_what_is_told_of_two_models(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(model=[1.0, 1.1, 0.9, 1.0, 1.0, 1.2], against=[2.0, 2.2, 2.0, 1.9, 2.1, 2.3])
    monkeypatch.setattr(_bench, "time_calls", clock)
    model = net().train()
    small, _ = tensorlrf.compress(model, keep_params=0.5, skip=[], progress=False)
    batches = [torch.ones(4, 32), {"input": torch.ones(1, 32)}]
    found = tensorlrf.bench(small, batches, against=model)
    assert clock.called == 2
    assert model.training
    first, second = found.rows
    assert (first.input, second.input) == ("(4, 32)", "input (1, 32)")
    assert first.ratio is not None
    assert first.ratio.verdict == "faster"
    assert first.tokens_per_second is None
    # Of the dense one at its highest, a row: the input, and 64 numbers before the ReLU and after.
    assert first.against_peak == 4 * (32 + 2 * 64) * 4
    assert found.against_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert found.bytes < found.against_bytes
    told = json.loads(found.to_json())
    assert told["rows"][0]["verdict"] == "faster"
    assert "x faster" in str(found)
    assert "| forward | (4, 32) |" in found.to_markdown()
    assert "against" not in str(tensorlrf.bench(small, batches))


def test_noise_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = [1.0, 1.3, 0.8, 1.1, 0.9, 1.2]
    monkeypatch.setattr(_bench, "time_calls", Clock(model=noisy, against=noisy[::-1]))
    model = net()
    found = tensorlrf.bench(model, [torch.ones(4, 32)], against=model.half().float())
    assert "no difference shown" in str(found)
    assert "of 1 of 1 nothing can be said" in str(found)


class Writer(nn.Module):
    """A language model as transformers has them."""

    main_input_name = "input_ids"

    def __init__(self, positions: int = 64) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 16)
        self.config = SimpleNamespace(max_position_embeddings=positions)
        self.asked: list[dict[str, Any]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.table(input_ids)
        return found

    def can_generate(self) -> bool:
        return True

    def generate(self, ids: Tensor, **options: Any) -> Tensor:
        if options["max_new_tokens"] == 13:
            raise RuntimeError("unlucky")
        for _ in range(options["max_new_tokens"]):
            ids = torch.cat([ids, self(ids[:, -1:]).argmax(-1)], 1)
        return ids


def test_writers_are_timed_as_they_write(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(model=[0.5] * 6, against=[1.0] * 6)
    monkeypatch.setattr(_bench, "time_calls", clock)
    ids, mask = torch.ones(2, 12, dtype=torch.long), torch.ones(2, 12, dtype=torch.long)
    mask[1, 6:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    found = tensorlrf.bench(Writer(), [batch], against=Writer(), new_tokens=5)
    prompt, decoding = found.rows
    assert (prompt.what, prompt.tokens, prompt.tokens_per_second) == ("forward", 18, 36)
    assert (decoding.what, decoding.tokens) == ("decoding", 10)
    assert (decoding.tokens_per_second, decoding.against_tokens_per_second) == (20, 10)
    assert decoding.input == "5 tokens after (2, 8)"
    assert len(tensorlrf.bench(Writer(), [batch], new_tokens=0).rows) == 1
    with pytest.raises(ArgumentError, match="new_tokens=9 after 8 are above the 16 positions"):
        tensorlrf.bench(Writer(16), [batch], new_tokens=9)
    with pytest.raises(ArgumentError, match="model cannot generate: RuntimeError: unlucky"):
        tensorlrf.bench(Writer(), [batch], new_tokens=13)


def test_the_peak_is_of_what_is_alive_at_once() -> None:
    x, size = torch.ones(100, 100), 40_000
    peaks = {
        2: lambda: (x + 1) * 2,
        3: lambda: (x + 1, x + 2, x + 3),
        0: lambda: x.view(-1).add_(1).t(),
        1: lambda: [(x + 1).sum() for _ in range(1)],
    }
    for wanted, run in peaks.items():
        assert wanted * size <= peak_of(run, CPU) < wanted * size + 100


def test_pairs_are_timed_until_there_are_enough() -> None:
    found = time_calls({"a": lambda: None, "b": lambda: None}, seconds=1e-9, rounds=8)
    assert {len(samples) for samples in found.samples.values()} == {8}
    with pytest.raises(ArgumentError, match="rounds=0"):
        time_calls({"a": lambda: None}, rounds=0)


def test_what_cannot_be_timed_is_refused() -> None:
    x = [torch.ones(4, 32)]
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (x, {"against": "dense"}, "against is a str"),
        (x, {"new_tokens": -1}, "new_tokens=-1"),
        (x, {"seconds": 0}, "seconds=0 must be above zero"),
        (x[0], {}, r"for one batch write examples=\[batch\]"),
        ([torch.ones(4, 3)], {}, "examples: the model cannot take batch 0"),
        (x, {"against": net().to("meta")}, "model is on cpu and against on meta"),
    ]
    for examples, more, says in cases:
        with pytest.raises(ArgumentError, match=says):
            tensorlrf.bench(net(), examples, **more)
