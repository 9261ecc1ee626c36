"""`method="modular"`: from a model to one whose perceptrons and attentions are smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from tensorlrf.compression._survey import (
    ROOT,
    Surveyed,
    check_values,
    kind_of,
    own_numbers,
    survey,
    without_skipped,
)
from tensorlrf.compression.calibration._dense_layer import dense_layer_at, module_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.fit._fitting import OUTPUTS, Fitting
from tensorlrf.compression.modular._recognised import recognised
from tensorlrf.compression.modular._trials import RULES, Trial, Trials
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.report._report import Report
from tensorlrf.compression.report._reporting import totals
from tensorlrf.compression.report._rows import LayerReport
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.behaviour.seen import plain_of
from tensorlrf.nn.plain import Plain
from tensorlrf.nn.resized.layers import resize_, resized_of


def whole_modules(
    model: nn.Module, request: Request, data: Calibration | None, fitting: Fitting
) -> tuple[nn.Module, Report]:
    """A copy of the model with fewer channels and smaller heads, and a report.

    Raises ArgumentError without `keep_params` and calibration, for what cannot be with this method,
    and where nothing of the model is a perceptron or an attention that is known.
    """
    data = _checked(request, data, fitting)
    with torch.inference_mode(False), without_autocast():
        found = without_skipped(survey(model), model, request.skip)
        names = [one.name for one in found if one.eligible and _is_linear(model, one.name)]
        for name in names:
            check_values(name, dense_layer_at(model, name).weight)
        structures, reasons = recognised(model, names, data.batches[0])
        if not structures:
            raise ArgumentError(
                "model has no perceptron or attention that method='modular' knows "
                f"({_told(found, reasons)}); use another method, such as 'svd'"
            )
        best = Trials(model, structures, request, data, fitting).best()
        error = data.apart(model, best.model) if data.held_out else None
    rows = [_row(one, model, best, reasons) for one in found]
    assert request.budget is not None
    report = Report(
        keep_params=request.budget.value,
        error=None,
        target="original" if best.refitted else "independent",
        affine=False,
        batches=len(data.fitted),
        held_out=len(data.held_out),
        layers=tuple(rows),
        model=totals(model, best.model),
        model_error=None if error is None else error.error,
        model_error_interval=None if error is None else error.interval,
        allotment=best.allotment,
        metric=best.metric,
    )
    return best.model, report


def take_sizes(model: nn.Module, small: nn.Module) -> None:
    """Give the modules of a model that own no weight the sizes that those of `small` have, in
    place."""
    for name, module in small.named_modules():
        to = resized_of(module)
        if to is not None and not to.shapes:
            resize_(module_at(model, name or ROOT), to)


def _checked(request: Request, data: Calibration | None, fitting: Fitting) -> Calibration:
    """Raise ArgumentError for what is not of this method."""
    budget = request.budget
    if budget is None or budget.word != "keep_params":
        given = "no budget" if budget is None else f"{budget.word}={budget.value:g}"
        raise ArgumentError(
            f"method='modular' with {given}: it needs keep_params=, the share of the weights of "
            "perceptrons and attentions to keep"
        )
    if data is None:
        raise ArgumentError(
            "method='modular' is told by inputs which channels to keep; give calibration="
        )
    if request.objective != "size":
        raise ArgumentError(
            f"objective={request.objective!r} is of methods that make factors; with "
            "method='modular' every layer that is smaller is also faster"
        )
    for word, value in (("include", request.include), ("sensitivity", request.sensitivity)):
        if value:
            raise ArgumentError(
                f"{word}= is of methods that make factors; method='modular' makes perceptrons and "
                "attentions smaller, and nothing else"
            )
    if fitting.affine:
        raise ArgumentError(
            "affine=True is of methods that make factors; method='modular' corrects the biases "
            "that there are in any case"
        )
    if fitting.target == "prefix":
        raise ArgumentError(
            "target='prefix' is of methods that make factors; method='modular' cuts modules by the "
            'inputs of the given model, and fits what is left to its outputs ("original") or not '
            '("independent")'
        )
    if request.allocation.rule not in RULES:
        raise ArgumentError(
            f"allocation={request.allocation.rule!r} is of ranks of matrices; with "
            f"method='modular' choose one of {', '.join(RULES)}"
        )
    return data


def _is_linear(model: nn.Module, name: str) -> bool:
    plain = plain_of(module_at(model, name))
    return isinstance(plain, Plain) and not plain.axes


def _told(found: Sequence[Surveyed], reasons: Mapping[str, str]) -> str:
    told = [f"{one.name}: {reasons.get(one.name, one.reason)}" for one in found]
    more = f"; and {len(told) - 8} more" if len(told) > 8 else ""
    return "; ".join(told[:8]) + more


# ---- the report -------------------------------------------------------------------------------


def _row(
    found: Surveyed, model: nn.Module, trial: Trial, reasons: Mapping[str, str]
) -> LayerReport:
    name = found.name
    reason = reasons.get(name, found.reason)
    if found.eligible and not reason and not _is_linear(model, name):
        reason = "is no linear layer of a perceptron or an attention"
    kind, (params, size) = kind_of(found.module), own_numbers(found.module)
    if reason:
        return LayerReport(
            name, found.places, kind, False, None, None, reason, params, params, size, size
        )
    weight = dense_layer_at(model, name).weight
    params, each = weight.numel(), weight.element_size()
    done, refitted = trial.done.get(name), trial.refitted.get(name)
    row = LayerReport(
        name, found.places, kind, True, None, None, "keeps all by its share of the budget",
        params, params, params * each, params * each,
    )  # fmt: skip
    if refitted is not None:
        biased = dense_layer_at(model, name).module.bias is not None
        row = replace(
            row,
            reason=f"{row.reason}; fitted to the inputs that it has now",
            output_error=refitted.error,
            held_out=refitted.held,
            samples=refitted.samples,
            data_aware=True,
            bias="corrected" if biased else "",
            metric=OUTPUTS,
        )
    if done is None:
        return row
    after = dense_layer_at(trial.model, name).weight.numel()
    return replace(
        row,
        format=done.kind,
        rank=done.size,
        reason="",
        params_after=after,
        bytes_after=after * each,
        output_error=done.error if refitted is None else refitted.error,
        samples=done.samples,
        data_aware=True,
        metric=trial.metric,
    )
