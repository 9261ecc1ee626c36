"""From a model and a budget to a plan. Looks at shapes and types; needs no data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from tensorlrf.compression._ranks import allocate
from tensorlrf.compression._survey import (
    Surveyed,
    check_values,
    kind_of,
    own_numbers,
    survey,
    without_skipped,
)
from tensorlrf.compression._uncompiled import uncompiled
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.compression.losses._probe import Probe
from tensorlrf.compression.methods import Given, as_method, at_rung
from tensorlrf.compression.plan._allocated import Layer, allocated
from tensorlrf.compression.plan._plan import LayerPlan, Plan
from tensorlrf.compression.plan._worthwhile import without_slow
from tensorlrf.compression.plan.allocation import AUTO, UNIFORM, Allocation
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.decomposition.configs import Method
from tensorlrf.decomposition.ladder import Ladder, Rung
from tensorlrf.errors import ArgumentError, TensorlrfError

OBJECTIVES = ("size", "latency")


def plan(
    model: nn.Module,
    *,
    keep_params: float | None = None,
    error: float | None = None,
    method: Given = "svd",
    skip: str | Sequence[str] | None = None,
    objective: str = "size",
    example: Any = None,
    allocation: str | Allocation = UNIFORM,
    sensitivity: Sensitivity | None = None,
) -> Plan:
    """What `compress` would do with the model, as a value that can be looked at and edited.

    Eligible are Linear, Conv1d, Conv2d, Conv3d, the Conv1D of transformers, and subclasses that are
    known to compute the same, where a factored form is smaller. All other modules stay, each with
    its reason. Nothing is computed but ranks, so a plan is quick.

    Parameters
    ----------
    model : Module
    keep_params : float, optional
        Share of the eligible layers' weights to keep, in (0, 1]: an upper bound, layers that must
        stay dense for want of a rank included; biases are not counted. Ranks are multiples of 8
        (below 8, ones), shared out as `allocation` says. Or instead
    error : float, optional
        The relative error that each layer may have, in (0, 1): of its outputs where `apply` gets
        calibration (with `target="original"` beside the best outputs that its inputs allow), else
        of its weight. Layers that do not become smaller within it stay. One of the two, unless
        every method brings its own budget.
    method : str, Method or mapping
        A word of the table of methods: "svd" is a matrix of low rank, for a conv (O, I kh kw), and
        "auto" whichever of "svd", "tucker" and "cp" has the least error in a layer. Or the config
        of such a method, as `SVD(...)` or `Auto(...)`, with all options and perhaps a rank or an
        error of its own; or a mapping from globs of layer names to words, configs or None (stay):
        the first glob that matches counts. A Linear has the SVD in each of these four.
    skip : str or sequence of str, optional
        Globs of qualified names that stay; a glob covers all that a module holds. None: heads stay
        (classifiers, poolers, the output layer of a language model); []: none.
    objective : {"size", "latency"}
        "latency": layers that do not get faster on this device at the planned rank stay.
    example : Tensor, tuple or dict, optional
        A batch to time them on, for `objective="latency"`.
    allocation : str or Allocation
        How `keep_params` is shared out over layers: "uniform", about the same share for every
        layer; "energy", by the spectra of the weights, so that the squared errors have the least
        sum; or an `Allocation` with conditions on the ranks.
    sensitivity : Sensitivity, optional
        What each layer can lose, from `tensorlrf.sensitivity`: the losses then have the least sum,
        and layers that cannot lose anything stay dense.

    Returns
    -------
    Plan

    Raises
    ------
    ArgumentError
        For two budgets or none, a share too small for any rank, an unknown method or option, a glob
        that matches nothing, no eligible layer, NaN or Inf in a weight.

    References
    ----------
    Kim et al. 2016; Lebedev et al. 2015.

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> plan = tensorlrf.plan(model, method={"0": tensorlrf.SVD(rank=8), "*": None})
    >>> [(layer.name, layer.rank) for layer in plan.factored]
    [('0', 8)]
    """
    made, _ = planned(
        model,
        keep_params=keep_params,
        error=error,
        method=method,
        skip=skip,
        objective=objective,
        example=example,
        allocation=allocation,
        sensitivity=sensitivity,
    )
    return made


def planned(
    model: nn.Module,
    *,
    keep_params: float | None,
    error: float | None,
    method: Given,
    skip: str | Sequence[str] | None,
    objective: str,
    example: Any,
    allocation: str | Allocation,
    sensitivity: Sensitivity | None,
    probe: Callable[[list[str]], Probe] | None = None,
) -> tuple[Plan, list[Surveyed]]:
    """`plan`, and the survey of the model that it was made from.

    probe  gives, of the layers that share a budget, what tells how sensitive they are, where there
           are inputs
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    model = uncompiled(model)
    _check_budget("keep_params", keep_params)
    _check_budget("error", error)
    if objective not in OBJECTIVES:
        raise ArgumentError(
            f"objective={objective!r} is unknown; choose one of {', '.join(OBJECTIVES)}"
        )
    rule = Allocation.of(allocation)
    choose = _chooser(method)
    found = survey(model)
    wanted = without_skipped(found, model, [skip] if isinstance(skip, str) else skip)
    drafts = [_draft(one, choose) for one in wanted]
    if isinstance(method, Mapping):
        _check_used(method, [d.found for d in drafts])
    _check_budgets(drafts, keep_params, error)
    if keep_params is None:
        drafts = _with_ranks(drafts, None, error, rule, None)
    else:
        drafts = _shared_out(model, drafts, keep_params, rule, sensitivity, probe)
    if objective == "latency":
        slow = without_slow(model, {d.found.name: d.method for d in drafts if d.method}, example)
        drafts = [_left(d, slow[d.found.name]) if d.found.name in slow else d for d in drafts]
    for draft in drafts:
        if draft.method is not None:
            weight = DenseLayer.of(draft.found.module).weight
            if not weight.is_meta:
                check_values(draft.found.name, weight)
    made = Plan(
        fingerprint(model),
        None if keep_params is None else float(keep_params),
        None if error is None else float(error),
        tuple(_row(d) for d in drafts),
    )
    return made, found


@dataclass(frozen=True)
class _Draft:
    """A module on its way into the plan; `site` where it can be factored."""

    found: Surveyed
    layer: DenseLayer | None
    method: Method | None
    ladder: Ladder | None
    reason: str

    @property
    def eligible(self) -> bool:
        return self.ladder is not None


def _left(draft: _Draft, reason: str) -> _Draft:
    return replace(draft, method=None, ladder=None, reason=reason)


def _chooser(method: Given) -> Mapping[str, Method | None]:
    """Glob -> method. One method for all is that of "*"."""
    if not isinstance(method, Mapping):
        return {"*": as_method(method)}
    if not method:
        raise ArgumentError("method={} is empty; map globs of layer names to methods")
    return {
        glob: None if value is None else as_method(value, f"method[{glob!r}]")
        for glob, value in method.items()
    }


def _draft(found: Surveyed, choose: Mapping[str, Method | None]) -> _Draft:
    if found.reason and not found.skipped:
        return _Draft(found, None, None, None, found.reason)
    layer = DenseLayer.of(found.module)
    if found.reason:
        return _Draft(found, layer, None, None, found.reason)
    glob = next((g for g in choose for n in found.places if fnmatchcase(n, g)), None)
    if glob is None:
        return _Draft(found, layer, None, None, "no glob of method= matches it")
    method = choose[glob]
    if method is None:
        return _Draft(found, layer, None, None, f"left by method= for {glob!r}")
    method = method.for_shape(layer.shape)
    reason = method.why_not(layer.shape, layer.groups)
    if reason:
        return _Draft(found, layer, None, None, reason)
    ladder = method.ladder(layer.shape, layer.groups)
    if not ladder.rungs and not isinstance(method.rank, (int, tuple)):
        return _Draft(found, layer, None, None, "no factored form is smaller")
    return _Draft(found, layer, method, ladder, "")


def _check_used(method: Mapping[str, Any], found: Sequence[Surveyed]) -> None:
    names = [name for one in found for name in one.places]
    for glob in method:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ArgumentError(
                f"method: the glob {glob!r} matches no layer; there are {', '.join(names)[:300]}"
            )


def _check_budgets(
    drafts: Sequence[_Draft], keep_params: float | None, error: float | None
) -> None:
    eligible = [d for d in drafts if d.method is not None]
    if not eligible:
        reasons = "; ".join(f"{d.found.name}: {d.reason}" for d in drafts[:20])
        more = f"; and {len(drafts) - 20} more" if len(drafts) > 20 else ""
        raise ArgumentError(
            "model has no eligible layer, which is a Linear or a convolution that becomes smaller "
            f"as factors ({reasons or 'it has no parameters'}{more})"
        )
    if keep_params is not None and error is not None:
        raise ArgumentError(
            f"keep_params={keep_params!r} and error={error!r} are two budgets; give one of them"
        )
    open_ = [d.found.name for d in eligible if d.method is not None and not d.method.budgeted]
    if keep_params is None and error is None and open_:
        raise ArgumentError(
            f"there is no budget for {_some(open_)}: give keep_params=, the share of the weights "
            "to keep, or error=, or a rank to every method"
        )
    if (keep_params is not None or error is not None) and not open_:
        given = "keep_params" if keep_params is not None else "error"
        raise ArgumentError(
            f"{given}= and the methods' own ranks or errors are two budgets: every layer has one "
            f"of its own, so leave {given}= out"
        )


def _shared_out(
    model: nn.Module,
    drafts: list[_Draft],
    keep_params: float,
    allocation: Allocation,
    sensitivity: Sensitivity | None,
    probe: Callable[[list[str]], Probe] | None,
) -> list[_Draft]:
    """The drafts with ranks by the allocation's rule; with "auto" as they would be with uniform
    ones, where the model then loses less on inputs held out."""
    uniform = partial(_with_ranks, drafts, keep_params, None, allocation, None)
    if sensitivity is not None:
        sensitivity.check(fingerprint(model))
        return _with_ranks(drafts, keep_params, None, allocation, sensitivity)
    names = [d.found.name for d in drafts if d.method is not None and not d.method.budgeted]
    if allocation.rule == UNIFORM or (allocation.rule == AUTO and probe is None):
        return uniform()
    looked = Probe(model, names, None) if probe is None else probe(names)
    made = _with_ranks(drafts, keep_params, None, allocation, looked.sensitivity(allocation.rule))
    if allocation.rule != AUTO:
        return made
    others = uniform()
    return min((made, others), key=lambda some: looked.loss_at(_matrix_ranks(some)))


def _matrix_ranks(drafts: Sequence[_Draft]) -> dict[str, int]:
    """The ranks of low-rank matrices that have as many parameters, of layers that are factored."""
    ranks = {}
    for draft in drafts:
        row = _row(draft)
        if row.method is not None and row.params_after is not None:
            a_rank = row.shape[0] + row.groups * math.prod(row.shape[1:])
            ranks[row.name] = max(1, row.params_after // a_rank)
    return ranks


def _with_ranks(
    drafts: list[_Draft],
    keep_params: float | None,
    error: float | None,
    allocation: Allocation,
    sensitivity: Sensitivity | None,
) -> list[_Draft]:
    """The drafts with a rank, an error or a share each."""
    shared = [k for k, d in enumerate(drafts) if d.method is not None and not d.method.budgeted]
    drafts = [_own_rank(d) for d in drafts]
    if keep_params is not None:
        layers = [Layer(d.found.places, d.ladder) for d in (drafts[k] for k in shared) if d.ladder]
        if sensitivity is None:
            choices = allocate([layer.ladder for layer in layers], keep_params)
        else:
            choices = allocated(layers, sensitivity, allocation, keep_params)
        why = "no rank fits into the share" if sensitivity is None else "every rank costs more"
        for k, choice in zip(shared, choices, strict=True):
            drafts[k] = _chosen(drafts[k], choice, why)
    elif error is not None:
        for k in shared:
            method = drafts[k].method
            assert method is not None
            drafts[k] = replace(drafts[k], method=method.with_budget(error=error))
    return drafts


def _chosen(draft: _Draft, choice: Rung | None, why_dense: str) -> _Draft:
    """The draft at a rung of its ladder; None lets it stay dense."""
    method, ladder = draft.method, draft.ladder
    assert method is not None
    assert ladder is not None
    if choice is None:
        return replace(draft, method=None, reason=why_dense)
    if method.by_share:
        return replace(draft, method=method.with_budget(rank=choice.params / ladder.dense))
    return replace(draft, method=at_rung(method, choice))


def _own_rank(draft: _Draft) -> _Draft:
    """A layer's own share becomes a rank, and its own rank is checked."""
    method, layer = draft.method, draft.layer
    if method is None or layer is None or method.rank is None:
        return draft
    if method.by_share and isinstance(method.rank, (float, str)):
        return draft
    try:
        if isinstance(method.rank, float):
            rung = method.ladder(layer.shape, layer.groups).within(method.rank)
            if rung is None:
                reason = f"no rank fits into its share, {method.rank:g}"
                return replace(draft, method=None, reason=reason)
            return replace(draft, method=at_rung(method, rung))
        method.planned_params(method.rank, layer.shape, layer.groups)  # type: ignore[arg-type]
    except TensorlrfError as error:
        raise type(error)(f"method of {draft.found.name}: {error}") from None
    return draft


def _row(draft: _Draft) -> LayerPlan:
    found, layer = draft.found, draft.layer
    params = own_numbers(found.module)[0] if layer is None else layer.weight.numel()
    return LayerPlan(
        found.name,
        found.places,
        kind_of(found.module),
        () if layer is None else layer.shape,
        1 if layer is None else layer.groups,
        draft.method,
        params,
        draft.eligible,
        draft.reason,
    )


def _check_budget(argument: str, value: Any) -> None:
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if argument == "keep_params" and not (number and 0 < value <= 1):
        raise ArgumentError(
            f"keep_params={value!r} must be a share in (0, 1]: 0.25 keeps at most a quarter "
            "of the eligible layers' parameters"
        )
    if argument == "error" and not (number and 0 < value < 1):
        raise ArgumentError(f"error={value!r} must be a relative error in (0, 1), such as 0.05")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
