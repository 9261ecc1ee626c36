"""Outputs beside those of another model, and answers beside labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import tensorlrf
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.metrics import accuracy, agreement, cosine, f1
from tests.draws import seeded32


class Scaled(nn.Module):
    """A model whose outputs are multiplied."""

    def __init__(self, model: nn.Module, by: float) -> None:
        super().__init__()
        self.model, self.by = model, by

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x)
        return found * self.by


def net(seed: int = 0) -> nn.Linear:
    layer = nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(seeded32(4, 6, seed=seed))
    return layer


BATCHES = [seeded32(5, 6, seed=1), seeded32(3, 6, seed=2)]


@settings(max_examples=10)
@given(st.floats(1e-3, 1e3))
def test_neither_hears_how_large_outputs_are(by: float) -> None:
    same, near = agreement(BATCHES, net()), cosine(BATCHES, net())
    assert same(Scaled(net(), by)) == 1.0
    assert near(Scaled(net(), by)) == pytest.approx(1.0, abs=1e-6)  # float32 outputs
    assert near(Scaled(net(), -by)) == pytest.approx(-1.0, abs=1e-6)


def test_both_are_means_over_rows() -> None:
    """Of batches of unlike size each row counts the same."""
    one, other = net(), net(7)
    rows = torch.cat(BATCHES)
    a, b = (model(rows).detach() for model in (one, other))
    wanted = float((a.argmax(-1) == b.argmax(-1)).double().mean())
    assert 0 < wanted < 1
    assert agreement(BATCHES, one)(other) == pytest.approx(wanted)
    assert agreement(BATCHES, other)(one) == agreement(BATCHES, one)(other)
    mean = float(F.cosine_similarity(a.double(), b.double()).mean())
    assert cosine(BATCHES, one)(other) == pytest.approx(mean)
    assert cosine(BATCHES, other)(one) == pytest.approx(mean)


class Tokens(nn.Module):
    """Something for each token, and more that does not count."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = nn.Parameter(seeded32(9, 5, seed=seed))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        logits = self.table[input_ids]
        return SimpleNamespace(logits=logits, hidden=logits * torch.nan)


def test_tokens_count_without_padding() -> None:
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask}
    one, other = Tokens(0), Tokens(1)
    rows = torch.arange(1, 7)
    wanted = (one.table[rows].argmax(-1) == other.table[rows].argmax(-1)).double().mean()
    assert agreement([batch], one)(other) == pytest.approx(float(wanted))
    a, b = (model.table[rows].detach().double() for model in (one, other))
    mean = F.cosine_similarity(a, b).mean()
    assert cosine([batch], one)(other) == pytest.approx(float(mean))


def test_what_counts_may_be_told() -> None:
    def first(output: Tensor) -> Tensor:
        return output[:, :2]

    one, other = net(), net(7)
    rows = torch.cat(BATCHES)
    wanted = float((one(rows)[:, :2].argmax(-1) == other(rows)[:, :2].argmax(-1)).double().mean())
    assert agreement(BATCHES, one, readout=first)(other) == pytest.approx(wanted)


def test_what_cannot_be_compared_is_refused() -> None:
    same = agreement(BATCHES, net())
    with pytest.raises(
        ArgumentError, match=r"of shape \(5, 3\), and those of reference of \(5, 4\)"
    ):
        same(nn.Linear(6, 3))
    broken = net()
    nn.init.constant_(broken.weight, torch.nan)
    with pytest.raises(ArgumentError, match="hold NaN"):
        same(broken)
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (BATCHES, broken, {}, "hold NaN"),
        (BATCHES, "dense", {}, "reference is a str"),
        (BATCHES, net(), {"readout": 3}, "readout is a int"),
        (BATCHES[0], net(), {}, r"for one batch write data=\[batch\]"),
        ([torch.ones(2, 3)], net(), {}, "data: the model cannot take batch 0"),
        (BATCHES, nn.Linear(6, 1), {}, "are no logits"),
    ]
    for data, reference, more, says in cases:
        with pytest.raises(ArgumentError, match=says):
            agreement(data, reference, **more)


def test_accuracy_is_the_share_that_is_right() -> None:
    answers = nn.Identity()
    data = [torch.eye(3), torch.eye(3)[:1]]
    assert accuracy(data, [0, 1, 1, 0])(answers) == 0.75
    assert accuracy(data, [[0, 1, 1], [0]])(answers) == 0.75
    assert accuracy(data, torch.tensor([0, 1, 1, -100]))(answers) == pytest.approx(2 / 3)
    words = accuracy(data, list("abba"), decode=lambda out: ["abc"[k] for k in out.argmax(-1)])
    assert words(answers) == 0.75
    assert repr(words) == "accuracy of 4 labels, the larger the better"
    assert float(torch.as_tensor(words.scores(answers)).sum()) == 3.0


def test_of_tokens_each_counts_the_same() -> None:
    logits = seeded32(2, 4, 3)
    labels = torch.tensor([[0, 1, 2, 0], [1, -100, -100, -100]])
    right = (logits.argmax(-1) == labels)[labels != -100].double().mean()
    found = accuracy([logits], labels)
    assert found(nn.Identity()) == pytest.approx(float(right))
    assert len(found.scores(nn.Identity())) == 2


def test_f1_is_that_of_a_confusion_by_hand() -> None:
    """Answers 0 0 1 1 1 2 beside labels 0 1 1 1 2 2: TP, FP, FN are 1 1 0, then 2 1 1, 1 0 1."""
    data = [F.one_hot(torch.tensor([0, 0, 1, 1, 1, 2]), 3).float()]
    labels = [0, 1, 1, 1, 2, 2]
    answers = nn.Identity()
    by_class = [2 / 3, 4 / 6, 2 / 3]
    for k in range(3):
        assert f1(data, labels, positive=k)(answers) == pytest.approx(by_class[k])
    assert f1(data, labels)(answers) == pytest.approx(sum(by_class) / 3)
    assert f1(data, [0, 0, 1, 1, 1, 2])(answers) == 1.0
    # A class that is answered and is in no label has F1 0, and counts.
    assert f1([data[0][:2]], [1, 1])(answers) == 0.0


def test_f1_of_sets_is_that_of_their_members() -> None:
    """Two of three spans that were found are right, of four that there are."""
    labels = [{(0, 2), (3, 4)}, set(), {(1, 1), (5, 6)}]
    found = [{(0, 2)}, {(9, 9)}, {(1, 1)}]
    metric = f1([torch.zeros(3, 1)], labels, decode=lambda output: found)
    assert metric(nn.Identity()) == pytest.approx(2 * 2 / (3 + 4))


def test_labels_that_cannot_be_are_refused() -> None:
    data = [torch.eye(3)]
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "labels is empty"),
        (3, {}, "labels is a int"),
        ([0, {1}, 1], {}, "sets of some examples"),
        ([set(), set(), set()], {}, "nothing to be found"),
        ([{1}, {2}, {3}], {"positive": 1}, "is for labels"),
        ([0, 1, 1], {"positive": 7}, "positive=7 is none of the labels"),
        ([-100, -100, -100], {}, "nothing that counts"),
        ([0, 1, 1], {"decode": 3}, "decode is a int"),
    ]
    for labels, more, says in cases:
        with pytest.raises(ArgumentError, match=says):
            f1(data, labels, **more)
    with pytest.raises(ShapeError, match="labels are 2, and the model's answers on data 3"):
        accuracy(data, [0, 1])(nn.Identity())
    with pytest.raises(ArgumentError, match=r"decode fails .* ZeroDivisionError"):
        accuracy(data, [0, 1, 1], decode=lambda output: 1 / 0)(nn.Identity())
    with pytest.raises(ArgumentError, match="does not give sets"):
        f1(data, [{1}, {2}, {3}])(nn.Identity())
    with pytest.raises(ArgumentError, match="hold NaN"):
        accuracy([torch.full((2, 3), torch.nan)], [0, 1])(nn.Identity())


def test_metrics_are_public_and_say_which_way_is_better() -> None:
    data = [torch.eye(3)]
    larger = [accuracy(data, [0, 1, 2]), f1(data, [0, 1, 2]), agreement(BATCHES, net())]
    assert all(metric.larger_is_better for metric in larger)
    assert not tensorlrf.metrics.perplexity(torch.arange(200)).larger_is_better
