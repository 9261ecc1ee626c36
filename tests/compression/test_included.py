"""Embeddings and heads that `include=` asks for: alone, and as one table."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import tensorlrf
from tensorlrf.compression._survey import survey
from tensorlrf.compression.calibration._calibrate import at_once
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._tied import with_heads
from tensorlrf.compression.calibration._trace import record
from tensorlrf.compression.calibration.batches import list_batches
from tensorlrf.errors import ArgumentError, BudgetWarning
from tensorlrf.nn import FactoredEmbedding, FactoredLinear
from tests.compression.networks import UNIFORM, Snapshot, set_weights

BOTH: dict[str, Any] = {"include": ["embeddings", "heads"], "progress": False}
WORDS, WIDTH = 120, 24


class Language(nn.Module):
    """An embedding, a layer, and a head that may have the weight of the embedding."""

    def __init__(self, tied: bool, bias: bool = False, padding_idx: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH, padding_idx=padding_idx)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=bias)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        logits: Tensor = self.lm_head(x + torch.tanh(self.body(x)))
        return logits


def language(tied: bool, **options: Any) -> Language:
    model = Language(tied, **options)
    set_weights(model)
    if model.embed.padding_idx is not None:
        with torch.no_grad():
            model.embed.weight[model.embed.padding_idx] = 0.0
    return model


def texts(n: int = 8, words: int = WORDS, seed: int = 0) -> list[Tensor]:
    """Tokens by Zipf's law, of the first so many words."""
    draws = torch.Generator().manual_seed(seed)
    shares = 1 / torch.arange(1.0, words + 1)
    return [
        torch.multinomial(shares, 128, replacement=True, generator=draws).reshape(4, 32)
        for _ in range(n)
    ]


def n_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_they_stay_by_default_and_the_reason_names_the_remedy() -> None:
    for tied in (False, True):
        made = tensorlrf.plan(language(tied), keep_params=0.9, **UNIFORM_PLAN)
        assert "include=['embeddings'" in made.layer("embed").reason
        assert [row.name for row in made.factored] == ["body"]
        assert not made.layer("lm_head").eligible
    made = tensorlrf.plan(language(True), keep_params=0.9, include="embeddings")
    assert "include=['embeddings', 'heads']" in made.layer("embed").reason


UNIFORM_PLAN = {"allocation": "uniform"}


@pytest.mark.parametrize("include", ["embeddings", "heads", ["heads", "embeddings"]])
def test_only_what_is_named_is_taken(include: str | list[str]) -> None:
    _, report = tensorlrf.compress(
        language(False), keep_params=0.5, include=include, progress=False
    )
    kinds = [include] if isinstance(include, str) else include
    assert report.layer("embed").factored == ("embeddings" in kinds)
    assert report.layer("lm_head").factored == ("heads" in kinds)
    with pytest.raises(ArgumentError, match="include='norms' must be of the kinds embeddings and"):
        tensorlrf.plan(language(False), keep_params=0.5, include="norms")


def test_skip_goes_before_include_for_either_name_of_a_table() -> None:
    for name in ("embed", "lm_head"):
        made = tensorlrf.plan(language(True), keep_params=0.5, skip=[name], **BOTH)
        assert made.layer("embed").reason == f"skipped by {name!r}"


@pytest.mark.parametrize("tied", [False, True])
@given(share=st.floats(0.15, 1.0))
@settings(max_examples=15, deadline=None)
def test_the_share_of_the_whole_model_is_an_upper_bound(tied: bool, share: float) -> None:
    model = language(tied, bias=True)
    try:
        small, report = tensorlrf.compress(model, keep_total=share, **BOTH, **UNIFORM)
    except ArgumentError as error:
        least = float(str(error).partition("; keep_total=")[2].partition(" ")[0])
        assert least > share
        tensorlrf.plan(model, keep_total=least, **BOTH)
        return
    assert n_params(small) <= share * n_params(model)
    assert report.model.share <= share
    assert report.model.params_before == n_params(model)
    assert f"the whole model keeps {report.model.share:.1%}" in str(report).partition("\n")[0]


def test_layers_with_a_rank_of_their_own_count_in_the_whole_model() -> None:
    model = language(False)
    methods = {"embed": tensorlrf.SVD(rank=4), "*": "svd"}
    small, _ = tensorlrf.compress(model, keep_total=0.55, method=methods, **BOTH)
    assert n_params(small) <= 0.55 * n_params(model)
    alone, _ = tensorlrf.compress(model, keep_total=0.55, **BOTH)
    assert small.lm_head.factors.rank > alone.lm_head.factors.rank


def test_the_fit_is_the_nearest_by_the_shares_of_the_tokens() -> None:
    """The closed form of sum_v p_v |W_v - A_v|^2, by singular values of sqrt(p_v) W_v."""
    model, batches = language(False), texts()
    method = {"embed": tensorlrf.SVD(rank=6), "*": None}
    small, report = tensorlrf.compress(
        model, method=method, calibration=batches, holdout=0.0, metric="outputs", **BOTH
    )
    amount = report.layer("embed").shrinkage
    assert amount is not None
    counts = torch.bincount(torch.cat(batches).flatten(), minlength=WORDS).double()
    shares = (1 - amount) * counts / counts.sum() + amount / WORDS
    wanted = model.embed.weight.detach().double()
    lost = wanted - small.embed.weight.detach().double()
    got = float((shares[:, None] * lost.square()).sum())
    best = float(torch.linalg.svdvals(shares.sqrt()[:, None] * wanted)[6:].square().sum())
    assert got == pytest.approx(best, rel=1e-5)


def test_what_was_never_seen_has_a_floor() -> None:
    """Rows of words that no batch holds are as near as their own best in the space that is left."""
    model = language(False)
    method = {"embed": tensorlrf.SVD(rank=12), "*": None}
    small, report = tensorlrf.compress(
        model, method=method, calibration=texts(words=60), metric="outputs", **BOTH
    )
    assert (report.layer("embed").shrinkage or 0.0) > 0
    unseen = model.embed.weight[60:].detach()
    assert float((small.embed.weight[60:].detach() - unseen).norm() / unseen.norm()) < 1


def test_frequent_tokens_gain_by_it() -> None:
    model, held = language(False), texts(seed=9)
    method = {"embed": tensorlrf.SVD(rank=6), "*": None}
    errors = []
    for calibration in (texts(), None):
        small, _ = tensorlrf.compress(model, method=method, calibration=calibration, **BOTH)
        lost = [small.embed(x) - model.embed(x) for x in held]
        errors.append(float(torch.cat(lost).detach().norm()))
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("method", ["svd", "tt", "auto"])
def test_a_tied_head_runs_on_the_factors_of_the_embedding(method: str) -> None:
    model, batches = language(True, bias=True), texts()
    before = Snapshot(model)
    small, report = tensorlrf.compress(
        model, keep_total=0.5, method=method, calibration=batches, **BOTH
    )
    before.check()
    assert type(small.embed) is FactoredEmbedding
    assert type(small.lm_head) is FactoredLinear
    for name in small.embed.factors.tensors():
        place = name.replace(".", "_")
        assert getattr(small.embed, place) is getattr(small.lm_head, place)
    assert n_params(small) == report.model.params_after <= 0.5 * n_params(model)
    row = report.layer("lm_head")
    assert (row.params_before, row.factored) == (WORDS, False)  # its bias
    assert "embed.weight" in row.reason
    assert report.eligible.params_before == model.embed.weight.numel() + WIDTH**2


@pytest.mark.parametrize("method", ["svd", "tt"])
@pytest.mark.parametrize("tied", [False, True])
def test_laws_of_a_model_with_a_factored_table(tmp_path: Path, tied: bool, method: str) -> None:
    model = language(tied, padding_idx=3)
    small, _ = tensorlrf.compress(
        model, keep_params=0.5, method=method, calibration=texts(4), **BOTH
    )
    x, path = texts(1, seed=5)[0], tmp_path / "small.safetensors"
    want = small(x)
    tensorlrf.save(small, path)
    with torch.device("meta"):
        blank = Language(tied, padding_idx=3).eval()
    for architecture in (language(tied, padding_idx=3), blank, copy.deepcopy(small)):
        back = tensorlrf.load(path, architecture)
        torch.testing.assert_close(back(x), want)
        assert n_params(back) == n_params(small)
        assert (next(back.embed.parameters()) is next(back.lm_head.parameters())) == tied
    dense, stock = tensorlrf.densify(small), tensorlrf.export(small)
    assert (dense.lm_head.weight is dense.embed.weight) == tied
    for other in (dense, stock, copy.deepcopy(small)):
        torch.testing.assert_close(other(x), want)
        assert not tied or n_params(other) < n_params(language(False))
    tensorlrf.tune(small, x, progress=False)
    torch.testing.assert_close(small(x), want)
    if method == "svd":
        assert not small.embed.weight[3].any()


def test_training_a_tied_table_changes_both() -> None:
    small, _ = tensorlrf.compress(language(True), keep_params=0.5, **BOTH)
    x = texts(1)[0]
    small.train()
    small(x).square().sum().backward()
    with torch.no_grad():
        for p in small.parameters():
            p -= 0.01 * p.grad
    torch.testing.assert_close(small.embed.weight.detach(), small.lm_head.weight.detach())


def test_the_fit_of_a_tied_table_has_the_least_sum_of_both_errors() -> None:
    """By the shares of tokens: of what is looked up, and of what the head makes of its inputs."""
    model, batches = language(True), texts()
    data = Calibration.of(list_batches(batches, model), 0.0)
    trace = record(model, ["lm_head"], data.batches[0])
    ((_, head),) = next(iter(at_once(model, ["lm_head"], trace, data)))
    gram = head.fit()[0].gram
    counts = torch.bincount(torch.cat(batches).flatten(), minlength=WORDS).double()
    wanted = model.embed.weight.detach().double()
    sizes = (float(wanted.square().sum()), float(((wanted @ gram) * wanted).sum()))

    def lost(table: Tensor) -> float:
        d = (wanted - table.detach().double()) * counts.sqrt()[:, None]
        return float(d.square().sum()) / sizes[0] + float(((d @ gram) * d).sum()) / sizes[1]

    method = {"embed": tensorlrf.SVD(rank=8), "*": None}
    found = {}
    for name, calibration in (("both", batches), ("plain", None)):
        small, _ = tensorlrf.compress(
            model, method=method, calibration=calibration, holdout=0.0, metric="outputs", **BOTH
        )
        found[name] = lost(small.embed.weight)
    untied = copy.deepcopy(model)
    untied.lm_head.weight = nn.Parameter(untied.embed.weight.detach().clone())
    small, _ = tensorlrf.compress(
        untied, method=method, calibration=batches, holdout=0.0, metric="outputs", **BOTH
    )
    found["embedding alone"] = lost(small.embed.weight)
    assert found["both"] < min(found["plain"], found["embedding alone"])


def test_a_head_that_no_batch_reaches_leaves_the_metric_of_the_embedding() -> None:
    class Silent(Language):
        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.body(self.embed(tokens))
            return out

    model = Silent(True)
    data = Calibration.of(list_batches(texts(2), model), 0.0)
    assert not with_heads(model, {"embed": ("lm_head",)}, data).metrics


def test_an_embedding_whose_weight_somebody_computes_with_stays() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(WORDS, WIDTH)
            self.body = nn.Linear(WIDTH, WIDTH)

        def forward(self, tokens: Tensor) -> Tensor:
            return F.linear(self.body(self.embed(tokens)), self.embed.weight)

    model = Functional()
    set_weights(model)
    with pytest.warns(BudgetWarning, match="its weight is read by Functional"):
        small, report = tensorlrf.compress(
            model, keep_params=0.6, calibration=texts(4), **BOTH, **UNIFORM
        )
    assert "its weight is read by" in report.layer("embed").reason
    assert type(small.embed) is nn.Embedding


def test_three_modules_on_one_table() -> None:
    class Twice(Language):
        def __init__(self) -> None:
            super().__init__(tied=True)
            self.other = nn.Embedding(WORDS, WIDTH)
            self.other.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.lm_head(self.body(self.embed(tokens)) + self.other(tokens))
            return logits

    model = Twice()
    set_weights(model)
    small, _ = tensorlrf.compress(model, keep_params=0.5, calibration=texts(4), **BOTH)
    assert small.embed.left is small.other.left
    assert small.embed.left is small.lm_head.left
    dense = tensorlrf.densify(small)
    assert dense.embed.weight is dense.other.weight is dense.lm_head.weight
    x = texts(1)[0]
    torch.testing.assert_close(dense(x), small(x))


def test_in_place_a_tied_table_is_the_same() -> None:
    model = language(True)
    small, _ = tensorlrf.compress(model, keep_total=0.5, calibration=texts(4), **BOTH)
    tensorlrf.compress_(model, keep_total=0.5, calibration=texts(4), **BOTH)
    assert model.embed.left is model.lm_head.left
    x = texts(1)[0]
    torch.testing.assert_close(model(x), small(x))


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_looked_at_and_in_a_frontier(tied: bool) -> None:
    model, batches = language(tied), texts(4)
    found = tensorlrf.sensitivity(model, batches, rule="fisher", **BOTH)
    names = [row.name for row in found.layers]
    assert names == ["embed", "body"] if tied else names == ["embed", "body", "lm_head"]
    told = tensorlrf.frontier(model, batches, shares=(0.7, 0.4), **BOTH)
    losses = [point.loss for point in told.points if point.kind == "factors"]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[0] <= losses[1]


def test_a_tied_head_counts_in_what_a_table_can_lose() -> None:
    """A cut of the weight is one of the head too: what is predicted is near what is lost."""
    model, batches = language(True), texts(16)
    found = tensorlrf.sensitivity(model, batches, rule="fisher", **BOTH)
    measured = tensorlrf.sensitivity(model, batches, rule="measured", **BOTH)
    share = 0.5 * model.embed.weight.numel()
    ratio = found.layer("embed").loss_at(share) / measured.layer("embed").loss_at(share)
    untied = copy.deepcopy(model)
    untied.lm_head.weight = nn.Parameter(untied.embed.weight.detach().clone())
    alone = tensorlrf.sensitivity(untied, batches, rule="fisher", **BOTH)
    assert 0.3 < ratio < 3
    assert found.layer("embed").loss_at(share) > alone.layer("embed").loss_at(share)


@pytest.mark.parametrize(
    "asked", [{"keep_flops": 0.9}, {"keep_params": 0.9, "objective": "latency"}]
)
def test_a_lookup_has_no_arithmetic_to_share_out(asked: dict[str, Any]) -> None:
    batches = texts(2)
    made = tensorlrf.plan(language(False), **asked, calibration=batches, example=batches[0], **BOTH)
    assert "computes nothing" in made.layer("embed").reason


def test_other_formats_have_no_rows() -> None:
    made = tensorlrf.plan(language(False), keep_params=0.6, method="kron", **BOTH)
    assert "no rows are looked up; choose one of svd" in made.layer("embed").reason
    plan = tensorlrf.plan(language(False), keep_params=0.6, **BOTH)
    with pytest.raises(ArgumentError, match="embed cannot have this format: kron gives"):
        tensorlrf.apply(language(False), plan.edit("embed", method="kron", rank=0.3))


def test_plans_go_through_json() -> None:
    made = tensorlrf.plan(language(True), keep_total=0.5, **BOTH)
    assert tensorlrf.Plan.from_json(made.to_json()) == made
    assert made.layer("embed").shape == (WIDTH, WORDS)
    small, report = tensorlrf.apply(language(True), made)
    assert report.keep_total == 0.5
    assert tensorlrf.compression.Report.from_json(report.to_json()) == report
    assert small.embed.left is small.lm_head.left


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = language(True).to(dtype)
    small, _ = tensorlrf.compress(model, keep_params=0.5, calibration=texts(4), **BOTH)
    assert small.embed.left.dtype == dtype
    assert small(texts(1)[0]).isfinite().all()


def test_refining_a_tied_table_keeps_it_one() -> None:
    model = language(True)
    small, _ = tensorlrf.compress(model, keep_total=0.4, calibration=texts(4), **BOTH)
    better, _ = tensorlrf.refine(small, model, texts(4), seconds=1.0, progress=False)
    assert better.embed.left is better.lm_head.left


def test_indices_out_of_range_raise_as_those_of_torch() -> None:
    model = language(False)
    with pytest.raises((IndexError, ArgumentError), match="index out of range"):
        tensorlrf.compress(model, keep_params=0.5, calibration=[torch.tensor([[0, WORDS]])], **BOTH)
    small, _ = tensorlrf.compress(model, keep_params=0.5, **BOTH)
    with pytest.raises(IndexError):
        small(torch.tensor([[WORDS]]))


def test_layers_before_the_table_is_reached_do_not_matter() -> None:
    """A survey of a model on meta takes no values, and plans are the same."""
    with torch.device("meta"):
        blank = Language(True)
    (table,) = [one for one in survey(blank) if one.is_table]
    assert table.tied == ("lm_head",)
    want = tensorlrf.plan(language(True), keep_total=0.5, **BOTH)
    assert tensorlrf.plan(blank, keep_total=0.5, **BOTH).layers == want.layers
    assert dense_layer_at(blank, "embed").shape == (WIDTH, WORDS)
