"""A state counts as better where its loss fell by more than chance, pair by pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.losses._output_loss import OutputLoss
from tensorlrf.compression.refinement._judgement import HeldOut, Judgement
from tensorlrf.compression.refinement._objective import Objective
from tensorlrf.compression.refinement._processes import Processes
from tensorlrf.errors import ArgumentError
from tests.compression.refinement.students import batches, ends, pair
from tests.draws import seeded32

QUIET: dict[str, Any] = {"progress": False}


def judged(lost: Any, whole: Any = None, told: Any = None) -> Judgement:
    n = len(lost)
    whole = np.ones(n) if whole is None else whole
    told = np.zeros(n) if told is None else told
    return Judgement(tuple(lost), tuple(whole), tuple(told), tuple(np.ones(n)))


@pytest.mark.parametrize("groups", [2, 3, 6, 30])
def test_chance_alone_is_seldom_taken_for_a_fall(groups: int) -> None:
    """Of states that are no better at most one in twenty, more or less, counts as better."""
    draws = np.random.default_rng(groups)
    taken = 0
    for _ in range(1000):
        whole = draws.uniform(1, 3, groups)
        before = whole * draws.uniform(1, 2, groups)
        after = before + whole * draws.normal(0, 0.1, groups)
        taken += judged(after, whole).fall(judged(before, whole)) > 0
    assert taken < 85  # five standard deviations above fifty


@given(
    st.lists(st.floats(0.5, 2), min_size=2, max_size=8),
    st.floats(0.01, 0.2),
    st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_what_falls_alike_everywhere_has_no_noise(
    before: list[float], fall: float, own: bool
) -> None:
    """However the groups differ among themselves."""
    old, new = np.array(before), np.array(before) - fall
    a, b = (judged(old, told=old), judged(old, told=new)) if own else (judged(old), judged(new))
    assert b.fall(a) == pytest.approx(fall, rel=1e-6)
    assert a.fall(b) == pytest.approx(-fall, rel=1e-6)
    assert b.value == pytest.approx(a.value - fall)


def test_a_single_group_and_no_numbers() -> None:
    assert judged([1.0]).fall(judged([1.5])) == pytest.approx(0.5)
    assert judged([np.nan, 1.0]).value == np.inf
    assert not judged([np.nan, 1.0]).fall(judged([1.0, 1.0])) > 0


@pytest.mark.parametrize("kind", ["kl", "cosine", "relative"])
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6), (4, 3, 2, 6), (4,)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_samples_add_up_to_the_loss(kind: str, shape: tuple[int, ...], masked: bool) -> None:
    wanted, got = seeded32(*shape, seed=1), seeded32(*shape, seed=2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])
    tokens = torch.zeros(4, 3, dtype=torch.long)
    more = {"attention_mask": mask} if masked else {}
    batch = Batch.of({"input_ids": tokens, **more})
    loss = OutputLoss(kind)
    rows = loss.rows(wanted, batch)
    lost, whole = loss.by_sample(rows, got, batch)
    total, weight = loss.apart(rows, got, batch, torch.float64)
    assert len(lost) == len(whole) == (4 if len(shape) > 1 else 1)
    assert float(lost.sum()) == pytest.approx(float(total))
    assert float(whole.sum()) == pytest.approx(weight)
    if len(shape) > 1:  # each is what a batch of it alone has
        parts = {key: t[2:3] for key, t in batch.kwargs.items()}
        one = Batch.of(parts)
        alone, of = loss.apart(loss.rows(wanted[2:3], one), got[2:3], one, torch.float64)
        assert float(lost[2]) == pytest.approx(float(alone))
        assert float(whole[2]) == pytest.approx(of)


def test_groups_are_what_is_judged_by() -> None:
    model, small = pair()
    given_batches = [Batch.of(x, k) for k, x in enumerate(batches(4))]
    objective = Objective(OutputLoss("kl"))
    wanted = [objective.wanted(model(b.args[0]), b) for b in given_batches]
    like = torch.zeros(1)

    def seen(groups: list[int] | None) -> Judgement:
        held = HeldOut.of(given_batches, wanted, groups)
        return held.judge(small, objective, Processes(), like)

    apart, together, one = seen(None), seen([7, 7, 3, 7]), seen([5] * 4)
    assert [len(j.lost) for j in (apart, together, one)] == [16, 2, 16]
    assert together.value == pytest.approx(apart.value)
    assert together.lost[0] == pytest.approx(sum(apart.lost[:8]) + sum(apart.lost[12:]))


def test_a_fall_that_groups_disagree_on_is_not_kept() -> None:
    """The mean falls, one group falls, the other rises: what comes back is what was given."""
    model, small = pair()
    signs = [1.0, 1.0, 1.0, 1.0, 1.0, -0.9]

    def own(logits: Tensor, sign: Tensor) -> Tensor:
        return logits.mean() * sign

    better, report = tensorlrf.refine(
        small, model, batches(), loss=own, labels=map(torch.tensor, signs), holdout=0.34, steps=20,
        phases=["global"], groups=range(6), **QUIET,
    )  # fmt: skip
    assert report.groups == 2
    before, after = ends(report)
    assert min(one.held_out or 0.0 for one in report.curve) < before == after
    for name, value in better.state_dict().items():
        assert torch.equal(value, small.state_dict()[name])
    assert [one.kept for one in report.curve] == [True] + [False] * (len(report.curve) - 1)


def test_what_is_of_one_document_is_on_one_side() -> None:
    model, small = pair()
    data = batches(8)
    labels = ["a", "a", "b", "b", "c", "c", "d", "d"]
    seen: list[int] = []

    def own(logits: Tensor, k: int) -> Tensor:
        if logits.requires_grad:
            seen.append(k)
        return logits.square().mean()

    _, report = tensorlrf.refine(
        small, model, data, loss=own, labels=range(8), groups=labels, holdout=0.25, steps=12,
        phases=["global"], **QUIET,
    )  # fmt: skip
    assert (report.batches, report.held_out) == (6, 2)
    trained = {labels[k] for k in seen}
    assert len(trained) == 3
    assert len(set(seen)) == 6
    with pytest.raises(ArgumentError, match="groups has 7 entries for 8 batches"):
        tensorlrf.refine(small, model, data, groups=labels[1:], steps=2, **QUIET)
    with pytest.raises(ArgumentError, match="all batches belong together"):
        tensorlrf.refine(small, model, data, groups=["a"] * 8, steps=2, **QUIET)


def test_small_gains_add_up() -> None:
    """Each is compared with what was kept last, not with the checkpoint before."""
    model, small = pair()
    _, report = tensorlrf.refine(small, model, batches(12), steps=40, holdout=0.3, **QUIET)
    kept = [one.held_out for one in report.curve if one.kept]
    assert len(kept) > 2
    assert kept == sorted(kept, key=lambda loss: -(loss or 0.0))
    assert report.after == kept[-1]


def test_a_model_without_groups_is_judged_by_samples() -> None:
    model, small = pair()
    _, report = tensorlrf.refine(small, model, batches(5, size=3), steps=2, **QUIET)
    assert report.groups == 3
    whole = nn.Linear(8, 6)
    one = tensorlrf.nn.factorize(whole, "svd", 2)
    _, report = tensorlrf.refine(one, whole, [torch.rand(8) for _ in range(4)], steps=2, **QUIET)
    assert report.groups == 1
