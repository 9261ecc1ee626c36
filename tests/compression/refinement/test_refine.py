"""refine: never worse on held-out batches, nothing but factors, norms and biases changed, and what
was given as it was."""

from __future__ import annotations

import copy
import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import tensorlrf
from tensorlrf.compression import _compressed
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import list_batches
from tensorlrf.compression.refinement import _course, _refine
from tensorlrf.compression.refinement._phases import PHASES
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredLayer
from tests.compression.networks import Snapshot
from tests.compression.refinement.students import Tower, batches, cnn, ends, images, pair

QUIET: dict[str, Any] = {"progress": False}


def ticking() -> SimpleNamespace:
    """A clock that goes on by a hundredth each time that it is read."""
    ticks = itertools.count()
    return SimpleNamespace(monotonic=lambda: next(ticks) / 100)


def held_out(data: list[Tensor], share: float = 0.1) -> list[Tensor]:
    found = Calibration.of(list_batches(data, nn.Identity()), share)
    return [batch.args[0] for batch in found.held_out]


def divergence(model: nn.Module, small: nn.Module, data: list[Tensor]) -> float:
    """Mean KL of the small model's distributions from the given one's, over rows."""
    with torch.no_grad():
        wanted = torch.cat([model(x).flatten(0, -2) for x in data]).double().log_softmax(-1)
        got = torch.cat([small(x).flatten(0, -2) for x in data]).double().log_softmax(-1)
    return float(F.kl_div(got, wanted, log_target=True, reduction="batchmean"))


@given(
    st.integers(0, 2**40),
    st.sampled_from([1e-4, 1e-2, 1.0, 1e3, 1e30]),
    st.sampled_from([None, ["local"], ["block"], ["global"], ["local", "global"]]),
    st.booleans(),
)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_it_is_never_worse_than_it_began(
    seed: int, lr: float, phases: list[str] | None, convolutions: bool
) -> None:
    model, small = cnn() if convolutions else pair()
    data = images() if convolutions else batches()
    better, report = tensorlrf.refine(
        small, model, data, steps=6, lr=lr, phases=phases, loss="kl", random_state=seed, **QUIET
    )
    judged = held_out(data)
    before, after = divergence(model, small, judged), divergence(model, better, judged)
    assert after <= before
    assert report.before == pytest.approx(before, rel=1e-5)
    assert report.after == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize("phase", ["local", "block", "global"])
def test_each_phase_gains_by_itself(phase: str) -> None:
    model, small = pair()
    _, report = tensorlrf.refine(small, model, batches(8), steps=30, phases=[phase], **QUIET)
    before, after = ends(report)
    assert after < before
    assert {one.phase for one in report.curve} == {"given", phase}


def test_phases_come_in_order_and_share_the_budget() -> None:
    model, small = pair()
    _, report = tensorlrf.refine(small, model, batches(), steps=20, patience=100, **QUIET)
    phases = [one.phase for one in report.curve]
    assert list(dict.fromkeys(phases)) == ["given", "local", "block", "global"]
    assert [one.step for one in report.curve] == list(range(21))
    assert report.steps == 20
    assert report.reason == "the budget is spent"


def test_only_factors_norms_and_biases_change() -> None:
    model, small = pair()
    better, _ = tensorlrf.refine(small, model, batches(), steps=10, **QUIET)
    may = {
        f"{place}.{name}"
        for place, module in small.named_modules()
        for name, p in module.named_parameters(recurse=False)
        if isinstance(module, FactoredLayer) or p.ndim == 1
    }
    old, new = small.state_dict(), better.state_dict()
    assert list(old) == list(new)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed <= may
    assert changed > {"norm.weight", "head.bias", "blocks.0.fc1.left", "blocks.1.norm.bias"}


def test_what_is_given_stays_and_flags_come_back() -> None:
    model, small = copy.deepcopy(pair()[0]), copy.deepcopy(pair()[1])
    model.blocks[0].train()
    small.get_submodule("blocks.0").train()
    small.get_parameter("blocks.0.fc1.left").requires_grad_(False)
    before = (Snapshot(model), Snapshot(small))
    state = torch.random.get_rng_state()
    better, _ = tensorlrf.refine(small, model, batches(), steps=4, lora=1, **QUIET)
    assert torch.equal(torch.random.get_rng_state(), state)
    for snapshot in before:
        snapshot.check()
    assert all(p.grad is None for p in (*model.parameters(), *small.parameters()))
    assert [m.training for m in better.modules()] == [m.training for m in small.modules()]
    flags = [p.requires_grad for p in better.parameters()]
    assert flags == [p.requires_grad for p in small.parameters()]
    assert [type(m) for m in better.modules()] == [type(m) for m in small.modules()]
    assert all(p.grad is None for p in better.parameters())


def test_statistics_of_batch_norms_stay() -> None:
    model, small = cnn()
    better, _ = tensorlrf.refine(small, model, images(), steps=8, **QUIET)
    for name, old in small.named_buffers():
        assert torch.equal(better.get_buffer(name), old), name


def test_a_phase_that_wins_next_to_nothing_leaves_its_room_to_the_next() -> None:
    """The last one has all the rest, however little it wins."""
    model, small = pair()
    _, report = tensorlrf.refine(small, model, batches(), steps=40, lr=1e-9, patience=99, **QUIET)
    steps = {one.phase: one.step for one in report.curve}
    assert steps == {"given": 0, "local": 2, "block": 4, "global": 40}


def test_each_step_of_the_budget_moves_the_model() -> None:
    """A phase of a single step too: half a cosine ends at 0, behind its last step."""
    model, small = pair()
    _, report = tensorlrf.refine(small, model, batches(), steps=3, **QUIET)
    assert len({one.held_out for one in report.curve}) == 4


def test_rates_rise_from_a_small_one_after_each_time_of_going_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each AdamW begins without an estimate of squares."""
    rates: list[list[float]] = []

    class Recording(torch.optim.AdamW):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            rates.append([])

        def step(self, closure: Any = None) -> Any:
            rates[-1].append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    model, small = pair()
    _, report = tensorlrf.refine(
        small, model, batches(), steps=200, lr=1e4, patience=3, phases=["global"], **QUIET
    )
    assert report.steps == 30
    begun = [own for own in rates if own]
    assert [len(own) for own in begun] == [20, 10]
    for own in begun:
        assert own[:10] == sorted(own[:10])
        assert own[0] < own[9] / 5


def test_it_stops_when_nothing_gets_better() -> None:
    model, small = pair()
    _, report = tensorlrf.refine(
        small, model, batches(), steps=300, lr=1e4, patience=2, phases=["global"], **QUIET
    )
    assert report.steps == 2 * (300 // 20)
    assert "no better for 2 checkpoints" in report.reason


def test_few_batches_overfit_and_that_is_seen() -> None:
    """Random labels of one batch are learned by heart; held-out ones get worse, and are not."""
    model, small = pair()
    data = batches(2, size=2)
    labels = [torch.full((2, 3), k) for k in range(2)]

    def own(logits: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), wanted.flatten())

    better, report = tensorlrf.refine(
        small, model, data, labels=labels, loss=own, steps=60, lr=0.1, phases=["global"], **QUIET
    )
    worst = max(one.held_out or 0.0 for one in report.curve)
    before, after = ends(report)
    assert after <= before < worst
    assert report.steps < 60
    with torch.no_grad():
        assert float(own(better(data[1]), labels[1])) == pytest.approx(after, rel=1e-5)


def test_seconds_are_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ticking()
    for module in (_course, _refine):
        monkeypatch.setattr(module, "time", clock)
    model, small = pair()
    _, report = tensorlrf.refine(small, model, batches(), seconds=3.0, patience=100, **QUIET)
    assert 2.5 <= report.seconds <= 3.0
    spent = {phase: [c.seconds for c in report.curve if c.phase == phase] for phase in PHASES}
    local, block, _ = itertools.accumulate(PHASES.values())
    assert 0.2 <= max(spent["local"]) <= local * 3 + 0.2
    assert max(spent["local"]) < min(spent["block"]) < max(spent["block"]) < min(spent["global"])
    assert max(spent["block"]) <= block * 3 + 0.2


def test_the_same_seed_takes_the_same_course() -> None:
    model, small = pair()
    one, first = tensorlrf.refine(small, model, batches(), steps=6, random_state=3, **QUIET)
    two, second = tensorlrf.refine(small, model, batches(), steps=6, random_state=3, **QUIET)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert [c.held_out for c in first.curve] == [c.held_out for c in second.curve]


def test_compress_refines_at_its_end() -> None:
    model, data = pair()[0], batches(size=12)
    options: dict[str, Any] = {"keep_params": 0.4, "skip": ["embedding", "head"], **QUIET}
    plain, _ = tensorlrf.compress(model, calibration=data, **options)
    small, report = tensorlrf.compress(model, calibration=data, refine=1.0, **options)
    told = report.refinement
    assert told is not None
    judged = held_out(data)
    assert told.before == pytest.approx(divergence(model, plain, judged), rel=1e-4)
    assert told.after == pytest.approx(divergence(model, small, judged), rel=1e-4)
    before, after = ends(told)
    assert after <= before
    assert told.title in str(report)
    assert tensorlrf.Report.from_json(report.to_json()) == report
    with pytest.raises(ArgumentError, match=r"refine=1\.0 trains on inputs"):
        tensorlrf.compress(model, refine=1.0, **options)
    with pytest.raises(ArgumentError, match="refine=-1"):
        tensorlrf.compress(model, calibration=data, refine=-1, **options)


def test_in_place_the_norms_and_biases_of_the_model_are_trained_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of layers that stay are the same tensors as before, with new values."""
    clock = ticking()
    for module in (_course, _refine, _compressed):
        monkeypatch.setattr(module, "time", clock)
    model, data = copy.deepcopy(pair()[0]), batches(size=12)
    norm, old = model.norm.weight, copy.deepcopy(model.norm.weight)
    options: dict[str, Any] = {"keep_params": 0.4, "skip": ["embedding", "head"], **QUIET}
    report = tensorlrf.compress_(model, calibration=data, refine=3.0, **options)
    told = report.refinement
    assert told is not None
    assert told.after == pytest.approx(divergence(pair()[0], model, held_out(data)), rel=1e-4)
    assert model.norm.weight is norm
    assert not torch.equal(norm, old)
    with pytest.raises(ArgumentError, match=r"refine=1\.0 trains on inputs"):
        tensorlrf.compress_(model, refine=1.0, **options)
    with pytest.raises(ArgumentError, match=r"refine=1\.0 and max_drop"):
        tensorlrf.compress_(
            model, calibration=data, refine=1.0, max_drop=0.1, evaluate=lambda _: 1.0
        )


def test_compress_refines_on_whole_groups() -> None:
    model, data = pair()[0], batches(8, size=12)
    options: dict[str, Any] = {"keep_params": 0.4, "skip": ["embedding", "head"], **QUIET}
    groups = [0, 0, 1, 1, 2, 2, 3, 3]
    _, report = tensorlrf.compress(
        model, calibration=data, groups=groups, holdout=0.5, refine=0.2, **options
    )
    told = report.refinement
    assert told is not None
    assert (told.held_out, told.groups) == (4, 2)


# ---- losses ------------------------------------------------------------------------------------


def test_labels_and_distance_add_up() -> None:
    model, small = pair()
    data, labels = batches(), [torch.zeros(4, 3, dtype=torch.long)] * 6

    def own(logits: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), wanted.flatten())

    _, report = tensorlrf.refine(
        small, model, data, labels=labels, loss=("kl", own), steps=2, **QUIET
    )
    judged = held_out(data)
    with torch.no_grad():
        told = sum(float(own(small(x), labels[0])) for x in judged) / len(judged)
    assert report.before == pytest.approx(divergence(model, small, judged) + told, rel=1e-5)
    assert report.unit == "nats a row + own"


@pytest.mark.parametrize(("loss", "readout"), [("cosine", lambda y: y.mean(1)), ("relative", None)])
def test_other_distances_fall(loss: str, readout: Any) -> None:
    model, small = pair()
    _, report = tensorlrf.refine(
        small, model, batches(), loss=loss, readout=readout, steps=20, **QUIET
    )
    before, after = ends(report)
    assert after < before


def test_padding_counts_for_nothing() -> None:
    """What stands under a mask may be anything."""
    model, small = pair()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])
    one = [{"tokens": x, "attention_mask": mask} for x in batches()]
    two = [{"tokens": x.masked_fill(mask == 0, 9), "attention_mask": mask} for x in batches()]
    found = [tensorlrf.refine(small, model, data, steps=8, **QUIET) for data in (one, two)]
    for name, value in found[0][0].state_dict().items():
        torch.testing.assert_close(value, found[1][0].state_dict()[name], rtol=1e-4, atol=1e-6)


def test_a_step_on_a_loss_that_is_no_number_is_skipped() -> None:
    model, small = pair()
    bad = torch.zeros(4, 3, dtype=torch.long)
    data = [*batches(5), bad]

    def own(logits: Tensor, wanted: Tensor) -> Tensor:
        return logits.square().mean() * wanted

    weights = [torch.tensor(math.nan if k in (1, 4) else 1.0) for k in range(6)]
    better, report = tensorlrf.refine(
        small, model, data, labels=weights, loss=own, steps=10, phases=["global"], patience=99,
        **QUIET,
    )  # fmt: skip
    assert report.skipped == 4  # two of five batches, each seen twice
    assert "skipped" in str(report)
    before, after = ends(report)
    assert after < before
    assert all(torch.isfinite(p).all() for p in better.parameters())


# ---- memory, precision, form -------------------------------------------------------------------


def test_accumulation_makes_the_step_of_one_large_batch() -> None:
    model, small = pair()
    data = batches(5)  # the last is held out
    whole = [torch.cat(data[:4]), data[4]]
    options: dict[str, Any] = {"steps": 2, "phases": ["global"], "patience": 99, **QUIET}
    one, _ = tensorlrf.refine(small, model, data, accumulate=4, **options)
    two, _ = tensorlrf.refine(small, model, whole, **options)
    for name, value in one.state_dict().items():
        # Signs of gradients near 0 may differ: Adam makes a whole step of each.
        close = torch.isclose(value, two.state_dict()[name], rtol=1e-4, atol=1e-6)
        assert close.float().mean() > 0.95, name


@pytest.mark.parametrize("options", [{}, {"look_ahead": True}])
def test_checkpointing_changes_memory_alone(options: dict[str, Any]) -> None:
    model, small = pair()
    found = [
        tensorlrf.refine(small, model, batches(), steps=8, checkpointing=kept, **options, **QUIET)[
            0
        ]
        for kept in (False, True)
    ]
    for name, value in found[0].state_dict().items():
        torch.testing.assert_close(value, found[1].state_dict()[name])


def test_look_ahead_trains_one_block_at_a_time_by_the_outputs() -> None:
    model, small = pair()
    _, report = tensorlrf.refine(
        small, model, batches(), steps=30, phases=["block"], look_ahead=True, **QUIET
    )
    before, after = ends(report)
    assert after < before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_as_well(dtype: torch.dtype) -> None:
    model, small = pair()
    better, report = tensorlrf.refine(small, model, batches(), steps=20, dtype=dtype, **QUIET)
    before, after = ends(report)
    assert after < before
    assert {p.dtype for p in better.parameters()} == {torch.float32}


def test_a_model_in_half_precision_moves_by_less_than_its_spacing() -> None:
    """Steps add up in float32: many that bfloat16 would round away make one that it has."""
    model, small = (copy.deepcopy(one).bfloat16() for one in pair())
    better, report = tensorlrf.refine(
        small, model, batches(), steps=60, lr=2e-4, phases=["global"], patience=99, **QUIET
    )
    before, after = ends(report)
    assert after < before
    assert {p.dtype for p in better.parameters()} == {torch.bfloat16}


def test_changes_of_low_rank_are_merged() -> None:
    model, small = cnn()
    better, report = tensorlrf.refine(small, model, images(), steps=20, loss="kl", lora=1, **QUIET)
    _, whole = tensorlrf.refine(small, model, images(), steps=1, **QUIET)
    assert report.trained < whole.trained
    assert list(better.state_dict()) == list(small.state_dict())
    judged = held_out(images())
    assert report.after == pytest.approx(divergence(model, better, judged), rel=1e-4)
    before, after = ends(report)
    assert after < before


def test_frozen_layers_are_frozen_on_the_new_weight() -> None:
    model, given_one = pair()
    small = copy.deepcopy(given_one)
    for module in small.modules():
        if isinstance(module, FactoredLayer):
            module.freeze()
    better, _ = tensorlrf.refine(small, model, batches(), steps=6, **QUIET)
    thawed = copy.deepcopy(better)
    for module in thawed.modules():
        if isinstance(module, FactoredLayer):
            assert module.is_frozen
            module.thaw()
    x = batches(1)[0]
    with torch.no_grad():
        torch.testing.assert_close(better(x), thawed(x))


def test_a_model_that_is_one_factored_layer() -> None:
    model = nn.Linear(8, 6)
    small = tensorlrf.nn.factorize(model, "svd", 2)
    data = [torch.rand(9, 8) for _ in range(4)]
    better, report = tensorlrf.refine(small, model, data, steps=20, **QUIET)
    assert isinstance(better, FactoredLayer)
    before, after = ends(report)
    assert after < before


def test_tensors_of_inference_mode_are_trained_all_the_same() -> None:
    with torch.inference_mode():
        model = Tower()
        small, _ = tensorlrf.compress(model, keep_params=0.4, skip=["embedding", "head"])
        data = batches()
        data = [x.clone() for x in data]
        better, report = tensorlrf.refine(small, model, data, steps=8, **QUIET)
    assert not any(p.is_inference() for p in better.parameters())
    before, after = ends(report)
    assert after <= before
