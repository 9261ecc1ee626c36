"""What `compress` was asked for carried out, in one process or on all ranks of a group."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._apply import batch_norms, carried_out, latency_of
from tensorlrf.compression._baked import without_baked
from tensorlrf.compression._survey import survey
from tensorlrf.compression._uncompiled import own_model
from tensorlrf.compression._unpacked import shared_model
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.fit._fitting import OUTPUTS, Fitting
from tensorlrf.compression.folding._within import folded_before
from tensorlrf.compression.frontier._metric import Metric, with_quality
from tensorlrf.compression.group._alike import check_alike, check_shared
from tensorlrf.compression.group._group import ranks_here
from tensorlrf.compression.journal._identity import identity
from tensorlrf.compression.journal._kept import kept_in
from tensorlrf.compression.modular._modular import whole_modules
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan._planned import planned
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.refinement._processes import Processes
from tensorlrf.compression.refinement._refine import refined
from tensorlrf.compression.refinement._settings import Settings
from tensorlrf.compression.report._report import Report
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.files.arguments import PathLike


def refinement_for(
    refine: Any, holdout: float, max_drop: float | None, *, calibrated: bool
) -> Settings | None:
    """Of refinement at the end; None for none. Raises ArgumentError."""
    if refine is None:
        return None
    settings = Settings(seconds=refine, holdout=holdout)
    settings.check("refine")
    if max_drop is not None:
        raise ArgumentError(
            f"refine={refine!r} and max_drop={max_drop!r}: what is found is judged before it is "
            "refined; leave out refine=, and pass the result to tensorlrf.refine"
        )
    if not calibrated:
        raise ArgumentError(f"refine={refine!r} trains on inputs; give calibration=")
    return settings


def compressed(
    model: nn.Module,
    request: Request,
    judging: Metric,
    fitting: Fitting,
    calibration: Any,
    settings: Settings | None,
    *,
    fold_batch_norms: bool,
    journal: PathLike | None,
) -> tuple[nn.Module, Report]:
    """`settings` are those of refinement; None for none."""
    # A wrong word is told before the model is looked at.
    fitting.check(calibrated=calibration is not None)
    if journal is not None and request.modular:
        raise ArgumentError(
            f"journal={journal!r} keeps what is measured to share ranks out; with method='modular' "
            "there are none, leave it out"
        )
    with ranks_here(calibration is not None) as group:
        # What is smaller in parts could not be packed again.
        model = own_model(model) if request.modular else shared_model(model, group)
        refine = None if settings is None else settings.seconds
        others = {"max_drop": judging.max_drop, "shared": fitting.shared, "refine": refine}
        check_shared(group, request.not_shared | others)
        asked = {"call": "compress", **vars(request), **vars(fitting)}
        check_alike(group, model, {**asked, "journal": journal is not None})
        request = replace(request, progress=request.progress and group.is_first)
        fitting = replace(fitting, progress=request.progress)
        data = Calibration.read(
            calibration, model, fitting.holdout, fitting.memory_limit, fitting.groups, group
        )
        asked = {
            "call": "compress", **request.asked, **fitting.asked, **judging.asked,
            "refine": refine, "fold_batch_norms": fold_batch_norms,
        }  # fmt: skip
        of = partial(identity, model, data, request.example, asked, fitting.moments)
        with kept_in(journal, group, request.random_state, of) as kept:
            return _fitted(
                model, replace(request, kept=kept), judging, fitting, data, settings,
                fold_batch_norms=fold_batch_norms,
            )  # fmt: skip


def _fitted(
    model: nn.Module,
    request: Request,
    judging: Metric,
    fitting: Fitting,
    data: Calibration | None,
    settings: Settings | None,
    *,
    fold_batch_norms: bool,
) -> tuple[nn.Module, Report]:
    folded = None
    if fold_batch_norms:
        model, folded = folded_before(model, data, request.example)
    if judging.max_drop is not None and request.modular:
        raise ArgumentError(
            f"max_drop={judging.max_drop!r} is of methods that make factors; with "
            "method='modular' give keep_params="
        )
    if judging.max_drop is not None and data is not None:

        def carry_out(plan: Plan) -> tuple[nn.Module, Report]:
            return carried_out(model, plan, survey(model), data, fitting, request.example)

        small, report = judging.fitted(model, request, data, carry_out)
        return small, replace(report, folded=folded)
    if request.modular and fitting.shared is not None:
        raise ArgumentError(
            f"shared={fitting.shared!r} is of methods that make factors; leave it out with "
            "method='modular'"
        )
    if request.modular:
        judge = judging.judge(model, request)
        small, report = whole_modules(model, request, data, fitting)
        small = without_baked(small)
        with torch.inference_mode(False), without_autocast():
            norms, error = batch_norms(model, small, data) if fitting.batch_norm else (None, None)
            latency = latency_of(model, small, report, request.example, data, fitting)
        report = replace(report, latency=latency, batch_norms=norms)
        if error is not None:
            report = replace(
                report, model_error=error.error, model_error_interval=error.interval
            )  # fmt: skip
    else:
        fitting = fitting.of_moments(model)
        made, found, probe = planned(
            model, request, data, weighs=fitting.metric != OUTPUTS, moments=fitting.known
        )
        judge = judging.judge(model, request)  # what fails is to fail before the fit
        small, report = carried_out(model, made, found, data, fitting, request.example, probe)
    if settings is not None and data is not None:
        with torch.inference_mode(False), without_autocast():
            small, told = refined(
                small, model, data, settings, request.loss, request.readout, None,
                request.kept.folder,
                fitting.random_state, fitting.progress, Processes(), time.monotonic(),
            )  # fmt: skip
            error = data.apart(model, small)
            latency = latency_of(model, small, report, request.example, data, fitting)
        report = replace(
            report,
            latency=latency,
            model_error=None if error is None else error.error,
            model_error_interval=None if error is None else error.interval,
            refinement=told,
        )
    return small, with_quality(replace(report, folded=folded), judge, small)
