"""`method="modular"`: from a model to one of which whole modules are smaller."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from tensorlrf.compression._survey import (
    Surveyed,
    bonds_of,
    check_values,
    covers,
    kind_of,
    own_numbers,
    survey,
    without_skipped,
)
from tensorlrf.compression.calibration._dense_layer import dense_layer_at, module_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._outputs import tensors_of
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.fit._fitting import OUTPUTS, Fitting
from tensorlrf.compression.modular._folds import Folds
from tensorlrf.compression.modular._recognised import UNKNOWN, recognised
from tensorlrf.compression.modular._trials import RULES, Trial, Trials
from tensorlrf.compression.page.environment import environment_of
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.report._report import Report
from tensorlrf.compression.report._reporting import totals
from tensorlrf.compression.report._rows import LayerReport
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.behaviour.seen import plain_of
from tensorlrf.nn.copies import replica
from tensorlrf.nn.obstacles import why_not, why_not_rewritten
from tensorlrf.nn.plain import Plain, is_table
from tensorlrf.nn.resized.layers import resize_, resized_of, tensors_in


def whole_modules(
    model: nn.Module, request: Request, data: Calibration | None, fitting: Fitting
) -> tuple[nn.Module, Report]:
    """A copy of the model with fewer channels and smaller heads, and a report.

    Raises ArgumentError without `keep_params` and calibration, for what cannot be with this method,
    and where nothing of the model is a perceptron, bottleneck or attention that is known.
    """
    data = _checked(request, data, fitting)
    with torch.inference_mode(False), without_autocast():
        left = _left(model, request.skip)
        told = without_skipped(survey(model), model, request.skip)
        found = with_depthwise(told, model, left)
        names = [one.name for one in found if one.eligible and _is_dense(model, one.name)]
        for name in names:
            check_values(name, dense_layer_at(model, name).weight)
        folds = Folds.of(model, data.batches[0])
        structures, reasons = recognised(folds.model, names, data.batches[0], left)
        # Of others than these it is known why they get no factors.
        own = {one.name: one.reason for one in told if not one.eligible}
        reasons = {n: own.get(n, why) if why == UNKNOWN else why for n, why in reasons.items()}
        if not structures:
            _check_outputs(folds.model, data.batches[0])
            raise ArgumentError(
                "model has no perceptron, attention or bottleneck that method='modular' knows "
                f"({_told(found, reasons)}); use another method, such as 'svd'"
            )
        best = Trials(folds.model, structures, request, data, fitting).best()
        best = replace(best, model=folds.undone(best.model, best.done, best.refitted))
        error = data.apart(model, best.model) if data.held_out else None
    rows = [_row(one, model, best, reasons, folds.pairs) for one in found]
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
        environment=environment_of(best.model),
    )
    return best.model, report


def take_modules(model: nn.Module, small: nn.Module) -> None:
    """Give the modules of a model, in place, the sizes and values that those of `small` have, which
    was made of it."""
    own = dict(model.named_modules(remove_duplicate=False))
    for name, module in small.named_modules(remove_duplicate=False):
        before = own.get(name, module)
        if before is module:
            continue
        to = resized_of(module)
        if to is not None:
            resize_(before, to)
        mine = tensors_in(before)
        for key, value in tensors_in(module).items():
            if key in mine and (to is not None or not torch.equal(mine[key], value)):
                with torch.inference_mode(mine[key].is_inference()), torch.no_grad():
                    mine[key].copy_(value)


def _checked(request: Request, data: Calibration | None, fitting: Fitting) -> Calibration:
    """Raise ArgumentError for what is not of this method."""
    budget = request.budget
    if budget is None or budget.word != "keep_params":
        given = "no budget" if budget is None else f"{budget.word}={budget.value:g}"
        raise ArgumentError(
            f"method='modular' with {given}: it needs keep_params=, the share of the weights of "
            "perceptrons, attentions and bottlenecks to keep"
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
                f"{word}= is of methods that make factors; method='modular' makes perceptrons, "
                "attentions and bottlenecks smaller, and nothing else"
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


def _is_dense(model: nn.Module, name: str) -> bool:
    """Whether it is a linear layer or a convolution."""
    module = module_at(model, name)
    return isinstance(plain_of(module), Plain) and not is_table(module)


def with_depthwise(
    found: Sequence[Surveyed], model: nn.Module, left: Collection[str]
) -> list[Surveyed]:
    """The survey with depthwise convolutions among the layers that may be smaller: there are no
    factors for them, but they may have fewer channels."""
    bound = bonds_of(model)
    return [
        replace(one, reason="")
        if one.reason == why_not(one.module)
        and not why_not_rewritten(one.module)
        and one.module not in bound
        and one.name not in left
        else one
        for one in found
    ]


def _left(model: nn.Module, skip: Sequence[str] | None) -> set[str]:
    """The modules that are to be left as they are."""
    return {n for n, _ in model.named_modules() if any(covers(glob, n) for glob in skip or ())}


def _check_outputs(model: nn.Module, batch: Batch) -> None:
    """Raise ArgumentError where the first batch leads to NaN or Inf, which tell no structure."""
    if not all(torch.isfinite(t).all() for t in tensors_of(call(replica(model), batch))):
        raise ArgumentError(
            "calibration: what the model gives on batch 0 contains NaN or Inf; look at the batch, "
            "and at the weights"
        )


def _told(found: Sequence[Surveyed], reasons: Mapping[str, str]) -> str:
    told = [f"{one.name}: {reasons.get(one.name, one.reason)}" for one in found]
    more = f"; and {len(told) - 8} more" if len(told) > 8 else ""
    return "; ".join(told[:8]) + more


# ---- the report -------------------------------------------------------------------------------


def _row(
    found: Surveyed,
    model: nn.Module,
    trial: Trial,
    reasons: Mapping[str, str],
    norms: Mapping[str, str],
) -> LayerReport:
    """`norms`: of a layer the normalisation behind it, which may do for a bias."""
    name = found.name
    reason = reasons.get(name, found.reason)
    if found.eligible and not reason and not _is_dense(model, name):
        reason = "is no layer of a perceptron, an attention or a bottleneck"
    kind, (params, size) = kind_of(found.module), own_numbers(found.module)
    if reason:
        left, held = own_numbers(module_at(trial.model, name))
        reason = reason if left == params else "goes with the channels of the layers around it"
        return LayerReport(
            name, found.places, kind, False, None, None, reason, params, left, size, held
        )
    weight = dense_layer_at(model, name).weight
    params, each = weight.numel(), weight.element_size()
    done, refitted = trial.done.get(name), trial.refitted.get(name)
    row = LayerReport(
        name, found.places, kind, True, None, None, "keeps all by its share of the budget",
        params, params, params * each, params * each,
    )  # fmt: skip
    if refitted is not None:
        biased = name in norms or dense_layer_at(model, name).module.bias is not None
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
