"""Plans: as values, as tables, edited, from mappings, and carried out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import CP, SVD, Auto, Plan, Tucker, apply, compress, plan
from tensorlrf.compression import Method
from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.errors import ArgumentError, RankError
from tests.compression.networks import set_weights
from tests.draws import seeded32


def net(stride: int = 1) -> nn.Sequential:
    model = nn.Sequential()
    model.stem = nn.Conv2d(3, 16, 3)
    model.wide = nn.Conv2d(16, 32, 3, stride=stride)
    model.norm = nn.BatchNorm2d(32)
    model.groups = nn.Conv2d(32, 32, 3, groups=2)
    model.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.hidden = nn.Linear(32, 32)
    model.fc = nn.Linear(32, 16)
    set_weights(model)
    return model


def data(n: int = 4) -> list[Tensor]:
    return [seeded32(48, 3, 8, 8, seed=k) for k in range(n)]


BUDGETS: dict[str, dict[str, Any]] = {
    "share": {"keep_params": 0.5},
    "tucker": {"keep_params": 0.5, "method": Tucker(rank_shares=(0.5, 0.5), tol=0.01)},
    "auto": {"keep_params": 0.5, "method": Auto(candidates=(SVD(), CP(n_iter_max=3)))},
    "error": {"error": 0.3, "skip": []},
    "mapping": {"method": {"stem": None, "hidden": SVD(rank=4), "*": Tucker(rank=0.5)}},
}


@pytest.mark.parametrize("budget", BUDGETS)
def test_json_both_ways(budget: str) -> None:
    made = plan(net(), **BUDGETS[budget])
    text = made.to_json()
    assert Plan.from_json(text) == made
    assert Plan.from_json(text).to_json() == text
    assert json.loads(text)["version"] == 6
    assert hash(made) == hash(Plan.from_json(text))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_apply_of_a_plan_is_compress(budget: str, calibrated: bool) -> None:
    model = net()
    calibration = data() if calibrated else None
    small, report = compress(model, calibration=calibration, **BUDGETS[budget])
    made = plan(model, calibration=calibration, **BUDGETS[budget])
    made = Plan.from_json(made.to_json())
    again, second = apply(model, made, calibration=calibration)
    assert second == report
    for a, b in zip(small.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    for row in made.layers:
        done = report.layer(row.name)
        assert done.places == row.places
        if row.rank is not None:
            assert done.params_after == row.params_after


def test_the_table_tells_every_layer_once() -> None:
    made = plan(net(), method=BUDGETS["mapping"]["method"], skip="norm")
    for text in (str(made), made.to_markdown()):
        for row in made.layers:
            assert row.name in text
            assert not row.reason or row.reason in text
        assert made.architecture[:12] in text
        assert "2 groups" in text
    keep = plan(net(), keep_params=0.5)
    total = sum(row.params_after or 0 for row in keep.layers if row.eligible)
    assert f"{total:,} parameters" in str(keep)
    assert "keep_params 0.5" in str(keep)
    assert "the fit decides the ranks" in str(plan(net(), error=0.2))
    rows = [line for line in keep.to_markdown().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(keep.factored)
    assert len({line.count("|") for line in rows}) == 1


def test_edits_are_new_plans_that_apply_carries_out() -> None:
    model = net()
    made = plan(model, keep_params=0.5)
    edited = made.edit("hidden", rank=3).edit("wide", method=Tucker(rank=(8, 4)))
    edited = edited.edit("groups", leave=True).edit("fc", error=0.6)
    assert made == plan(model, keep_params=0.5)
    assert edited.layer("hidden").rank == 3
    assert edited.layer("wide").rank == (8, 4)
    assert edited.layer("fc").eligible
    small, report = apply(model, edited)
    assert report.layer("hidden").rank == 3
    assert report.layer("wide").format == "tucker"
    assert report.layer("groups").reason == "left by an edit of the plan"
    assert type(small.groups) is nn.Conv2d
    row = report.layer("fc")
    assert row.weight_error is not None
    assert row.weight_error <= 0.6
    # A method takes over the budget that there is; a share is one, too.
    taken = made.edit("wide", method=CP()).layer("wide")
    assert (taken.method, taken.rank) == (CP(rank=made.layer("wide").rank), 8)
    assert made.edit("*", rank=0.4).layer("hidden").method == SVD(rank=0.4)
    # A linear layer has the SVD whatever the method.
    assert made.edit("*", method="cp", rank=4).layer("hidden").method == SVD(rank=4)


def test_a_head_can_be_had_back() -> None:
    model = net()
    made = plan(model, keep_params=0.5)
    assert "a head" in made.layer("fc").reason
    back = made.edit("fc", rank=4)
    assert back.layer("fc").reason == ""
    assert apply(model, back)[1].layer("fc").rank == 4


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda p: p.edit("nothing", rank=3), ArgumentError, "glob='nothing' matches no layer.*st"),
        (lambda p: p.edit("norm", rank=3), ArgumentError, "'norm' matches no layer that can be"),
        (lambda p: p.edit("hidden", rank=33), RankError, "rank=33 is above.*use at most 32"),
        (lambda p: p.edit("hidden", rank=0), RankError, "rank=0 must be"),
        (lambda p: p.edit("hidden", rank=(2, 2)), RankError, "is a tuple; svd takes one int"),
        (lambda p: p.edit("wide", method="cp", rank=10**9), RankError, "use at most 144"),
        (lambda p: p.edit("wide", method=Tucker(rank=(33, 2))), RankError, "above the sizes"),
        (lambda p: p.edit("groups", rank=17), RankError, "use at most 16"),
        (lambda p: p.edit("hidden", method="qr"), ArgumentError, "method='qr' is unknown"),
        (lambda p: p.edit("hidden", error=2), ArgumentError, "error=2"),
        (lambda p: p.edit("hidden", rank=2, error=0.2), ArgumentError, "two budgets"),
        (lambda p: p.edit("hidden"), ArgumentError, "or leave=True, one of these"),
        (lambda p: p.edit("hidden", rank=2, leave=True), ArgumentError, "one of these"),
        (lambda p: p.edit("fc", method="svd"), ArgumentError, "fc: the method svd needs a rank"),
    ],
)
def test_edits_that_cannot_be(
    edit: Callable[[Plan], Plan], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        edit(plan(net(), keep_params=0.5))


def test_each_layer_by_a_glob_of_its_own() -> None:
    method = {"stem": None, "wide": Tucker(rank=(8, 8)), "h*": SVD(error=0.4), "g*": CP(rank=0.3)}
    made = plan(net(), method=method)
    assert made.layer("stem").reason == "left by method= for 'stem'"
    assert made.layer("wide").rank == (8, 8)
    assert made.layer("hidden").method == SVD(error=0.4)
    grouped = made.layer("groups")
    assert isinstance(grouped.rank, int)
    assert grouped.params_after is not None
    assert grouped.params_after <= 0.3 * grouped.params
    # The first glob that matches counts, and what none matches stays.
    assert plan(net(), method={"w*": SVD(rank=2), "*": SVD(rank=3)}).layer("wide").rank == 2
    assert "no glob of method=" in plan(net(), method={"w*": SVD(rank=2)}).layer("hidden").reason
    # A common share goes to those without a budget; the others keep theirs.
    both = plan(net(), keep_params=0.5, method={"wide": SVD(rank=5), "*": "svd"})
    assert both.layer("wide").rank == 5
    rest = [row for row in both.layers if row.eligible and row.name != "wide"]
    assert sum(row.params_after or 0 for row in rest) <= 0.5 * sum(row.params for row in rest)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": {"*": SVD()}}, ArgumentError, "no budget for stem, .*or a rank to every"),
        ({"method": {"w*": SVD(rank=2)}, "keep_params": 0.5}, ArgumentError, "keep_params= out"),
        ({"method": {"*": SVD(rank=2)}, "error": 0.5}, ArgumentError, "leave error= out"),
        ({"method": {"*": SVD(rank=99)}}, RankError, "method of stem: rank=99 is above"),
        ({"method": Tucker(rank=(4, 4))}, RankError, r"method of stem: rank=\(4, 4\) is above"),
        ({"method": {"wide": "cpd"}, "keep_params": 0.5}, ArgumentError, r"\['wide'\]='cpd'"),
        ({"method": {"wide": 5}, "keep_params": 0.5}, ArgumentError, r"\['wide'\] is a int"),
        ({"method": {"tail": SVD(rank=2)}}, ArgumentError, "the glob 'tail' matches no layer"),
        ({"method": {"*": None}}, ArgumentError, "no eligible layer.*left by method="),
        ({"keep_params": 0.5, "skip": "*"}, ArgumentError, "no eligible layer.*skipped by"),
    ],
)
def test_mappings_that_cannot_be(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(net(), **options)


@pytest.mark.parametrize("method", ["svd", "tucker", CP(n_iter_max=2), Auto(candidates=(SVD(),))])
def test_an_error_is_kept_in_every_layer(method: str | Method) -> None:
    """Of the weight, or with calibration of the outputs on the inputs fitted to."""
    model = net()
    _, plain = compress(model, error=0.3, method=method, skip=["fc"])
    # CP is not fitted to inputs: there the budget stays one of the weight.
    aware = compress(
        model, error=0.3, method=method, skip=["fc"], calibration=data(), target="prefix", holdout=0
    )[1]
    for report, attribute in ((plain, "weight_error"), (aware, "output_error")):
        for row in report.layers:
            if not row.factored:
                assert row.params_after == row.params_before
                continue
            assert row.params_after < row.params_before
            budget = getattr(
                row, attribute if row.data_aware or report is plain else "weight_error"
            )
            assert budget <= 0.3, row
    assert any(row.factored for row in plain.layers)
    assert any(row.data_aware for row in aware.layers) or isinstance(method, CP)


def test_layers_that_would_not_be_smaller_stay() -> None:
    model = net()
    with torch.no_grad():
        model.hidden.weight.copy_(torch.eye(32))
    _, report = compress(model, error=0.3)
    assert report.layer("hidden").reason == "no smaller form is within error=0.3"
    assert type(compress(model, error=0.3)[0].hidden) is nn.Linear


def test_a_plan_of_another_model_is_refused() -> None:
    model = net()
    made = plan(model, keep_params=0.5)
    other = net()
    other.extra = nn.Linear(3, 3)
    with pytest.raises(ArgumentError, match="extra of the model is not in it"):
        apply(other, made)
    with pytest.raises(ArgumentError, match="the model has no layer 'stem'"):
        apply(nn.Sequential(nn.Linear(3, 3)), made)
    wide = net()
    wide.hidden = nn.Linear(32, 48)
    with pytest.raises(ArgumentError, match=r"hidden has a weight \(32, 32\).*\(48, 32\) in 1 in"):
        apply(wide, made)
    with pytest.raises(ArgumentError, match="architecture of the model is not the one"):
        apply(net(stride=2), made)
    shared = net()
    shared.twice = shared.hidden
    with pytest.raises(ArgumentError, match="hidden is at hidden there, but at hidden, twice"):
        apply(shared, made)
    hooked = net()
    hooked.hidden.register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match="hidden cannot be factored: has hooks"):
        apply(hooked, made)
    with pytest.raises(ArgumentError, match="plan is a str; make one with"):
        apply(model, made.to_json())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no layer gets factors"):
        apply(model, made.edit("*", leave=True))


def test_dtype_flags_and_values_are_no_part_of_the_architecture() -> None:
    made = plan(net(), keep_params=0.5)
    for change in (nn.Module.double, nn.Module.train, nn.Module.bfloat16):
        model = change(net())
        assert plan(model, keep_params=0.5).architecture == made.architecture
        apply(model, made)
    assert fingerprint(net().to("meta")) == made.architecture
    for p in (frozen := net()).parameters():
        p.requires_grad_(False)
    assert plan(frozen, keep_params=0.5).architecture == made.architecture
    small, _ = apply(frozen, made)
    assert plan(small, keep_params=0.9, skip=[]).architecture == made.architecture
    assert plan(net(stride=2), keep_params=0.5).architecture != made.architecture


def test_values_are_looked_at_where_a_layer_gets_factors() -> None:
    model = net()
    made = plan(model, keep_params=0.5)
    with torch.no_grad():
        model.hidden.weight[3, 4] = float("nan")
    with pytest.raises(ArgumentError, match="weight of hidden contains NaN"):
        apply(model, made)
    apply(model, made.edit("hidden", leave=True))


def test_a_plan_is_a_value() -> None:
    made = plan(net(), keep_params=0.5)
    with pytest.raises(AttributeError):
        made.keep_params = 0.4  # type: ignore[misc]
    with pytest.raises(KeyError):
        made.layer("nowhere")
    assert made != replace(made, keep_params=0.4)
    assert tensorlrf.Plan is Plan
    assert plan(net(), keep_params=1).keep_params == 1.0
    # For "auto" the share is known, the rank is not.
    auto = plan(net(), keep_params=0.5, method=Auto(candidates=(SVD(), CP()))).layer("wide")
    assert auto.rank is None
    assert auto.params_after is not None
    assert auto.params_after <= 0.55 * auto.params


def test_a_plan_needs_no_values() -> None:
    empty = net().to("meta")
    made = plan(empty, keep_params=0.5)
    assert made == plan(net(), keep_params=0.5)
    small, _ = apply(net(), made, progress=False)
    assert type(small.get_submodule("hidden")).__name__ == "FactoredLinear"
    with pytest.raises(ArgumentError, match="is on the meta device and has no values"):
        apply(empty, made)
